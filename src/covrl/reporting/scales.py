"""Computations for charts: what to draw of a long noisy curve, where its axis ends, which ticks it gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import NamedTuple

from covrl.records import StepReport

MOST_DOTS = 60  # points that are drawn as dots; more would run into each other
MOST_POINTS = 400  # about one per pixel; more only make the file larger


class Point(NamedTuple):
    """One point of a curve; ``low`` and ``high`` differ from ``value`` if it represents several steps."""

    step: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric over the steps that report it: points with finite values, and the steps of the others.

    ``sparse`` is true for a metric that few steps report, such as an evaluation.
    """

    points: list[Point]
    broken: list[int]
    per_point: int = 1
    sparse: bool = False

    def values(self) -> list[float]:
        return [point.value for point in self.points]


def curve(steps: Sequence[StepReport], metric: str, limit: int = MOST_POINTS, absent: float | None = None) -> Curve:
    """The metric's curve, with neighbouring steps merged if there are more than ``limit``.

    Steps that do not report the metric count as ``absent``, or not at all where that is ``None``.
    """
    found = ((report.step, report.metrics.get(metric, absent)) for report in steps)
    seen = [(step, float(value)) for step, value in found if value is not None]
    finite = [(step, value) for step, value in seen if math.isfinite(value)]
    broken = [step for step, value in seen if not math.isfinite(value)]
    size = max(1, math.ceil(len(finite) / limit))
    points = [_merge(finite[start : start + size]) for start in range(0, len(finite), size)]
    return Curve(points, broken, size, sparse=len(seen) <= min(max(len(steps) // 2, 1), MOST_DOTS))


def _merge(pairs: Sequence[tuple[int, float]]) -> Point:
    values = [value for _, value in pairs]
    step = sum(step for step, _ in pairs) / len(pairs)
    return Point(step, math.fsum(values) / len(values), min(values), max(values))


def smooth(points: Sequence[Point], half: int) -> list[tuple[float, float]]:
    """The trend of a noisy curve: a running median, then a running mean, over ``half`` points to either side.

    The median comes first so that a single spike does not turn into a plateau.
    """
    middle = _running(median, [point.value for point in points], half)
    trend = _running(fmean, middle, half)
    return [(point.step, value) for point, value in zip(points, trend, strict=True)]


def is_noisy(points: Sequence[Point]) -> bool:
    """Whether a trend adds to the values: false for short curves, and for smooth ones such as a schedule."""
    if len(points) < 40:
        return False
    values = [point.value for point in points]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return median(bends) > 0.004 * (max(values) - min(values))


def _running(average: Callable[[Sequence[float]], float], values: Sequence[float], half: int) -> list[float]:
    """A centred running average; at the ends the part of the window that exists counts."""
    return [average(values[max(place - half, 0) : place + half + 1]) for place in range(len(values))]


def runs(points: Sequence[Point], broken: Sequence[int]) -> list[list[Point]]:
    """The points in unbroken stretches: a value that is not a number ends one."""
    stretches: list[list[Point]] = []
    waiting = sorted(broken)
    for point in points:
        fresh = not stretches
        while waiting and waiting[0] <= point.step:
            waiting.pop(0)
            fresh = True
        if fresh:
            stretches.append([])
        stretches[-1].append(point)
    return stretches


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values, the ticks inside it, and where a value lies (0 at the low end, 1 at the high end)."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """The value's place, limited to the frame."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return min(max((math.log10(max(value, 1e-300)) - low) / (high - low), 0.0), 1.0)
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def axis(values: Iterable[float], *, log: bool = False, zero: bool = False, most: float = math.inf) -> Axis:
    """An axis for the values, except a few far outliers, which may be outside of the frame.

    ``zero`` makes it reach zero; ``most`` is the largest value that can occur (1 for shares).
    """
    finite = sorted(value for value in values if math.isfinite(value) and (value > 0 or not log))
    if log:
        return _log_axis(finite)
    low, high = without_outliers(finite) if finite else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # a flat curve still needs a frame around it
        pad = abs(high) * 0.1 or 1.0
        low, high = (low, high + pad) if zero else (low - pad, high + pad)
    gap = _round_step((high - low) / 4)
    bottom, top = math.floor(low / gap + 1e-6) * gap, math.ceil(high / gap - 1e-6) * gap
    top = min(top, max(most, high))
    count = int((top - bottom) / gap + 1e-6)
    return Axis(bottom, top, tuple(round(bottom + i * gap, 12) for i in range(count + 1)))


def without_outliers(ordered: Sequence[float]) -> tuple[float, float]:
    """The range of values in rising order, without rare outliers.

    Those are ends that hold under 3 % of the values and lie far outside the middle 90 %.
    """
    low, high = ordered[0], ordered[-1]
    count = len(ordered)
    if count < 20:
        return low, high
    q05, q95 = ordered[count // 20], ordered[count - 1 - count // 20]
    reach = 2.5 * (q95 - q05)
    if reach <= 0:
        return low, high
    rare = 0.03 * count
    if high > q95 + reach and sum(value > q95 + reach for value in ordered) <= rare:
        high = max(value for value in ordered if value <= q95 + reach)
    if low < q05 - reach and sum(value < q05 - reach for value in ordered) <= rare:
        low = min(value for value in ordered if value >= q05 - reach)
    return low, high


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * 0.999), 10 * power)


def _log_axis(positive: Sequence[float]) -> Axis:
    """An axis a little wider than the values, with ticks at powers of ten, or at 1, 2, 5 if those are too few."""
    low, high = (positive[0] / 1.2, positive[-1] * 1.2) if positive else (0.1, 10.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(tens) < 3:
        fine = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
        return Axis(low, high, tuple(tick for tick in fine if low <= tick <= high), log=True)
    return Axis(low, high, tuple(tens[:: math.ceil(len(tens) / 6)]), log=True)


def step_ticks(first: float, last: float) -> list[int]:
    """Whole steps to name under a chart: both ends, and round numbers between them with enough space."""
    if last <= first:
        return [round(first)]
    gap = max(1, round(_round_step((last - first) / 5)))
    inner = range(math.ceil(first / gap) * gap, math.floor(last) + 1, gap)
    room: Callable[[int], bool] = lambda step: step - first > 0.6 * gap and last - step > 0.6 * gap  # noqa: E731
    return [round(first), *filter(room, inner), round(last)]
