"""Comparison of two numbers within a tolerance, for answers that are measured or rounded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from covrl.records import Problem
from covrl.rewards.extract import DEFAULT_ORDER, extract_answer
from covrl.rewards.forms import beside_the_question
from covrl.rewards.judgement import Judgement, combine, judgement, nothing, references
from covrl.rewards.normalise import Expression, NotMathematicsError, expression, normalise, plain_number
from covrl.rewards.workers import Reply

_DIGITS = r"\d{1,100}(?:\.\d{0,100})?|\.\d{1,100}"
_QUOTIENT = re.compile(
    rf"([-+]?)(?:\\frac ?\{{ ?(-?(?:{_DIGITS})) ?\}} ?\{{ ?({_DIGITS}) ?\}}|({_DIGITS}) ?/ ?({_DIGITS}))"
)
_SHORT_FRAC = re.compile(r"([-+]?)\\frac ?(\d) ?(\d)")


class Numeric:
    """Right if the answer is within the tolerance of a reference: ``|a - r| <= max(relative * |r|, absolute)``.

    Example:
        >>> Numeric(relative=0.01)(Problem("1", "g in m/s^2?", "9.81"), "#### 9.8").verdict
        'right'

    It reads decimals, quotients of two, ``3.2 \\times 10^5``, a per cent sign and a unit after the number; anything
    else is unknown, and so are different units. The arithmetic is exact. Two whole numbers have to be equal unless
    ``loose`` applies the tolerance to them too: 1,000,001 is no rounding of 1,000,000.
    """

    def __init__(
        self,
        relative: float = 1e-6,
        absolute: float = 0.0,
        loose: bool = False,
        order: Sequence[str] = DEFAULT_ORDER,
    ) -> None:
        self.relative, self.absolute = Fraction(str(relative)), Fraction(str(absolute))
        self.loose = loose
        self.order = tuple(order)

    def __call__(self, problem: Problem, response: str) -> Judgement:
        found = extract_answer(response, self.order)
        if found is None:
            return nothing(self.order)
        return judgement(found, combine([self._compare(r, found.text, problem.question) for r in references(problem)]))

    def _compare(self, reference: str, answer: str, question: str) -> Reply:
        try:
            expected = expression(reference, question)
            value = number_of(expected)
        except NotMathematicsError as error:
            return Reply("unknown", f"reference is no number: {error}")
        try:
            given = expression(answer, question)
            said = number_of(given)
        except NotMathematicsError as error:
            return Reply("unknown", f"answer is no number: {error}")
        if expected.unit and given.unit and expected.unit != given.unit:
            return Reply("unknown", f"different units: {expected.unit} and {given.unit}")
        if expected.base != given.base:
            return Reply("unknown", "a base on one side only, or two of them")
        if may_mean_percent(expected, given):
            return Reply("unknown", "per cent on one side only")
        if value.denominator == said.denominator == 1 and not self.loose:
            equal = value == said
        else:
            equal = abs(value - said) <= max(self.relative * abs(value), self.absolute)
        if not equal:
            return Reply("wrong", "not within the tolerance")
        same_text = plain_number(normalise(reference)) == plain_number(normalise(answer)) is not None
        doubt = "" if same_text else beside_the_question(reference, expected, answer, given, question)
        return Reply("unknown", doubt) if doubt else Reply("right", "within the tolerance")


def may_mean_percent(expected: Expression, said: Expression) -> bool:
    """Whether two numbers differ only by a per cent sign: 5% is 5 if the question asks for per cent."""
    if expected.percent == said.percent:
        return False
    try:
        one, other = number_of(expected), number_of(said)
    except NotMathematicsError:
        return False
    return one != other and 100 * (one if expected.percent else other) == (other if expected.percent else one)


def number_of(read: Expression) -> Fraction:
    """The exact value of a number in one of the spellings of :class:`Numeric`.

    Raises:
        NotMathematicsError: it is none of them, or a quotient by zero.
    """
    if read.number is not None:
        return read.number
    text = read.latex
    match = _QUOTIENT.fullmatch(text) or _SHORT_FRAC.fullmatch(text)
    if match is None:
        raise NotMathematicsError("neither a decimal nor a quotient of two")
    sign, above, below = (g for g in match.groups() if g is not None)
    if plain_number(below) == 0:
        raise NotMathematicsError("a quotient by zero")
    value = Fraction(above) / Fraction(below)
    return -value if sign == "-" else value
