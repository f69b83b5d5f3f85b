"""Whether a small weight of the KL made a method collapse in training, by a rule that was fixed beforehand.

A method reproduces the collapse that was published only if it ends below its own peak *and* below the other one, at
every rate of the grid. Peak and end are those of the held-out (dev) accuracy over training, mean over seeds: if it
does not collapse at one rate, the cause was the rate and not the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from covrl.comparison.summary import Line
from covrl.comparison.table import percent
from covrl.reporting.format import ABSENT
from covrl.reporting.tables import TitledTable


class Ending(NamedTuple):
    """How a method ended at one rate, with its own peak and the other's end; None where a result is missing."""

    rate: float
    peak: float | None
    end: float | None
    other: float | None

    @property
    def collapsed(self) -> bool | None:
        """Whether it ended below both; None where that is not known."""
        if self.peak is None or self.end is None or self.other is None:
            return None
        return self.end < self.peak and self.end < self.other


def endings(every: Sequence[Line], method: str, other: str) -> list[Ending]:
    """Peak and end of ``method`` and the end of ``other`` at every rate that either was to run at, lowest first."""
    found = {(line.method, line.rate): _mean_course(line) for line in every if line.rate is not None}
    rates = sorted({rate for name, rate in found if name in (method, other)})
    made = []
    for rate in rates:
        mine, theirs = found.get((method, rate), []), found.get((other, rate), [])
        ends = [max(mine), mine[-1]] if mine else [None, None]
        made.append(Ending(rate, *ends, theirs[-1] if theirs else None))
    return made


def _mean_course(line: Line) -> list[float]:
    """Accuracy at each evaluation, mean over seeds; nothing while a seed is missing. A run that was stopped stays at
    its last accuracy."""
    seeds = [[p["accuracy"] for p in r.figures["curve"] if p["accuracy"] is not None] for r in line.results]
    if line.missing or not seeds or not all(seeds):
        return []
    most = max(map(len, seeds))
    return [fmean(column) for column in zip(*([*s, *[s[-1]] * (most - len(s))] for s in seeds), strict=True)]


def verdict(found: Sequence[Ending], method: str, other: str) -> str:
    """The rule of this module in one sentence."""
    begun = f"Rule: {method} reproduces the published collapse only if it ends below its own peak and below {other} at "
    begun += "every rate of the grid. "
    unknown = [f"{e.rate:g}" for e in found if e.collapsed is None]
    held = [f"{e.rate:g}" for e in found if e.collapsed is False]
    if held:
        return f"{begun}It does not: not at rate {', '.join(held)}."
    if unknown or not found:
        return f"{begun}Not decided: results are missing{f' at rate {chr(44).join(unknown)}' if unknown else ''}."
    return f"{begun}It does, at all {len(found)} rates."


def table(found: Sequence[Ending], method: str, other: str) -> TitledTable:
    """The figures behind :func:`verdict`."""
    head = ["rate", f"{method}: peak", f"{method}: end", f"{other}: end", "ends below both"]
    answers = {None: ABSENT, True: "yes", False: "no"}
    rows = [
        [f"{e.rate:g}", *(ABSENT if v is None else percent(v) for v in (e.peak, e.end, e.other)), answers[e.collapsed]]
        for e in found
    ]
    about = f"Held-out (dev) accuracy over training, greedy, mean over seeds. {verdict(found, method, other)}"
    return TitledTable(f"Peak and end of {method}", about, head, rows)
