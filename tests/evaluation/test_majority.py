"""The most frequent answer of several samples: what counts as one, and what the reward watch makes of it."""

from __future__ import annotations

import pytest

from covrl.evaluation.accuracy import Graded
from covrl.evaluation.majority import majority_marks
from covrl.guards.reward_watch import Look, Paid, RewardWatch, compare
from covrl.records import Problem, Request, Rollout, Verdict
from covrl.rewards.graders import make_grader

RIGHT = Problem("p", "?", "4")
REPLY = Rollout(Request("p", 0, (), "prior"), (), (), "closed", "sampled", "")


def graded(*answers: str) -> list[Graded]:
    """Answers to a problem whose answer is 4; an empty one is none."""
    verdicts: list[Verdict] = ["right" if answer in ("4", "4.0", "four") else "wrong" for answer in answers]
    return [Graded(RIGHT, REPLY, a, v, None, REPLY if a else None) for a, v in zip(answers, verdicts, strict=True)]


@pytest.mark.parametrize(
    ("answers", "mark"),
    [
        (("4", "4", "5"), "1"),
        (("4", "5", "5"), "0"),
        (("4", "5", "6"), "0"),  # a tie
        (("4", "four", "5", "5", "6"), "0"),
        (("4", "4.0", "5", "6", "7"), "1"),
        (("4", "", "", "", ""), "1"),  # what is not said has no vote
        (("", "", ""), "0"),
    ],
)
def test_right_answers_have_to_outnumber_every_other_one(answers: tuple[str, ...], mark: str) -> None:
    assert majority_marks([graded(*answers)], "text", make_grader("text")) == mark


def test_wrong_answers_in_two_spellings_vote_together() -> None:
    rows = [graded("4", "4", r"\sqrt{8}", r"2\sqrt{2}", r"2\sqrt{2}")]
    assert majority_marks(rows, "text", make_grader("text")) == "0"
    rows = [graded("4", "4", r"\sqrt{8}", r"2\sqrt{2}", "9")]
    assert majority_marks(rows, "text", make_grader("text")) == "1"
    assert majority_marks(rows, "math", make_grader("math")) == "0"


def marks(right: int, count: int = 256) -> str:
    return "1" * right + "0" * (count - right)


RISING = [Paid(i + 1, i / 5 + 0.01 * (-1) ** i, 1.0) for i in range(30)]


def test_reward_and_accuracy_do_not_part_where_the_majoritys_rose() -> None:
    """Sampled answers stand still at 10 of 256, or fall from 60 to 20."""
    for before, now in ((10, 10), (60, 20)):
        looks = {rise: (Look(0, marks(before), marks(50)), Look(30, marks(now), marks(50 + rise))) for rise in (0, 90)}
        assert compare(*looks[0], RISING).parted  # ty: ignore[unresolved-attribute]
        assert not compare(*looks[90], RISING).parted  # ty: ignore[unresolved-attribute]
    unknown = compare(Look(0, marks(10)), Look(30, marks(10), marks(140)), RISING)
    assert unknown is not None
    assert unknown.parted


def test_it_asks_for_the_majority_first_and_while_it_is_in_doubt() -> None:
    """A reward that rises while sampled answers stand. Right majorities of 256 at the steps 1, 20, 40, 60, 80, 100."""

    def run(*majorities: int) -> tuple[list[bool], list[bool]]:
        watch, asked, warned = RewardWatch(), [], []
        every = iter(majorities)
        for step in range(1, 101):
            metrics = {"reward/prior": step / 5, "reward/group_std": 1.0}
            if step % 20 and step != 1:
                watch.step(step, metrics)
                continue
            asked.append(watch.in_doubt)
            right = next(every)
            majority = marks(right) if watch.in_doubt else ""
            warned.append(bool(watch.step(step, metrics, marks(10), majority=majority)[1]))
        return asked, warned

    assert run(*[30] * 6) == ([True, False, True, True, True, True], [False, False, True, True, True, True])
    assert run(30, 60, 90, 120, 150, 180) == ([True, False, True, False, True, False], [False] * 6)
    _, warned = run(30, 60, 90, 90, 90, 90)  # learns, and then earns its reward otherwise
    assert warned == [False, False, False, False, True, True]


def test_looks_of_an_older_checkpoint_have_no_majority() -> None:
    watch = RewardWatch()
    watch.load_state_dict({"paid": [], "looks": [[3, "01"]], "row": 1})
    assert list(watch.looks) == [Look(3, "01", "")]
    assert watch.in_doubt
