"""What is in a set of problems: forms of answers, duplicates, and problems that another set has too."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from covrl.records import Problem
from covrl.rewards.normalise import normalise, plain_number

SHINGLE = 3
"""Words in a row that are compared (INFERRED)."""

NEAR = 0.6
"""Share of two questions' runs of words, of all that either has, from which they are near duplicates (INFERRED).

Of a question of 40 words, three may be others.
"""

COMMON = 50
"""A run of words that more questions have than this is no reason to compare two of them."""

_FRACTION = re.compile(r"[-+]?\d+\s*/\s*\d+|[-+]?\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?")
_CHOICE = re.compile(r"\(?[A-Ja-j]\)?")
_FORMULA = re.compile(r"[\\^_={}]|\d\s*[-+*/]\s*\w|\w\s*[-+*/]\s*\d")
_WORDS = re.compile(r"\w+")


class Pair(NamedTuple):
    """Two problems that are the same or nearly so; ``likeness`` is 1 for equal questions."""

    one: str
    other: str
    likeness: float


def answer_form(answer: str) -> str:
    """What kind of text an answer is, by its looks.

    Example:
        >>> [answer_form(each) for each in ("1,200", "2.5", r"\\\\frac12", "B", "x^2", "the crow and the owl")]
        ['integer', 'decimal', 'fraction', 'choice', 'formula', 'phrase']
    """
    text = answer.strip().strip("$").strip()
    value = plain_number(normalise(text))
    if _CHOICE.fullmatch(text):
        return "choice"
    if value is not None:
        return "integer" if value.denominator == 1 else "decimal"
    if _FRACTION.fullmatch(text):
        return "fraction"
    if text.casefold() in {"yes", "no", "true", "false"}:
        return "yes or no"
    if _FORMULA.search(text):
        return "formula"
    words = len(text.split())
    return "word" if words == 1 else "phrase" if words <= 8 else "text"


def answer_forms(problems: Iterable[Problem]) -> Counter[str]:
    """How many answers have each form, the most frequent first."""
    return Counter(dict(Counter(answer_form(problem.answer) for problem in problems).most_common()))


def equal_pairs(problems: Sequence[Problem], others: Sequence[Problem] | None = None) -> list[Pair]:
    """Problems whose question, with what was said before it, is that of an earlier one, or of one of ``others``.

    Letter case and white space do not count.
    """
    first: dict[str, str] = {}
    for problem in others or ():
        first.setdefault(_spelling(problem), problem.id)
    pairs = []
    for problem in problems:
        key = _spelling(problem)
        if key in first:
            pairs.append(Pair(first[key], problem.id, 1.0))
        elif others is None:
            first[key] = problem.id
    return pairs


def contradictions(problems: Sequence[Problem]) -> list[Pair]:
    """Of the equal pairs, those with different answers."""
    answers = {problem.id: _value(problem.answer) for problem in problems}
    return [pair for pair in equal_pairs(problems) if answers[pair.one] != answers[pair.other]]


def near_pairs(problems: Sequence[Problem], others: Sequence[Problem] | None = None) -> list[Pair]:
    """For each problem the nearest of the earlier ones, or of ``others``, if it is nearly but not quite the same.

    Compared are the runs of three words of the questions, letter case and punctuation apart: their number that both
    have over the number that either has (Jaccard), at least :data:`NEAR`.
    """
    left = [_shingles(problem) for problem in problems]
    right = left if others is None else [_shingles(problem) for problem in others]
    named = problems if others is None else others
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, runs in enumerate(right):
        for run in runs:
            where[run].append(place)
    pairs = []
    for place, runs in enumerate(left):
        near = {n for run in runs if len(where[run]) <= COMMON for n in where[run] if others is not None or n < place}
        likeness, best = max(((_jaccard(runs, right[n]), -n) for n in near), default=(0.0, 0))
        if likeness >= NEAR and _spelling(problems[place]) != _spelling(named[-best]):
            pairs.append(Pair(named[-best].id, problems[place].id, likeness))
    return pairs


def _value(answer: str) -> Fraction | str:
    text = normalise(answer)
    number = plain_number(text)
    return text if number is None else number


def _spelling(problem: Problem) -> str:
    texts = [*(turn.text for turn in problem.turns if turn.role != "system"), problem.question]
    return "\n".join(" ".join(text.split()) for text in texts).casefold()


def _shingles(problem: Problem) -> frozenset[tuple[str, ...]]:
    words = _WORDS.findall(_spelling(problem))
    return frozenset(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def _jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)
