"""Samples that answer the same have one answer, whatever their spelling; and what that may cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from covrl.evaluation.answer_clusters import MOST_COMPARED, Said, classes
from covrl.records import Problem, Verdict
from covrl.rewards.graders import make_grader
from covrl.rewards.normalise import spelling

PROBLEM = Problem("p", "q", "7")


def said(*answers: str | None, right: Sequence[str] = ()) -> list[Said]:
    return [Said(spelling(a) if a is not None else None, a or "", "right" if a in right else "wrong") for a in answers]


def names(samples: Sequence[Said], verifier: str = "math", problem: Problem = PROBLEM) -> list[str | None]:
    return classes([(problem, samples)], verifier, make_grader(verifier))[0]


def test_equal_formulas_are_one_answer() -> None:
    found = names(
        said(r"2\sqrt{2}", r"\sqrt{8}", None, r"\frac{4}{\sqrt{2}}", r"\sqrt{7}", "3", "3.0", "", r"\sqrt{8}")
    )
    assert found[0] == found[1] == found[3] == found[8]
    assert found[5] == found[6] == "3"
    assert len({found[0], found[4], found[5]}) == 3
    assert found[2] is found[7] is None


def test_the_most_frequent_spelling_gives_the_name() -> None:
    assert set(names(said(r"x+1", r"1+x", r"1+x"))) == {spelling("1+x")}


def test_right_answers_are_one_where_the_reference_alone_is_accepted() -> None:
    samples = said("7", r"\sqrt{49}", "8", right=("7", r"\sqrt{49}"))
    assert names(samples) == ["7", "7", "8"]
    either = Problem("p", "name a prime", "7", accepted=("5",))
    assert names(said("7", "5", right=("7", "5")), problem=either) == ["7", "5"]


def test_numbers_within_the_tolerance_are_one_answer() -> None:
    assert names(said("10.0", "10.1", "12"), "numeric,relative=0.05") == ["10", "10", "12"]
    assert names(said("10.0", "10.1", "12"), "numeric") == ["10", "101/10", "12"]


@pytest.mark.parametrize("verifier", ["text", "choice", "exact"])
def test_verifiers_that_know_the_reference_alone_leave_spellings(verifier: str) -> None:
    assert names(said(r"\sqrt{8}", r"2\sqrt{2}"), verifier) == [spelling(r"\sqrt{8}"), spelling(r"2\sqrt{2}")]


def test_no_more_than_some_pairs_are_asked_and_all_at_once() -> None:
    calls: list[int] = []

    def note(rows: Sequence[tuple[Problem, str]]) -> Sequence[Verdict]:
        calls.append(len(rows))
        return ["wrong"] * len(rows)

    many = said(*(f"x+{i}" for i in range(40)), *("9" * i for i in range(1, 30)), "y" * 1000)
    classes([(PROBLEM, many[:40] + many[-1:]), (PROBLEM, many[:3])], "math", note)
    assert calls == [MOST_COMPARED * (MOST_COMPARED - 1) // 2 + 3]
    classes([(PROBLEM, many[40:69])], "math", note)  # plain numbers have one spelling each
    assert len(calls) == 1
