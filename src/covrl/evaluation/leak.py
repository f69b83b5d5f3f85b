"""Whether traces state an answer before they derive it."""

from __future__ import annotations

from collections.abc import Sequence

EARLY_SHARE = 0.25
"""How much of a trace's text counts as early."""


def states_early(trace: str, answer: str) -> bool:
    """Whether ``answer`` stands verbatim in the first quarter of the trace's text (at least as long as itself)."""
    answer = answer.strip()
    window = max(len(answer), int(len(trace) * EARLY_SHARE))
    return bool(answer) and answer in trace[:window]


def leak_rates(traces: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """(share of traces that state their own problem's answer early, share that state another problem's).

    ``traces`` are pairs (text, answer); the other answer is the next different one in the list. An answer that is
    a common word or digit appears early by chance, so only the difference of the two says that the hint leaked.
    Both are NaN if there are no two different answers.
    """
    answers = [answer for _, answer in traces]
    if len(set(answers)) < 2:
        return float("nan"), float("nan")
    own = [states_early(text, answer) for text, answer in traces]
    other = [states_early(text, _next_other(answers, i)) for i, (text, _) in enumerate(traces)]
    return sum(own) / len(own), sum(other) / len(other)


def _next_other(answers: Sequence[str], index: int) -> str:
    ring = [*answers[index + 1 :], *answers[:index]]
    return next(answer for answer in ring if answer != answers[index])
