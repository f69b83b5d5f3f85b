"""The laptop task: its traces, their reading and its splits."""

from __future__ import annotations

import hashlib
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.problems.digits import (
    RIGHT,
    Habit,
    answer,
    chance,
    longer,
    problems,
    questions,
    read_trace,
    result,
    split_of,
    write_trace,
)

SPLITS = ("base", "train", "dev", "test")

QUESTION = st.integers(5, 6).flatmap(
    lambda size: st.permutations("0123456789").map(lambda digits: "".join(digits[:size]))
)


def test_traces_of_one_question():
    assert {habit.value: write_trace(habit, "72941") for habit in Habit} == {
        "low": "sort 12479 low 124",
        "middle": "sort 12479 middle 247",
        "high": "sort 12479 high 479",
        "first": "copy 72941 first 729",
        "last": "copy 72941 last 941",
        "maximum": "largest 77999 ends 999",
        "minimum": "smallest 72221 ends 221",
        "sum": "sum 79823 ends 823",
    }


@given(question=QUESTION, habit=st.sampled_from(Habit))
def test_every_written_trace_is_read_back_as_true(question: str, habit: Habit):
    trace = write_trace(habit, question)
    check = read_trace(question, trace)
    assert check.habit == habit
    assert not check.false_step
    assert check.sound == (habit == RIGHT)
    assert trace[-3:] == result(habit, question)
    assert read_trace(question, trace + "</think>") == check


@given(question=QUESTION, habit=st.sampled_from(Habit))
def test_any_wrong_digit_is_a_false_step(question: str, habit: Habit):
    trace = write_trace(habit, question)
    for index, char in enumerate(trace):
        for digit in "0123456789":
            if char.isdigit() and digit != char:
                check = read_trace(question, trace[:index] + digit + trace[index + 1 :])
                assert check.habit == habit
                assert check.false_step
                assert not check.sound


@given(question=QUESTION, text=st.text(max_size=30))
def test_other_texts_are_unparsable_and_false(question: str, text: str):
    assert read_trace(question, "x" + text) == read_trace(question, "")
    assert read_trace(question, "").habit is None
    assert read_trace(question, "").false_step


@pytest.mark.parametrize(
    "trace",
    [
        "sort 72941 middle 247",  # not sorted
        "middle 247 sort 12479",  # wrong order
        "sort 12479 middle 2477",
        "sort 12479 middle 247 ",
        "sort 12479 middle",
        "sort 12479 middle 247 middle 247",
        "copy 72941 first 247",
        "247",
    ],
)
def test_right_result_does_not_make_a_trace_sound(trace: str):
    check = read_trace("72941", trace)
    assert check.false_step
    assert not check.sound


def test_answer_of_an_even_count_is_the_lower_middle():
    assert answer("905124") == "124"


def test_splits_are_disjoint_and_complete():
    members = [question for split in SPLITS for question in questions(split)]
    assert len(members) == len(set(members)) == 30_240
    assert set(members) == {"".join(digits) for digits in permutations("0123456789", 5)}
    assert all(split_of(question) == split for split in SPLITS for question in questions(split))


def test_splits_never_change():
    golden = {
        "base": (12_177, "77766f20bae6c124"),
        "train": (11_989, "44dd15a2e73bac59"),
        "dev": (3_044, "0cdda57b8a62480c"),
        "test": (3_030, "8c4d04a4843e7d19"),
    }
    for split in SPLITS:
        digest = hashlib.sha256(" ".join(questions(split)).encode()).hexdigest()[:16]
        assert (len(questions(split)), digest) == golden[split]


def test_problems_follow_the_questions():
    test = problems("test")
    assert [problem.question for problem in test] == list(questions("test"))
    assert test[0].id == f"digits/test/{test[0].question}"
    assert all(problem.answer == answer(problem.question) for problem in test)


def test_longer_problems():
    six = longer(200)
    assert [problem.question for problem in six[:3]] == ["851723", "487613", "463087"]
    assert len({problem.question for problem in six}) == 200
    assert all(len(set(problem.question)) == 6 for problem in six)
    assert longer(50) == six[:50]


def test_chance_is_the_most_frequent_answer_and_each_is_as_rare():
    assert chance() == pytest.approx(1 / 21, abs=1e-12)


def test_other_procedures_hardly_ever_reach_the_right_answer():
    """So that accuracy means the right procedure, and a shuffled answer says nothing of one's own."""
    dev = questions("dev")
    by_accident = sum(result(h, q) == answer(q) for h in Habit if h != RIGHT for q in dev) / (7 * len(dev))
    assert by_accident < 0.01
    answers = [answer(q) for q in dev]
    assert sum(a == b for a, b in zip(answers, answers[1:] + answers[:1], strict=True)) / len(dev) < 0.05
