"""The verifier ``countdown``: an expression that uses each of the reference's numbers once and has its value.

Exact: values are fractions, nothing is evaluated as code, and numbers, operations and brackets are all that is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from covrl.records import Problem
from covrl.rewards.extract import DEFAULT_ORDER, extract_answer
from covrl.rewards.judgement import Judgement, judgement, nothing
from covrl.rewards.workers import Reply

MAX_CHARS = 400
"""Longer expressions are wrong unread."""

MAX_BRACKETS = 50
"""Expressions with more brackets are wrong unread: each is a level of the reader's recursion at most."""

_TOKEN = re.compile(r"\s*(?:(\d{1,9})|([-+*/()=]))")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})


class Read(NamedTuple):
    """What an expression says: its exact value, and the numbers that it uses, sorted.

    Example:
        >>> read_expression("(7 * 3) + 8")
        Read(value=Fraction(29, 1), numbers=(3, 7, 8))
    """

    value: Fraction
    numbers: tuple[int, ...]


def read_expression(text: str) -> Read:
    """Read an expression of whole numbers, ``+ - * /`` and brackets; ``= NUMBER`` may follow, if it is the value.

    Raises:
        ValueError: the text is no such expression, divides by 0, or claims another value.
    """
    if len(text) > MAX_CHARS or text.count("(") + text.count("[") > MAX_BRACKETS:
        raise ValueError(f"more than {MAX_CHARS} characters or {MAX_BRACKETS} brackets")
    tokens = list(_tokens(text.translate(_SIGNS).replace("\\times", "*").replace("\\div", "/")))
    numbers: list[int] = []
    value, at = _sum(tokens, 0, numbers)
    used = tuple(sorted(numbers))
    if tokens[at : at + 1] == ["="]:
        claimed, at = _sum(tokens, at + 1, [])
        if claimed != value:
            raise ValueError(f"the expression is {value}, not {claimed}")
    if at != len(tokens):
        raise ValueError(f"{tokens[at]!r} does not belong there")
    return Read(value, used)


def _tokens(text: str) -> Iterator[str]:
    at, text = 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"{text[at]!r} is no number, operation or bracket")
        yield found[1] or found[2]
        at = found.end()


def _sum(tokens: Sequence[str], at: int, numbers: list[int]) -> tuple[Fraction, int]:
    """The value of terms joined by ``+`` and ``-`` from the token ``at`` on, and where they end."""
    value, at = _product(tokens, at, numbers)
    while at < len(tokens) and tokens[at] in "+-":
        term, after = _product(tokens, at + 1, numbers)
        value, at = (value + term if tokens[at] == "+" else value - term), after
    return value, at


def _product(tokens: Sequence[str], at: int, numbers: list[int]) -> tuple[Fraction, int]:
    value, at = _atom(tokens, at, numbers)
    while at < len(tokens) and tokens[at] in "*/":
        factor, after = _atom(tokens, at + 1, numbers)
        if tokens[at] == "/" and factor == 0:
            raise ValueError("division by 0")
        value, at = (value * factor if tokens[at] == "*" else value / factor), after
    return value, at


def _atom(tokens: Sequence[str], at: int, numbers: list[int]) -> tuple[Fraction, int]:
    if at >= len(tokens):
        raise ValueError("ends too early")
    if tokens[at].isdigit():
        numbers.append(int(tokens[at]))
        return Fraction(numbers[-1]), at + 1
    if tokens[at] != "(":
        raise ValueError(f"{tokens[at]!r} where a number or a bracket has to stand")
    value, at = _sum(tokens, at + 1, numbers)
    if at >= len(tokens) or tokens[at] != ")":
        raise ValueError("a bracket is not closed")
    return value, at + 1


def countdown(problem: Problem, response: str, order: Sequence[str] = DEFAULT_ORDER) -> Judgement:
    """Right if the answer uses exactly the numbers of the reference, each as often, and has its value.

    Example:
        >>> countdown(Problem("1", "3, 7, 8 make 29", "(7*3)+8"), "<answer>8 + 3 * 7 = 29</answer>").verdict
        'right'
    """
    found = extract_answer(response, order)
    if found is None:
        return nothing(order)
    return judgement(found, _compared(problem.answer, found.text))


def _compared(reference: str, answer: str) -> Reply:
    try:
        wanted = read_expression(reference)
    except ValueError as error:
        return Reply("unknown", f"the reference is not an expression: {error}")
    try:
        given = read_expression(answer)
    except ValueError as error:
        return Reply("wrong", f"not an expression: {error}")
    if given.numbers != wanted.numbers:
        return Reply("wrong", f"other numbers: {_listed(given.numbers)}, not {_listed(wanted.numbers)}")
    if given.value != wanted.value:
        return Reply("wrong", f"another value: {given.value}, not {wanted.value}")
    return Reply("right", "equal in value and numbers")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
