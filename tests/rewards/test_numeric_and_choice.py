from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.records import Problem, Verdict
from covrl.rewards.choice import choice, options
from covrl.rewards.numeric import Numeric

QUESTION = "What is 1 + 3?\n(A) 2\n(B) 3\n(C) 4\n(D) none of these\n\nThink first."


def said(verifier: Numeric, reference: str, answer: str) -> tuple[Verdict, str]:
    judged = verifier(Problem("p", "?", reference), f"<answer>{answer}</answer>")
    return judged.verdict, judged.why


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ("9.81", "9.81000001", "right"),
        ("9.81", "9.8", "wrong"),
        ("1/3", "0.3333333", "right"),
        (r"\frac{1}{3}", "0.333", "wrong"),
        (r"\frac13", r"\frac{2}{6}", "right"),
        ("-1/2", r"-\frac{2}{4}", "right"),
        ("320000", r"3.2 \times 10^5", "right"),
        ("0.00032", r"3.2 \cdot 10^{-4}", "right"),
        ("3.2e5", "320,000", "right"),
        ("1000000", "1000001", "wrong"),  # within 1e-6, but whole numbers are counted
        ("1000000.0001", "1000000.5", "right"),
        ("$18.90", "18.9 dollars", "right"),
        ("25%", "0.25", "right"),
        ("0", "0.0000001", "wrong"),
        ("25", "25%", "unknown"),
        ("25", "25 per cent", "unknown"),
        ("25%", "25 per cent", "right"),
        ("36", "36 cents", "unknown"),
        ("36", "$36", "right"),
        ("52_8", "42_{10}", "unknown"),
        ("5 cents", "5 dollars", "unknown"),
        ("5", "five", "unknown"),
        ("five", "5", "unknown"),
        ("5", "1/0", "unknown"),
        ("5", r"\sqrt{25}", "unknown"),
        ("5", "9" * 1_000_000, "unknown"),
        ("5", "1e99", "wrong"),
    ],
)
def test_numbers_within_the_default_tolerance(reference: str, answer: str, verdict: Verdict) -> None:
    assert said(Numeric(), reference, answer)[0] == verdict


def test_the_question_over_again_and_its_units() -> None:
    problem = Problem("p", r"It took 7 hours. What is $\frac{13}{4}$ as a decimal?", "3.25")
    assert Numeric()(problem, r"\boxed{\frac{13}{4}}").why.startswith("restates the question")
    assert Numeric()(problem, r"\boxed{\frac{26}{8}}").verdict == "right"
    assert Numeric()(problem, r"\boxed{3.25 hours}").verdict == "right"
    assert Numeric()(problem, r"\boxed{3.25 days}").verdict == "unknown"


def test_tolerances_are_bounds_that_are_met_exactly() -> None:
    relative = Numeric(relative=0.01, loose=True)
    assert [said(relative, "100", a)[0] for a in ("101", "99", "101.0001", "98.9999")] == ["right"] * 2 + ["wrong"] * 2
    absolute = Numeric(relative=0.0, absolute=0.5, loose=True)
    assert [said(absolute, "-3", a)[0] for a in ("-3.5", "-2.5", "-3.51")] == ["right", "right", "wrong"]


@given(st.fractions(max_denominator=50), st.fractions(min_value=0, max_value=2))
def test_the_verdict_is_the_inequality(value: Fraction, share: Fraction) -> None:
    tolerance = Fraction("0.001")
    other = value + share * tolerance * abs(value)
    judged = said(
        Numeric(relative=0.001, loose=True),
        f"{value.numerator}/{value.denominator}",
        f"{other.numerator}/{other.denominator}",
    )
    assert judged[0] == ("right" if abs(other - value) <= tolerance * abs(value) else "wrong")


def test_options_are_read_from_the_question() -> None:
    assert options(QUESTION) == {"A": "2", "B": "3", "C": "4", "D": "none of these"}
    assert options("Pick one. A. red\nB. blue") == {}  # A stands in the middle of a line
    assert options("Pick one.\nA. red\nB. blue") == {"A": "red", "B": "blue"}
    assert options("A. Smith asks.\n(A) red\n(B) blue") == {"A": "red", "B": "blue"}  # the list comes last
    assert options(r"$\text{(A)}\ 1 \qquad \text{(C)}\ 3$") == {}  # no B
    assert options("(A) x (B) y (A) z") == {}


CHOICES = [
    ("C", "C", "right"),
    ("(C)", "c", "right"),
    (r"\text{(C)}", "C.", "right"),
    ("C", r"\text{(C)}", "right"),
    ("C", "option C", "right"),
    ("C", "4", "right"),
    ("C", "4.0", "right"),
    ("4", "C", "right"),
    ("C", "(C) 4", "right"),
    ("C", "C: 4", "right"),
    ("D", "None of these.", "right"),
    ("C", "B", "wrong"),
    ("C", "3", "wrong"),
    ("4", "B", "wrong"),
    ("C", "(B) 3", "wrong"),
    ("C", "F", "wrong"),
    ("C", "(C) 3", "unknown"),
    ("C", "B or C", "unknown"),
    ("C", "A, B, C, D", "unknown"),
    ("C", "7", "unknown"),
    ("C", "not C", "unknown"),
    ("seven", "B", "unknown"),
    ("C", "C" * 1_000_000, "unknown"),
    ("C", r"\text{" * 100_000, "unknown"),
]


@pytest.mark.parametrize(("reference", "answer", "verdict"), CHOICES)
def test_multiple_choice(reference: str, answer: str, verdict: Verdict) -> None:
    judged = choice(Problem("p", QUESTION, reference), f"<answer>{answer}</answer>")
    assert (judged.verdict, judged.extracted) == (verdict, answer)


def test_choice_without_listed_options() -> None:
    problem = Problem("p", "Which?", "B", ("a triangle",))
    for answer, verdict in (
        ("B", "right"),
        ("A triangle", "right"),
        ("C", "wrong"),
        ("a square", "unknown"),
        ("(B) a triangle", "right"),
        ("(B) a square", "unknown"),
    ):
        assert choice(problem, f"#### {answer}").verdict == verdict
    assert choice(problem, "B, I think").verdict == "unknown"


def test_an_option_that_is_a_letter_itself_is_no_guess() -> None:
    question = "Which vitamin?\nA) C\nB) D\nC) A"
    assert choice(Problem("p", question, "A"), "#### A").verdict == "unknown"
    assert choice(Problem("p", question, "A"), "#### (A) C").verdict == "right"
