"""Which answers of a problem's samples are equal, so that majorities and entropies count answers and not spellings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from covrl.records import Grader, Problem, Verdict
from covrl.rewards.normalise import plain_number

MOST_COMPARED = 12
"""Different wrong answers of one problem that are compared with each other, the most frequent; at most 66 pairs."""

MOST_CHARS = 300
"""Longer answers are not compared."""

COMPARING = ("math", "numeric")
"""Verifiers that can compare any two answers; the others compare only with the reference."""


class Said(NamedTuple):
    """One sample: its answer in normal form (None: no answer) and as written, and its verdict."""

    spelling: str | None
    text: str
    verdict: Verdict


def classes(
    rows: Sequence[tuple[Problem, Sequence[Said]]], verifier: str, grade: Grader | None
) -> list[list[str | None]]:
    """For each problem one answer per sample, the same for samples whose answers are equal; None for no answer.

    Answers are equal if their normal forms are. With ``COMPARING`` verifiers also if both are right (and the problem
    accepts only its reference) or if the verifier accepts one with the other as the reference. All pairs of all
    problems are compared in one call, so that what hostile answers cost is bounded by the verifier's own limits.
    """
    if grade is None or verifier.partition(",")[0] not in COMPARING:
        return [[said.spelling for said in samples] for _, samples in rows]
    pairs = [_pairs(samples) for _, samples in rows]
    flat = [pair for found in pairs for pair in found]
    verdicts = iter(grade([(Problem("", "", a.text), b.text) for a, b in flat]) if flat else ())
    return [
        _merged(problem, samples, [(a, b) for a, b in found if next(verdicts) == "right"])
        for (problem, samples), found in zip(rows, pairs, strict=True)
    ]


def _pairs(samples: Sequence[Said]) -> list[tuple[Said, Said]]:
    """Pairs of different wrong answers that may still be equal, the more frequent answer first."""
    first: dict[str, Said] = {}
    votes: Counter[str] = Counter()
    for said in samples:
        if said.spelling is not None and said.verdict != "right" and len(said.text) <= MOST_CHARS:
            first.setdefault(said.spelling, said)
            votes[said.spelling] += 1
    often = sorted(votes, key=lambda spelling: (-votes[spelling], spelling))[:MOST_COMPARED]
    numbers = {spelling: plain_number(spelling) is not None for spelling in often}
    return [(first[a], first[b]) for a, b in combinations(often, 2) if not (numbers[a] and numbers[b])]


def _merged(problem: Problem, samples: Sequence[Said], equal: Sequence[tuple[Said, Said]]) -> list[str | None]:
    name: dict[str, str] = {}
    for a, b in equal:
        assert a.spelling is not None
        assert b.spelling is not None
        name.setdefault(b.spelling, name.get(a.spelling, a.spelling))
    if not problem.accepted:
        name |= _right(samples)
    return [None if said.spelling is None else name.get(said.spelling, said.spelling) for said in samples]


def _right(samples: Sequence[Said]) -> Mapping[str, str]:
    """The normal forms of right answers, each mapped to the first of them."""
    spellings = [s.spelling for s in samples if s.verdict == "right" and s.spelling is not None]
    return dict.fromkeys(spellings, spellings[0]) if spellings else {}
