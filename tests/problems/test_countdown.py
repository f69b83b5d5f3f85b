"""The CountDown task: its steps, its traces and their reading, its splits; answers by the verifier."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.problems import countdown
from covrl.problems.countdown import (
    MOST,
    TARGETS,
    Habit,
    Question,
    Step,
    endings,
    expression,
    longer,
    problems,
    questions,
    read_question,
    read_trace,
    search,
    solution,
    split_of,
    steps_from,
    write_trace,
)
from covrl.problems.embedded import SPLITS
from covrl.problems.tasks import TASKS, find_task
from covrl.records import Problem, Request, Rollout
from covrl.rewards.countdown import read_expression

EXAMPLE = Question((3, 7, 8), 29)

# A few hundred questions of every split, in fair samples.
SOME = [question for split in SPLITS for question in questions(split)[:60]]


def by_hand(numbers: tuple[int, ...]) -> set[int]:
    """Every number that can be made of three, by all orders, operations and both ways to set brackets."""

    def step(a: Fraction | None, sign: str, b: Fraction | None) -> Fraction | None:
        if a is None or b is None:
            return None
        made = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else Fraction(0)}[sign]
        return made if made.denominator == 1 and 1 <= made <= MOST else None

    found = set()
    for (a, b, c), (p, q) in product(permutations(map(Fraction, numbers)), product("+-*/", repeat=2)):
        found |= {step(step(a, p, b), q, c), step(a, p, step(b, q, c))}
    return {int(value) for value in found if value is not None}


@given(st.tuples(*[st.integers(1, 16)] * 3))
def test_the_steps_reach_what_all_orders_and_brackets_reach(numbers: tuple[int, ...]) -> None:
    assert set(endings(tuple(sorted(numbers)))) == by_hand(numbers)


def test_traces_of_one_question() -> None:
    assert write_trace(Habit.DIRECT, EXAMPLE) == "7*3=21;21+8=29"
    assert write_trace(Habit.SEARCH, EXAMPLE).endswith("7*3=21;21+8=29")
    assert search(EXAMPLE, most=1).text.endswith(" no")
    assert expression(solution(EXAMPLE)) == "(7*3)+8"


def test_a_search_of_more_branches_goes_on_from_one_of_fewer() -> None:
    for question in SOME:
        whole = search(question).text.split(";")
        for most in range(1, 5):
            part = search(question, most).text.split(";")
            assert part == whole[: len(part)]


def test_every_written_trace_is_sound_and_every_solution_is_right() -> None:
    for question in SOME:
        for habit in Habit:
            found = read_trace(str(question), write_trace(habit, question) + "</think>")
            assert (found.sound, found.false_step) == (True, False)
        assert read_trace(str(question), write_trace(Habit.DIRECT, question)).habit is Habit.DIRECT
        said = read_expression(expression(solution(question)))
        assert said == (Fraction(question.target), tuple(sorted(question.numbers)))


def test_a_search_that_gave_up_is_true_but_not_sound() -> None:
    missed = [q for q in SOME if search(q, most=1).text.endswith(" no")]
    assert len(missed) > 50
    for question in missed:
        found = read_trace(str(question), search(question, most=1).text)
        assert (found.sound, found.false_step) == (False, False)


@pytest.mark.parametrize(
    ("trace", "sound", "false_step", "habit"),
    [
        ("7*3=21;21+8=29", True, False, Habit.DIRECT),
        ("8+7=15;15+3=18 no;7*3=21;21+8=29", True, False, Habit.SEARCH),
        ("7*3=21", False, False, Habit.DIRECT),  # ends early
        ("7*3=21;21+8=29 no", False, True, None),  # it is the target
        ("7*3=22;22+8=30", False, True, None),  # untrue
        ("7*3=21;21+7=28", False, True, None),  # 7 is used up
        ("7*4=28;28+1=29", False, True, None),  # numbers that are not there
        ("so 29", False, True, None),
        ("", False, True, None),
    ],
)
def test_reading(trace: str, sound: bool, false_step: bool, habit: Habit | None) -> None:
    found = read_trace(str(EXAMPLE), trace)
    assert (found.sound, found.false_step, found.habit) == (sound, false_step, habit)


def test_a_step_back_to_numbers_that_two_states_have() -> None:
    # 9*3 goes back to the first state although the second one, after 9*1=9, has a 9 and a 3 as well.
    found = read_trace("3,1,9 make 28", "9*1=9;9+3=12 no;9*3=27;27+1=28")
    assert (found.sound, found.habit) == (True, Habit.SEARCH)


def test_steps_from_a_state_are_true_and_take_what_is_there() -> None:
    steps = steps_from((2, 6, 6))
    assert len(set(steps)) == len(steps)
    assert all(step.is_true() and step.after((2, 6, 6)) is not None for step in steps)
    assert Step(6, "-", 6, 0) not in steps
    assert Step(7, "+", 6, 13).after((2, 6, 6)) is None


def test_splits_hold_every_solvable_pair_once() -> None:
    every = [question for split in SPLITS for question in questions(split)]
    keys = {(tuple(sorted(question.numbers)), question.target) for question in every}
    assert len(keys) == len(every) == 7019
    assert {split: len(questions(split)) for split in SPLITS} == {"base": 2789, "train": 2784, "dev": 716, "test": 730}
    for question in SOME:
        turned = Question(question.numbers[::-1], question.target)
        assert split_of(turned) == split_of(question)
        assert question.target in TARGETS
        assert read_question(str(question)) == question


def test_problems_and_longer_ones() -> None:
    first = problems("test")[0]
    assert first.id == "countdown/test/0"
    four = longer(40)
    assert len({problem.question for problem in four}) == 40
    for problem in four:
        numbers, target = read_question(problem.question)
        assert len(numbers) == 4
        assert read_expression(problem.answer) == (Fraction(target), tuple(sorted(numbers)))
    assert longer(5) == four[:5]


def test_chance_is_that_of_steps_at_random() -> None:
    ways = endings((3, 7, 8))
    counted = countdown._counted()
    asked = next(q for q in counted if sorted(q.numbers) == [3, 7, 8] and q.target == 29)
    assert counted[asked] == ways[29] / ways.total()
    assert 0.05 < countdown.chance() < 0.09


def test_the_task_labels_traces() -> None:
    task = find_task("countdown")
    assert task is TASKS["countdown"]
    problem = Problem("1", str(EXAMPLE), "(7*3)+8")

    def label(text: str) -> str:
        return task.label(problem, Rollout(Request("1", 0, (), "prior"), (), (), "closed", "sampled", text))

    assert label("7*3=21;21+8=29</think>") == "sound"
    assert label("8+7=15;15+3=18 no</think>") == "other procedure"
    assert label("8+7=16</think>") == "false step"
