"""Forms of answers, duplicates and overlaps."""

from __future__ import annotations

import pytest

from covrl.problems.inspection import answer_form, answer_forms, contradictions, equal_pairs, near_pairs
from covrl.records import Problem, Turn

BRIEF = Turn("system", "Be brief.")
LONG = "A farmer has {} sheep in the first field and twelve more in the second field. How many sheep are there now?"


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("42", "integer"), ("-1,200", "integer"), ("$7$", "integer"), ("2.50", "decimal"), ("1/2", "fraction"),
        (r"\frac{3}{4}", "fraction"), ("B", "choice"), ("(c)", "choice"), ("Yes", "yes or no"), ("x^2 + 1", "formula"),
        (r"\sqrt{2}", "formula"), ("Paris", "word"), ("the crow and the owl", "phrase"), ("word " * 9, "text"),
    ],
)  # fmt: skip
def test_an_answer_has_a_form(answer: str, form: str) -> None:
    assert answer_form(answer) == form


def test_forms_are_counted_the_most_frequent_first() -> None:
    found = answer_forms([Problem(str(i), "q", answer) for i, answer in enumerate(["B", "1", "2"])])
    assert list(found.items()) == [("integer", 2), ("choice", 1)]


def test_equal_questions_are_found_and_turns_count() -> None:
    said = (Turn("user", "Hello."),)
    problems = [
        Problem("a", "1 + 1?", "2"), Problem("b", " 1 +  1? ", "2.0"), Problem("c", "1 + 1?", "3"),
        Problem("d", "1 + 1?", "2", turns=said), Problem("e", "1 + 1?", "2", turns=(BRIEF, *said)),
    ]  # fmt: skip
    assert [(pair.one, pair.other) for pair in equal_pairs(problems)] == [("a", "b"), ("a", "c"), ("d", "e")]
    assert [(pair.one, pair.other) for pair in contradictions(problems)] == [("a", "c")]
    assert [(pair.one, pair.other) for pair in equal_pairs(problems[:2], problems[2:])] == [("c", "a"), ("c", "b")]


def test_near_questions_are_found_with_their_likeness() -> None:
    problems = [Problem(str(n), LONG.format(n), "x") for n in (3, 7)] + [Problem("z", "Where is Paris?", "x")]
    (pair,) = near_pairs(problems)
    words = len(LONG.split()) - 2  # runs of three words, of which three have the number
    assert pair == ("3", "7", pytest.approx((words - 3) / (words + 3)))
    assert near_pairs(problems[:1], problems[1:]) == [("7", "3", pair.likeness)]
    assert near_pairs(problems[2:], problems[:2]) == []
    assert near_pairs([Problem("q", LONG.format(3).upper(), "x")], problems[:1]) == []  # equal, not near


def test_one_word_of_many_does_not_make_questions_alike() -> None:
    assert near_pairs([Problem(str(i), f"What is {i} plus {i + 1}?", "x") for i in range(200)]) == []
