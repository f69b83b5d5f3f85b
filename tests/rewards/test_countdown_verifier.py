"""The verifier ``countdown``: numbers, value, and what is no expression."""

from __future__ import annotations

import operator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.records import Problem
from covrl.rewards.countdown import MAX_BRACKETS, read_expression
from covrl.rewards.registry import make_verifier

PROBLEM = Problem("1", "3, 7, 8 make 29", "(7*3)+8")


@pytest.mark.parametrize(
    ("answer", "verdict", "why"),
    [
        ("(7*3)+8", "right", "equal in value and numbers"),
        ("8 + 3 * 7", "right", "equal in value and numbers"),
        ("8 + 3 × 7 = 29", "right", "equal in value and numbers"),
        ("[7 \\times 3] + 8", "right", "equal in value and numbers"),
        ("7*3+8 = 30", "wrong", "not an expression: the expression is 29, not 30"),
        ("29", "wrong", "other numbers: 29, not 3, 7, 8"),
        ("7*3+8+0", "wrong", "other numbers: 0, 3, 7, 8, not 3, 7, 8"),
        ("7*3+7+8-7", "wrong", "other numbers: 3, 7, 7, 7, 8, not 3, 7, 8"),
        ("7+3+8", "wrong", "another value: 18, not 29"),
        ("7/3+8", "wrong", "another value: 31/3, not 29"),
        ("8/(7-7)", "wrong", "not an expression: division by 0"),
        ("7*(3+8", "wrong", "not an expression: a bracket is not closed"),
        ("7*3+", "wrong", "not an expression: ends too early"),
        ("(7)(3)+8", "wrong", "not an expression: '(' does not belong there"),
        ("-3+7*8", "wrong", "not an expression: '-' where a number or a bracket has to stand"),
        ("__import__('os')", "wrong", "not an expression: '_' is no number, operation or bracket"),
        ("7**3+8", "wrong", "not an expression: '*' where a number or a bracket has to stand"),
        ("(" * 3000 + "7", "wrong", f"not an expression: more than 400 characters or {MAX_BRACKETS} brackets"),
        ("(" * 300 + "7", "wrong", f"not an expression: more than 400 characters or {MAX_BRACKETS} brackets"),
    ],
)
def test_verdicts(answer: str, verdict: str, why: str) -> None:
    found = make_verifier("countdown")(PROBLEM, f"<answer>{answer}</answer>")
    assert (found.verdict, found.why) == (verdict, why)


def test_no_answer_and_a_reference_that_is_no_expression_are_unknown() -> None:
    verify = make_verifier("countdown")
    assert verify(PROBLEM, "I give up").verdict == "unknown"
    found = verify(Problem("1", "?", "twenty-nine"), "<answer>29</answer>")
    assert found.verdict == "unknown"
    assert found.why.startswith("the reference is not an expression: ")


SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
Made = tuple[str, Fraction, tuple[int, ...]]


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> Made:
    """Text, value by Python's operators, and numbers."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 200))
        return str(number), Fraction(number), (number,)
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    sign = draw(st.sampled_from([s for s in SIGNS if s != "/" or right[1]]))
    return f"({left[0]} {sign} {right[0]})", SIGNS[sign](left[1], right[1]), (*left[2], *right[2])


@given(expressions())
def test_values_and_numbers_are_exact(made: Made) -> None:
    text, value, numbers = made
    assert read_expression(text) == (value, tuple(sorted(numbers)))


@given(st.text(alphabet="0123456789+-*/()= ", max_size=30))
def test_precedence_is_that_of_arithmetic(text: str) -> None:
    """Where Python can read a text that uses our signs, with fractions for numbers, it has the same value."""
    try:
        found = read_expression(text)
    except ValueError:
        return
    left = text.partition("=")[0]
    spelled = "".join(f"Fraction({part})" if part.isdigit() else part for part in _parts(left))
    assert eval(spelled, {"Fraction": Fraction}) == found.value


def _parts(text: str) -> list[str]:
    parts: list[str] = []
    for character in text.replace(" ", " "):
        if character.isdigit() and parts and parts[-1].isdigit():
            parts[-1] += character
        elif character.strip() or parts:
            parts.append(character)
    return [str(int(part)) if part.isdigit() else part for part in parts]
