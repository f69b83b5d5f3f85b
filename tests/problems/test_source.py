from __future__ import annotations

import pytest

from covrl.errors import UserError
from covrl.problems.source import ProblemSource, shuffle_hints
from covrl.problems.tasks import find_task
from covrl.records import Problem

PROBLEMS = [Problem(f"p{i}", f"q{i}", f"a{i}") for i in range(7)]


def test_every_epoch_has_every_problem_once_in_its_own_order() -> None:
    source = ProblemSource(PROBLEMS, seed=3)
    epochs = [[p.id for p in source.take(7)] for _ in range(3)]
    assert all(sorted(epoch) == sorted(p.id for p in PROBLEMS) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_depends_on_the_seed_alone_and_not_on_the_batch() -> None:
    one, two = ProblemSource(PROBLEMS, seed=3), ProblemSource(PROBLEMS, seed=3)
    assert one.take(20) == [p for _ in range(10) for p in two.take(2)]
    assert ProblemSource(PROBLEMS, seed=4).take(7) != ProblemSource(PROBLEMS, seed=3).take(7)


def test_a_restored_position_continues() -> None:
    source = ProblemSource(PROBLEMS, seed=3)
    source.take(10)
    state, expected = source.state_dict(), source.take(9)
    fresh = ProblemSource(PROBLEMS, seed=3)
    fresh.load_state_dict(state)
    assert fresh.take(9) == expected


@pytest.mark.parametrize(
    ("problems", "said"), [([], "training set is empty"), ([PROBLEMS[0], PROBLEMS[0]], "share an id")]
)
def test_unusable_problems(problems: list[Problem], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ProblemSource(problems, 0)


def test_shuffled_hints_are_other_problems_answers_each_once() -> None:
    shuffled = shuffle_hints(PROBLEMS, seed=1)
    assert [(p.question, p.answer) for p in shuffled] == [(p.question, p.answer) for p in PROBLEMS]
    assert all(p.shown != p.answer for p in shuffled)
    assert sorted(p.shown for p in shuffled) == sorted(p.answer for p in PROBLEMS)
    assert shuffle_hints(PROBLEMS, seed=1) == shuffled != shuffle_hints(PROBLEMS, seed=2)


def test_an_unknown_task_or_split_names_what_there_is() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        find_task("digit")
    with pytest.raises(UserError, match="no split 'tset'; there are base, train, dev, test, longer"):
        find_task("digits").problems("tset")
