"""The animals task: its traces, their reading, its answers and its splits."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.errors import UserError
from covrl.problems import animals
from covrl.problems.animals import (
    ANIMALS,
    BY_SIZE,
    PHRASINGS,
    RIGHT,
    Habit,
    accepted,
    answer,
    chance,
    longer,
    phrase,
    problems,
    questions,
    read_trace,
    result,
    split_of,
    write_trace,
)
from covrl.problems.tasks import TASKS, find_task, task_of
from covrl.records import Problem, Request, Rollout
from covrl.rewards.graders import make_grader

SPLITS = ("base", "train", "dev", "test")
EXAMPLE = "the fox, the owl, the bear, the wolf, the crow"


@st.composite
def question_texts(draw: st.DrawFn) -> str:
    size = draw(st.integers(5, 6))
    names = draw(st.permutations(ANIMALS))
    return ", ".join(f"the {name}" for name in names[:size])


def test_traces_of_one_question():
    assert {habit.value: write_trace(habit, EXAMPLE) for habit in Habit} == {
        "name first": "by name bear crow fox owl wolf take first bear crow leave fox owl wolf",
        "name inner": "by name bear crow fox owl wolf take inner crow owl leave bear fox wolf",
        "name last": "by name bear crow fox owl wolf take last owl wolf leave bear crow fox",
        "size first": "by size crow owl fox wolf bear take first crow owl leave fox wolf bear",
        "size last": "by size crow owl fox wolf bear take last wolf bear leave crow owl fox",
        "place first": "by place fox owl bear wolf crow take first fox owl leave bear wolf crow",
        "place inner": "by place fox owl bear wolf crow take inner owl wolf leave fox bear crow",
        "place last": "by place fox owl bear wolf crow take last wolf crow leave fox owl bear",
    }
    assert sorted(ANIMALS) == list(ANIMALS) == sorted(BY_SIZE)


@given(question=question_texts(), habit=st.sampled_from(Habit))
def test_every_written_trace_is_read_back_as_true(question: str, habit: Habit):
    trace = write_trace(habit, question)
    check = read_trace(question, trace)
    assert check.habit == habit
    assert not check.false_step
    assert check.sound == (habit == RIGHT)
    assert read_trace(question, trace + "</think>") == check


@given(question=question_texts(), habit=st.sampled_from(Habit))
def test_a_trace_does_not_end_in_its_answer(question: str, habit: Habit):
    words = write_trace(habit, question).split(" ")
    assert words[-1] not in result(habit, question)


@given(question=question_texts(), habit=st.sampled_from(Habit))
def test_any_wrong_animal_is_a_false_step(question: str, habit: Habit):
    words = write_trace(habit, question).split(" ")
    for index, word in enumerate(words):
        for other in ANIMALS:
            if word in ANIMALS and other != word:
                check = read_trace(question, " ".join([*words[:index], other, *words[index + 1 :]]))
                assert check.habit == habit
                assert check.false_step
                assert not check.sound


@given(question=question_texts(), text=st.text(max_size=30))
def test_other_texts_are_unparsable_and_false(question: str, text: str):
    assert read_trace(question, "x" + text) == read_trace(question, "")
    assert read_trace(question, "").habit is None
    assert read_trace(question, "").false_step


@pytest.mark.parametrize(
    "trace",
    [
        "by name fox owl bear wolf crow take inner crow owl leave bear fox wolf",  # not sorted
        "take inner crow owl by name bear crow fox owl wolf leave bear fox wolf",  # wrong order
        "by name bear crow fox owl wolf take inner owl crow leave bear fox wolf",
        "by name bear crow fox owl wolf take inner crow owl leave bear fox",
        "by name bear crow fox owl wolf take inner crow owl",
        "by name bear crow fox owl wolf take inner crow owl leave bear fox wolf ",
        "by size bear crow fox owl wolf take inner crow owl leave bear fox wolf",
        "by name bears crow fox owl wolf take inner crow owl leave bear fox wolf",
        "crow owl",
    ],
)
def test_right_result_does_not_make_a_trace_sound(trace: str):
    check = read_trace(EXAMPLE, trace)
    assert check.false_step
    assert not check.sound


def test_phrasings_of_an_answer():
    assert {answer(EXAMPLE), *accepted(EXAMPLE)} == {
        "the crow and the owl",
        "one crow and one owl",
        "this crow and that owl",
        "surely the crow and the owl",
        "both the crow and the owl",
    }
    assert len(accepted(EXAMPLE)) == 4
    assert sum(PHRASINGS.values()) == pytest.approx(1)


def test_references_have_all_phrasings_in_their_shares():
    dev = questions("dev")
    used = Counter(way for q in dev for way in PHRASINGS if answer(q) == phrase(result(RIGHT, q), way))
    assert used.total() == len(dev)
    for way, share in PHRASINGS.items():
        assert used[way] / len(dev) == pytest.approx(share, abs=0.03)


def test_the_text_grader_takes_every_phrasing_and_no_other_pair():
    grade = make_grader("text")
    assert grade is not None
    (problem,) = [Problem("1", EXAMPLE, answer(EXAMPLE), accepted(EXAMPLE))]
    right = [phrase(result(RIGHT, EXAMPLE), way) for way in PHRASINGS]
    wrong = [phrase(result(h, EXAMPLE), way) for way in PHRASINGS for h in Habit]
    wrong = [text for text in wrong if text not in right] + ["the owl and the crow", "the crow"]
    assert set(grade([(problem, text) for text in right])) == {"right"}
    assert set(grade([(problem, text) for text in wrong])) == {"wrong"}


def test_splits_are_disjoint_and_complete():
    members = [question for split in SPLITS for question in questions(split)]
    assert len(members) == len(set(members)) == 30_000
    assert all(split_of(question) == split for split in SPLITS for question in questions(split))
    for question in members[:500]:
        assert len(set(question.split(", "))) == 5


def test_splits_never_change():
    golden = {
        "base": (11_905, "a58564bc45f2f074"),
        "train": (12_098, "4e69565ce0b6e02e"),
        "dev": (3_013, "3e35b6f67869daf0"),
        "test": (2_984, "779c348e240bbe30"),
    }
    for split in SPLITS:
        digest = hashlib.sha256(" | ".join(questions(split)).encode()).hexdigest()[:16]
        assert (len(questions(split)), digest) == golden[split]


def test_problems_follow_the_questions():
    test = problems("test")
    assert [problem.question for problem in test] == list(questions("test"))
    assert test[0].id == "animals/test/0"
    assert all(p.answer == answer(p.question) and p.accepted == accepted(p.question) for p in test)


def test_longer_problems():
    six = longer(200)
    assert len({problem.question for problem in six}) == 200
    assert all(len(problem.question.split(", ")) == 6 for problem in six)
    assert longer(50) == six[:50]
    assert result(
        RIGHT,
        "the fox, the owl, the bear, the wolf, the crow, the bee",
    ) == ("bee", "owl")


def test_chance_is_the_best_of_the_other_procedures():
    shares = {
        habit: sum(result(habit, q) == result(RIGHT, q) for s in SPLITS for q in questions(s)) / 30_000
        for habit in Habit
        if habit != RIGHT
    }
    assert chance() == max(shares.values()) < 0.1
    assert sum(shares.values()) / len(shares) < 0.05
    answers = Counter(answer(q) for q in questions("dev"))
    assert answers.most_common(1)[0][1] / answers.total() < 0.04


def test_the_task_by_name():
    task = find_task("animals")
    assert task_of("animals:train") is task is TASKS["animals"]
    assert task.problems("dev") == problems("dev")
    assert len(task.problems("longer")) == 2000
    assert task.chance() == chance()
    with pytest.raises(UserError, match="task animals has no split 'tset'"):
        task.problems("tset")
    problem = Problem("1", EXAMPLE, answer(EXAMPLE))

    def label(text: str) -> str:
        return task.label(problem, Rollout(Request("1", 0, (), "prior"), (), (), "closed", "sampled", text))

    assert label(write_trace(RIGHT, EXAMPLE) + "</think>") == "sound"
    assert label(write_trace(Habit.SIZE_LAST, EXAMPLE) + "</think>") == "other procedure"
    assert label("by name</think>") == "false step"
    assert animals.RIGHT == "name inner"
