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
    other = [states_early(text, o) for (text, _), o in zip(traces, other_answers(answers), strict=True)]
    return sum(own) / len(own), sum(other) / len(other)


def other_answers(answers: Sequence[str]) -> list[str]:
    """For each answer the next different one in the list, which goes round; there must be two different ones."""
    found, following = list(answers), next((a for a in answers if a != answers[-1]), answers[0])
    for i in range(len(answers) - 1, -1, -1):
        if i + 1 < len(answers) and answers[i + 1] != answers[i]:
            following = answers[i + 1]
        found[i] = following
    return found
