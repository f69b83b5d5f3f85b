"""The index of traces: every filter against the same done by hand, pairs of groups, and text that looks like SQL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import pytest
from live_runs import group, step, trace

from covrl.records import Problem, TraceView, Turn
from covrl.reporting.live.index import Pair, TraceIndex, Wanted, problem_key


class Row(NamedTuple):
    """A trace that was put in, with what it belongs to."""

    number: int
    step: int
    place: int
    rank: int
    problem: Problem
    trace: TraceView


@pytest.fixture
def index() -> Iterator[TraceIndex]:
    made = TraceIndex()
    yield made
    made.close()


@pytest.fixture
def rows(index: TraceIndex) -> list[Row]:
    """Two hundred traces of forty groups, in the index and as a list."""
    drawn, numbers, made = random.Random(0), count(1), []
    for number in range(1, 11):
        groups = []
        for place in range(4):
            problem = Problem(f"Id-{drawn.randrange(6)}", f"Question {drawn.randrange(6)}", "Ästhetik")
            traces = [
                trace(
                    " ".join(drawn.choice(["wait", "so", "STRASSE", "Straße", "100%", "a_b"]) for _ in range(3)),
                    drawn.choice([None, -1.0, -0.5, 0.0, 2.0]),
                    drawn.choice(["prior", "posterior"]),
                    correct=drawn.choice([None, "right", "wrong", "unknown"]),
                    finish=drawn.choice(["closed", "length", "eos"]),
                    advantage=place - 2.0 - each,  # they are given by falling advantage
                )
                for each in range(5)
            ]
            groups.append(group(problem, *traces))
            made += [Row(next(numbers), number, place, rank, problem, each) for rank, each in enumerate(traces)]
        index.add(0, step(number, *groups), 0, 1)
    return made


def reward(row: Row) -> float:
    return float("nan") if row.trace.reward is None else row.trace.reward


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Wanted(), lambda r: True),
        (Wanted(text="WAIT"), lambda r: "wait" in r.trace.text),
        (Wanted(text="strasse"), lambda r: "strasse" in r.trace.text.casefold()),
        (Wanted(text="%"), lambda r: "%" in r.trace.text),
        (Wanted(text="_"), lambda r: "_" in r.trace.text),
        (Wanted(text="' OR 1=1 --"), lambda r: False),
        (Wanted(problem="id-3"), lambda r: r.problem.id == "Id-3"),
        (Wanted(problem="question 2"), lambda r: r.problem.question == "Question 2"),
        (Wanted(problem="ÄSTHETIK"), lambda r: True),
        (Wanted(source="posterior"), lambda r: r.trace.source == "posterior"),
        (Wanted(verdict="right"), lambda r: r.trace.correct == "right"),
        (Wanted(verdict="none"), lambda r: r.trace.correct is None),
        (Wanted(finish="eos"), lambda r: r.trace.finish == "eos"),
        (Wanted(low=-0.5), lambda r: reward(r) >= -0.5),
        (Wanted(high=0.0), lambda r: reward(r) <= 0.0),
        (Wanted(low=0.0, high=0.0), lambda r: reward(r) == 0.0),
        (Wanted(first=3), lambda r: r.step >= 3),
        (Wanted(last=0), lambda r: False),
        (Wanted(first=3, last=5, source="prior", text="so", low=-1),
         lambda r: 3 <= r.step <= 5 and r.trace.source == "prior" and "so" in r.trace.text and reward(r) >= -1),
    ],
)  # fmt: skip
def test_filters_find_what_a_loop_finds(index: TraceIndex, rows: list[Row], wanted: Wanted, fits: object) -> None:
    expected = [row for row in rows if fits(row)]  # ty: ignore[not-callable]
    by_step = sorted(expected, key=lambda r: (-r.step, r.place, r.rank))
    assert index.find(wanted, index.newest()) == [row.number for row in by_step]
    assert index.count(wanted) == len(expected)
    assert index.count(wanted, after=150) == sum(row.number > 150 for row in expected)
    assert index.find(wanted, upto=150) == [row.number for row in by_step if row.number <= 150]


def test_one_problem_is_its_question_whatever_its_id(index: TraceIndex, rows: list[Row]) -> None:
    chosen = rows[0].problem
    found = index.traces(index.find(Wanted(only=problem_key(replace(chosen, id="other"))), index.newest()))
    assert len(found) == sum(row.problem.question == chosen.question for row in rows)
    assert problem_key(chosen) != problem_key(replace(chosen, turns=(Turn("system", "Be brief."),)))


@pytest.mark.parametrize(("order", "sign"), [("highest", -1), ("lowest", 1)])
def test_traces_by_reward_with_those_without_one_last(
    index: TraceIndex, rows: list[Row], order: str, sign: int
) -> None:
    found = index.traces(index.find(Wanted(order=order), index.newest()))
    rewards = [each.trace.reward for each in found]
    graded = [each for each in rewards if each is not None]
    assert rewards == sorted(graded, key=lambda value: sign * value) + [None] * (len(rows) - len(graded))


def test_what_is_not_finite_is_no_reward(index: TraceIndex) -> None:
    index.add(0, step(1, group("p", trace("a", float("nan")), trace("b", float("inf"), advantage=None))), 0, 1)
    assert [each.trace.reward for each in index.traces([1, 2])] == [None, None]
    assert index.find(Wanted(low=-1e9), 9) == []


def test_text_that_no_encoding_has_is_found_as_it_is_shown(index: TraceIndex) -> None:
    index.add(0, step(1, group("p\ud800", trace("a\x00b\ud800\u202e"))), 0, 1)
    assert index.find(Wanted(text="a<U+0000>b<u+d800>"), 9) == [1]
    assert index.find(Wanted(problem="<U+D800>"), 9) == [1]


def test_forgetting_from_a_step_on(index: TraceIndex, rows: list[Row]) -> None:
    assert index.forget(0, 8)
    assert index.count(Wanted()) == sum(row.step < 8 for row in rows)
    assert not index.forget(0, 8)
    assert not index.forget(1)
    index.add(0, step(8, group("p", trace("again"))), 0, 1)
    assert index.newest() > rows[-1].number, "numbers are not used again"


def test_groups_of_the_same_question_are_pairs_by_visit(index: TraceIndex) -> None:
    for number, (a, b) in enumerate([("x", "y"), ("y", "x"), ("x", "x"), ("z", "x")], start=1):
        index.add(0, step(number, group(a, trace(f"a{number} common"))), 0, 1)
        index.add(1, step(10 * number, group(b, trace(f"b{number}"))), 0, 1)
    x, y, z = (problem_key(Problem("", f"What is {name}?", "")) for name in "xyz")
    groups = {(place.run, place.step): number for number, place in index.places(range(1, 9)).items()}
    whole = [
        Pair(x, (groups[0, 3], groups[1, 30])),
        Pair(x, (groups[0, 1], groups[1, 20])),
        Pair(y, (groups[0, 2], groups[1, 10])),
    ]
    alone = [Pair(x, (None, groups[1, 40])), Pair(z, (groups[0, 4], None))]
    assert index.pairs(Wanted(), 99, 0, 9) == (5, whole + alone)
    assert index.pairs(Wanted(), 99, 1, 2) == (5, whole[1:])
    assert index.pairs(Wanted(text="a3"), 99, 0, 9) == (1, whole[:1]), "the other side comes with it"
    assert index.pairs(Wanted(last=2), 99, 0, 9) == (2, [whole[1], whole[2]])
    assert index.pairs(Wanted(text="nothing"), 99, 0, 9) == (0, [])


def test_of_a_group_the_wanted_traces_come_best_first(index: TraceIndex) -> None:
    views = [trace(f"t{each}", advantage=float(each), source="prior" if each % 2 else "posterior") for each in range(6)]
    index.add(0, step(1, group("p", *views)), 0, 1)
    found = index.traces_of(1, Wanted(source="prior"), 2)
    assert [(each.rank, each.trace.text) for each in found] == [(0, "t5"), (2, "t3")]
