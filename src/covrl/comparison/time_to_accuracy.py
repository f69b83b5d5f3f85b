"""Which of two methods learns sooner: tokens until held-out accuracy first reached a level.

Accuracy is known at evaluations only, so each reached the level somewhere between the tokens of two evaluations. If
these ranges overlap, the order is not known, whatever the straight lines between evaluations suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

from covrl.comparison.summary import Axis, Figure, Line, Reach, course, reach, sooner
from covrl.statistics import Interval, t_interval


class Pair(NamedTuple):
    """Two trainings of one seed, the rate of the first, and when each reached the level: None if it never did."""

    rate: float | None
    first: Reach | None
    other: Reach | None

    @property
    def told_apart(self) -> bool:
        """Whether both reached the level in training, and one certainly sooner than the other."""
        if not (self.first and self.other and self.first.at and self.other.at):
            return False
        return self.first.by <= self.other.after or self.other.by <= self.first.after

    @property
    def times(self) -> float | None:
        """How many times the tokens of the first the other needed; 1 if their order is not known."""
        if not (self.first and self.other):
            return None
        return self.other.at / self.first.at if self.told_apart else 1.0


def times_as_long(first: Line, other: Line, axis: Axis, level: float) -> Figure | None:
    """How many times the tokens of ``first`` the other one needed until its held-out accuracy first reached ``level``.

    Seed by seed: the geometric mean, and Student's interval of the logs. None if a seed of either never reached it,
    or if the order is not known in one.
    """
    mine, theirs = ({r.cell.seed: course(r, axis) for r in line.results} for line in (first, other))
    seeds = sorted(mine.keys() & theirs.keys())
    pairs = [Pair(first.rate, reach(mine[seed], level), reach(theirs[seed], level)) for seed in seeds]
    if not all(pair.told_apart for pair in pairs):
        return None
    return _geometric([pair.times for pair in pairs if pair.times], "seeds")


def pairs_at_equal_rates(first: Sequence[Line], other: Sequence[Line], axis: Axis, level: float) -> list[Pair]:
    """Every rate and seed that both methods were trained with, lowest rate first."""
    mine, theirs = (
        {
            (line.rate, r.cell.seed): reach(points, level)
            for line in every
            for r in line.results
            if line.rate is not None and (points := course(r, axis))
        }
        for every in (first, other)
    )
    return [Pair(key[0], mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys())]


def times_at_equal_rates(pairs: Sequence[Pair]) -> Figure | None:
    """How many times the tokens of the first the other needed, of the pairs in which both reached the level.

    One point per rate, the geometric mean over its seeds; their geometric mean, and Student's interval of the logs.
    """
    ratios: dict[float | None, list[float]] = {}
    for pair in pairs:
        if pair.times:
            ratios.setdefault(pair.rate, []).append(math.log(pair.times))
    return _geometric([math.exp(fmean(logs)) for logs in ratios.values()], "rates")


def came(pairs: Sequence[Pair]) -> tuple[int, int, int]:
    """In how many pairs both reached the level, only the first, and only the other."""
    there = [(pair.first is not None, pair.other is not None) for pair in pairs]
    return there.count((True, True)), there.count((True, False)), there.count((False, True))


def sooner_at_equal_rates(pairs: Sequence[Sequence[Pair]]) -> str:
    """``sooner`` or ``later`` if the intervals of all axes agree and no pair in which only one reached the level
    contradicts it.

    ``pairs``: those of :func:`pairs_at_equal_rates`, one list per axis.
    """
    said = sooner([times_at_equal_rates(found) for found in pairs])
    _, first_alone, other_alone = came(pairs[0])
    denied = {"sooner": other_alone, "later": first_alone}.get(said, 0)
    return "undecided" if denied else said


def _geometric(ratios: Sequence[float], over: Literal["seeds", "rates"]) -> Figure | None:
    """Geometric mean of ratios with Student's interval of their logs; none if all are equal."""
    if not ratios:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    ends = t_interval(logs) if len(set(logs)) > 1 else None
    interval = Interval(math.exp(ends.low), math.exp(ends.high)) if ends else None
    return Figure(math.exp(fmean(logs)), tuple(ratios), interval, over)
