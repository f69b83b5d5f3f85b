"""Comparison of answers: exactly, as text, and as mathematics.

Verdicts, and what all verifiers have in common: :mod:`covrl.rewards.judgement`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from covrl.records import Problem
from covrl.rewards.extract import DEFAULT_ORDER, extract_answer
from covrl.rewards.forms import beside_the_question, chained, claims, only_in_value
from covrl.rewards.judgement import TIME_LIMIT_S, Judgement, combine, judgement, nothing, references
from covrl.rewards.math_worker import Question, math_workers
from covrl.rewards.normalise import (
    MAX_CHARS,
    Expression,
    NotMathematicsError,
    expression,
    is_words,
    normalise,
    plain_number,
    with_symbol_unit,
)
from covrl.rewards.numeric import may_mean_percent
from covrl.rewards.ranges import as_set, is_inequality, is_joined, is_set, united
from covrl.rewards.units import unit_is_due
from covrl.rewards.workers import Reply

_MAYBE_UNIT = re.compile(r"[\d})] ?(?!i)[A-Za-z]{1,2}$")


def exact_text(problem: Problem, response: str, order: Sequence[str] = DEFAULT_ORDER) -> Judgement:
    """Right if the answer has the same characters as the reference or an accepted one, after stripping spaces."""
    return _compared(_exact, problem, response, order)


def normalised_text(problem: Problem, response: str, order: Sequence[str] = DEFAULT_ORDER) -> Judgement:
    """Right if the two are equal after normalising (:func:`covrl.rewards.normalise.normalise`) or as plain numbers."""
    return _compared(_text, problem, response, order)


def _compared(compare: Callable[[str, str], Reply], problem: Problem, response: str, order: Sequence[str]) -> Judgement:
    """How the answer of a response compares with the best of the references."""
    found = extract_answer(response, order)
    if found is None:
        return nothing(order)
    return judgement(found, combine([compare(r, found.text) for r in references(problem)]))


class MathVerifier:
    """Equal as text, as numbers, or by math-verify in worker processes that are killed when a row hangs.

    Example:
        >>> with MathVerifier() as verify:
        ...     verify(Problem("1", "Half of one?", "1/2"), r"So it is \\boxed{\\frac12}.").verdict
        'right'

    Text and plain numbers are decided in this process. Words are compared as words: math-verify would read them as
    products of letters. The input for math-verify is first made safe or refused (:mod:`covrl.rewards.normalise`).
    Not for use from several threads at once. POSIX only.
    """

    def __init__(
        self,
        order: Sequence[str] = DEFAULT_ORDER,
        time_limit_s: float = TIME_LIMIT_S,
        workers: int | None = None,
    ) -> None:
        count = min(2, os.cpu_count() or 1) if workers is None else workers
        self.order = tuple(order)
        self.workers = math_workers(count, time_limit_s)

    def __call__(self, problem: Problem, response: str) -> Judgement:
        return self.judge_all([(problem, response)])[0]

    def judge_all(self, rows: Sequence[tuple[Problem, str]]) -> list[Judgement]:
        """One judgement a row, in order; the rows that need math-verify go through all workers together."""
        found = [extract_answer(response, self.order) for _, response in rows]
        screened = [
            None if answer is None else _screen(problem, answer.text)
            for (problem, _), answer in zip(rows, found, strict=True)
        ]
        replies = iter(self.workers.ask([q for s in screened if s for q in s.questions], _dear))
        return [
            nothing(self.order)
            if answer is None or seen is None
            else judgement(answer, seen.take([next(replies) for _ in seen.asked]))
            for answer, seen in zip(found, screened, strict=True)
        ]

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        self.workers.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_DEAR = re.compile(r"\^ ?\{?[^{}^]{0,40}\^|\^ ?\{? ?-?\d{3}|!|\\(?:prod|sum|int|lim|binom)(?![A-Za-z])")


def _dear(question: Question) -> float:
    """A rough estimate of the cost of a comparison: powers of powers and similar terms make math-verify hang."""
    return len(question.answer) + (1000.0 if _DEAR.search(question.answer) else 0.0)


def _exact(reference: str, answer: str) -> Reply:
    if not reference.strip():
        return Reply("unknown", "the reference is blank")
    equal = reference.strip() == answer.strip()
    return Reply("right", "equal to the character") if equal else Reply("wrong", "not equal to the character")


def _text(reference: str, answer: str) -> Reply:
    return _same_text(reference, answer) or Reply("wrong", "not equal as text")


def _same_text(reference: str, answer: str) -> Reply | None:
    """Right, or unknown for a blank reference; None if the texts differ."""
    expected, said = _normalised(reference), normalise(answer)
    if not expected:
        return Reply("unknown", "the reference is blank")
    if expected == said:
        return Reply("right", "equal as text")
    number = plain_number(expected)
    equal = number is not None and number == plain_number(said)
    return Reply("right", "equal as numbers") if equal else None


class _Asked(NamedTuple):
    """A comparison for math-verify, and reasons why its result may not be the verdict.

    With a ``doubt``, an equal value is not enough (:mod:`covrl.rewards.forms`); with an ``unsure``,
    it may call equal answers unequal.
    """

    reference: str
    answer: str
    doubt: str
    unsure: str

    def verdict(self, reply: Reply) -> Reply:
        if reply.verdict == "wrong" and self.unsure:
            return Reply("unknown", self.unsure)
        return _doubted(reply, self.doubt)


@dataclass(slots=True)
class _Screened:
    """What is known about an answer without math-verify, and the comparisons it has to make: a list for each
    question."""

    replies: list[Reply] = field(default_factory=list)
    asked: list[list[_Asked]] = field(default_factory=list)

    @property
    def questions(self) -> list[Question]:
        return [Question(tuple(a.reference for a in group), group[0].answer) for group in self.asked]

    def take(self, replies: Sequence[Reply]) -> Reply:
        """The verdict, given a reply to each question."""
        return combine([*self.replies, *(g[0].verdict(r) for g, r in zip(self.asked, replies, strict=True))])


def _screen(problem: Problem, answer: str) -> _Screened:
    """A reply for each reference that needs no math-verify, and the questions about the others."""
    found = _Screened()
    groups: dict[tuple[str, str, str], list[_Asked]] = {}
    for reference in references(problem):
        reply = _same_text(reference, answer) or _words(_normalised(reference), normalise(answer))
        reply = reply or _as_mathematics(reference, answer, problem)
        if isinstance(reply, Reply):
            found.replies.append(reply)
        else:
            groups.setdefault(reply[1:], []).append(reply)
    if not any(r.verdict == "right" for r in found.replies):
        found.asked = list(groups.values())
    return found


def _doubted(reply: Reply, doubt: str) -> Reply:
    return Reply("unknown", doubt) if doubt and reply.verdict == "right" else reply


def _words(reference: str, answer: str) -> Reply | None:
    """How a reference in words compares with a different answer; None if the reference is not words."""
    if not is_words(reference):
        return None
    if not is_words(answer):
        return Reply("unknown", "the reference is words and the answer is not")
    if sorted(reference) == sorted(answer):  # abc and cab are the same product, but different words
        return Reply("unknown", "the same letters in another order")
    return Reply("wrong", "different words")


def _as_mathematics(reference: str, answer: str, problem: Problem) -> Reply | _Asked:
    """A reply if math-verify is not needed, else the comparison for it."""
    question = problem.question
    try:
        expected = _expression(reference, question)
    except NotMathematicsError as error:
        return Reply("unknown", f"reference not mathematics: {error}")
    try:
        said = expression(answer, question)
    except NotMathematicsError as error:
        return Reply("unknown", f"answer not mathematics: {error}")
    expected, said = _units_read(expected, said, question)
    doubt = only_in_value(expected, said, question) or beside_the_question(reference, expected, answer, said, question)
    reply = _doubt(expected, said) or _numbers(expected, said)
    if reply is not None:
        return _doubted(reply, doubt)
    one, other, unsure = _comparable(expected.latex, said.latex)
    return _Asked(one, other, doubt, unsure or _misread(expected, said))


def _units_read(expected: Expression, said: Expression, question: str) -> tuple[Expression, Expression]:
    """Both with ``m^2`` after a number as a unit, if the other side or the question shows that it is one."""
    if expected.unit and not said.unit:
        return expected, with_symbol_unit(said)
    if said.unit and not expected.unit:
        return with_symbol_unit(expected), said
    units = with_symbol_unit(expected), with_symbol_unit(said)
    if not (expected.letters and said.letters) and all(unit_is_due(u.unit, question) for u in units if u.unit):
        return units
    return expected, said


def _comparable(expected: str, said: str) -> tuple[str, str, str]:
    """Both LaTeX texts with inequalities as sets if only one has them, and why unequal may not be wrong."""
    expected, said = united(expected), united(said)
    if not (is_inequality(expected) or is_inequality(said)):
        return expected, said, ""
    if not (is_joined(expected) or is_joined(said) or is_set(expected) or is_set(said)):
        return expected, said, ""
    sets = [as_set(latex) if is_inequality(latex) else ("", latex) for latex in (expected, said)]
    if None in sets:
        return expected, said, "inequalities that cannot be compared"
    (name, one), (other_name, other) = filter(None, sets)
    if name and other_name and name != other_name:
        return expected, said, "inequalities for different letters"
    return one, other, "" if all(is_set(s) or s.startswith("\\{") for s in (one, other)) else "a set on one side only"


_RADIANS = re.compile(r"\\(?:pi|arc[a-z]+)(?![A-Za-z])|\^ ?\{ ?-1 ?\}")
_LOG = re.compile(r"\\log(?! ?_)(?![A-Za-z])")


def _misread(expected: Expression, said: Expression) -> str:
    """Why two answers that math-verify calls unequal need not be; empty if there is no such reason."""
    if bool(_LOG.search(expected.latex)) != bool(_LOG.search(said.latex)):
        return "a logarithm without a base"
    if not (expected.unit or said.unit) and with_symbol_unit(expected).unit != with_symbol_unit(said).unit:
        return "letters that may be a unit"
    if {expected.unit, said.unit} == {"degree", ""} and _RADIANS.search(expected.latex + said.latex):
        return "degrees on one side only"
    letters = [{"i", "j"} & side.letters for side in (expected, said)]
    if letters in ([{"i"}, {"j"}], [{"j"}, {"i"}]):
        return "j that may be the imaginary unit"
    return ""


def _doubt(expected: Expression, said: Expression) -> Reply | None:
    """The verdict on what math-verify would ignore: units, ratios, bases."""
    if expected.unit and said.unit and expected.unit != said.unit:
        return Reply("unknown", f"different units: {expected.unit} and {said.unit}")
    turned = "=" in expected.latex
    if chained(said.latex) or (claims(said.latex, turned) and not claims(expected.latex, True)):
        return Reply("unknown", "an equation where a value is due")
    if may_mean_percent(expected, said):
        return Reply("unknown", "per cent on one side only")
    if any(a.unit and not b.unit and _MAYBE_UNIT.search(b.latex) for a, b in ((expected, said), (said, expected))):
        return Reply("unknown", "a letter that may be a unit")
    if said.base is not None and expected.base is None:
        return Reply("unknown", "only the answer names a base")
    if (":" in expected.latex) != (":" in said.latex) and not is_inequality(expected.latex + said.latex):
        return Reply("unknown", "only one of the two is a ratio or a time")
    return None


def _numbers(expected: Expression, said: Expression) -> Reply | None:
    """The verdict on two plain numbers, by their exact values; None for anything else."""
    if expected.base is not None and said.base is None:
        # The question asked for that base, so the bare digits are the answer.
        return Reply("right", "equal digits") if expected.latex == said.latex else Reply("wrong", "different digits")
    if expected.number is None or said.number is None:
        return None
    equal = expected.number == said.number
    if equal and expected.base != said.base:
        return Reply("unknown", "another base than the reference's")
    return Reply("right", "equal as numbers") if equal else Reply("wrong", "different numbers")


# References recur for every rollout, so both of their readings are cached.


def _normalised(reference: str) -> str:
    return _cached_normalise(reference) if len(reference) <= MAX_CHARS else normalise(reference)


_cached_normalise = lru_cache(maxsize=4096)(normalise)
_expression = lru_cache(maxsize=4096)(expression)
