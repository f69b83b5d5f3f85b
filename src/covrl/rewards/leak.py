"""Whether traces state an answer before they derive it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from covrl.rewards.forms import look, stands_in
from covrl.rewards.normalise import normalise, plain_number

EARLY_SHARE = 0.25
"""How much of a trace's text counts as early."""


_NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?: ?/ ?\d+)?%?(?![\w])")
_DELIMITERS = re.compile(r"\$|\\[()\[\]]")
_SPACES = re.compile(r"(?<![^\W_])\s+|\s+(?![^\W_])")


def states_early(trace: str, answer: str) -> bool:
    """Whether ``answer`` occurs in the first quarter of the trace's text (a part at least as long as the answer).

    Verbatim, or in another spelling: as a number of the same value (1,234 for 1234, 0.5 for 1/2), or with other LaTeX,
    case and spaces around signs (``\\frac12`` for ``\\frac{1}{2}``). Not as a formula of the same value.
    """
    answer = answer.strip()
    window = trace[: max(len(answer), int(len(trace) * EARLY_SHARE))]
    if not answer or answer in window:
        return bool(answer)
    said, early = _spelled(answer), _spelled(window)
    value = _number(said)
    if value is not None and any(_number(found) == value for found in _NUMBER.findall(early)):
        return True
    return stands_in(said, early)


def _spelled(text: str) -> str:
    """A normal form for texts that differ in LaTeX, case, thousands separators, and spaces around signs."""
    text = text.replace("{,}", ",").replace(r",\!", ",")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return _SPACES.sub("", look(normalise(_DELIMITERS.sub(" ", text)), spaces=True)).casefold().strip()


def _number(text: str) -> Fraction | None:
    above, slash, below = text.removesuffix("%").partition("/")
    top, bottom = plain_number(above.strip().replace(",", "")), plain_number(below.strip()) if slash else Fraction(1)
    if top is None or not bottom:
        return None
    return top / bottom / (100 if text.endswith("%") else 1)


def leak_rates(traces: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """(share of traces that state their own problem's answer early, share that state another problem's).

    ``traces`` are pairs (text, answer); the other answer is the next different one in the list. An answer that is
    a common word or digit appears early by chance, so only the difference of the two shows that the hint leaked.
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
