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


SEVERAL = [
    Problem(f"{name}{i}", "q", f"a{i}", origin=name) for name, n in (("a", 3), ("b", 7), ("c", 5)) for i in range(n)
]
WEIGHTS = {"a": 1, "b": 4.5, "c": 0.25}


def test_several_sources_give_their_shares_and_every_epoch_of_each_is_whole() -> None:
    source = ProblemSource(SEVERAL, seed=3, weights=WEIGHTS)
    taken = source.take(500)
    for count in range(1, 501):
        for name, weight in WEIGHTS.items():
            share = weight / sum(WEIGHTS.values()) * count
            assert abs(sum(p.origin == name for p in taken[:count]) - share) < 1.01
    mine = [p.id for p in taken if p.origin == "b"]
    assert all(len(set(mine[i : i + 7])) == 7 for i in range(0, len(mine) - 6, 7))
    assert len({tuple(mine[i : i + 7]) for i in range(0, len(mine) - 6, 7)}) > 10


def test_sources_continue_from_any_position_whatever_the_batches() -> None:
    whole = ProblemSource(SEVERAL, seed=3, weights=WEIGHTS).take(60)
    source = ProblemSource(SEVERAL, seed=3, weights=WEIGHTS)
    for position in range(0, 60, 5):
        fresh = ProblemSource(SEVERAL, seed=3, weights=WEIGHTS)
        fresh.load_state_dict(source.state_dict())
        assert (fresh.position, fresh.take(5)) == (position, whole[position : position + 5])
        source.take(5)


def test_hints_are_shuffled_within_each_source() -> None:
    shuffled = shuffle_hints(SEVERAL, seed=1)
    assert all(p.hint != p.answer for p in shuffled)
    for name in WEIGHTS:
        mine = [p for p in shuffled if p.origin == name]
        assert sorted(str(p.hint) for p in mine) == sorted(p.answer for p in mine)


def test_an_unknown_task_or_split_names_what_there_is() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        find_task("digit")
    with pytest.raises(UserError, match="no split 'tset'; there are base, train, dev, test, longer"):
        find_task("digits").problems("tset")
