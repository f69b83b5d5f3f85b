"""A verifier's judgement of a response, and what all verifiers have in common.

``unknown`` is a verdict of its own and always has a reason: no answer in the response, an answer or a reference that
cannot be read, a comparison that took too long. It is never silently turned into wrong or right; code that needs
a number decides what unknown counts as, and reports how often it occurred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from covrl.records import Problem, Verdict
from covrl.rewards.extract import Extracted
from covrl.rewards.workers import Reply

TIME_LIMIT_S = 5.0
"""Seconds that one comparison may take before it is unknown; ordinary ones take a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the answer it is about, and why.

    Example:
        >>> Judgement("right", extracted="42", why="equal as text", how="boxed")

    ``extracted`` is None where the response has no answer; ``how`` names the extractor. The part of ``why`` before
    its first colon is one of a few fixed phrases, so that reasons can be counted.
    """

    verdict: Verdict
    extracted: str | None
    why: str
    how: str | None = None


@runtime_checkable
class Verifier(Protocol):
    """Judges a whole response; ``problem.answer`` and each of ``problem.accepted`` are right answers."""

    def __call__(self, problem: Problem, response: str) -> Judgement: ...


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """A verifier that judges many rows faster than one by one."""

    def judge_all(self, rows: Sequence[tuple[Problem, str]]) -> list[Judgement]: ...


def judge_all(verifier: Verifier, rows: Sequence[tuple[Problem, str]]) -> list[Judgement]:
    """One judgement per row, in order; all at once if the verifier supports it (:class:`BatchVerifier`)."""
    if isinstance(verifier, BatchVerifier):
        return verifier.judge_all(rows)
    return [verifier(problem, response) for problem, response in rows]


def references(problem: Problem) -> tuple[str, ...]:
    """Every answer that is right."""
    return (problem.answer, *problem.accepted)


def nothing(order: Sequence[str]) -> Judgement:
    """The response has no answer."""
    return Judgement("unknown", None, f"no answer found: looked for {', '.join(order)}")


def judgement(found: Extracted, reply: Reply) -> Judgement:
    """The reply about an extracted answer."""
    return Judgement(reply.verdict, found.text, reply.why, found.how)


def combine(replies: Sequence[Reply]) -> Reply:
    """Right if any reference matches; else unknown if any could not be compared; else wrong."""
    verdicts: tuple[Verdict, ...] = ("right", "unknown", "wrong")
    return next(r for v in verdicts for r in replies if r.verdict == v)
