"""Figures that results are reported with: pass@k, avg@n, and 95 % intervals over problems and over seeds.

Pure functions on plain numbers. Two intervals are kept apart, as they answer different questions. That over
*problems* (:func:`bootstrap_intervals`) belongs to one model: how far would its figure move with other problems of
the same kind? That over *seeds* (:func:`t_interval`) belongs to a method: how far would its mean move with other
training runs on the same problems?
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple, TypeVar

RESAMPLES = 2000
LEVEL = 0.95

Name = TypeVar("Name", str, int)


class Interval(NamedTuple):
    """Both ends of an interval, in the unit of the values."""

    low: float
    high: float


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that ``k`` of the ``n`` samples, drawn without replacement, hold at least one of the correct ones.

    The unbiased estimate of pass@k, 1 − C(n−c, k) / C(n, k). The quotient is formed of whole numbers and rounded
    once, so it neither overflows nor cancels.

    Example:
        >>> pass_at_k(256, 4, 64)
        0.686082...

    Raises:
        ValueError: not 0 ≤ correct ≤ n, or not 1 ≤ k ≤ n.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n, found n={n}, correct={correct}, k={k}")
    every = math.comb(n, k)
    return (every - math.comb(n - correct, k)) / every


def powers_of_two(n: int) -> list[int]:
    """The k that pass@k is reported for: 1, 2, 4, … up to ``n``."""
    return [1 << i for i in range(n.bit_length())]


def bootstrap_intervals(
    columns: Mapping[Name, Sequence[float]], seed: int = 0, resamples: int = RESAMPLES
) -> dict[Name, Interval]:
    """Interval of each column's mean over problems, by the percentile bootstrap.

    ``columns[name][i]`` is the figure of problem ``i``. Problems are drawn with replacement, as many as there are,
    ``resamples`` times; the interval runs between the (1 − LEVEL)/2 quantiles of the means, interpolated between
    neighbours. All columns share the draws, and the same ``seed`` gives the same interval. It covers the choice of
    problems alone. Where every problem has the same figure it has no width, which says nothing of other problems.

    Raises:
        ValueError: no problems, or columns of different lengths.
    """
    rows = list(zip(*columns.values(), strict=True))
    if not rows:
        raise ValueError("an interval over problems needs at least one problem")
    # Most problems share few outcomes (c of n right), so a resample is summed by outcome and not by problem.
    rng = random.Random(f"bootstrap/{seed}")
    means: list[list[float]] = [[] for _ in columns]
    for _ in range(resamples):
        drawn = Counter(rng.choices(rows, k=len(rows)))
        for place, found in enumerate(means):
            found.append(math.fsum(row[place] * count for row, count in drawn.items()) / len(rows))
    tail = (1 - LEVEL) / 2
    return {
        name: Interval(quantile(found, tail), quantile(found, 1 - tail))
        for name, found in zip(columns, means, strict=True)
    }


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The 95 % interval of one column's mean; see :func:`bootstrap_intervals`."""
    return bootstrap_intervals({"": values}, seed, resamples)[""]


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which ``share`` of the values lie, linear between neighbours (0: least, 1: greatest)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def wilson(share: float, count: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share measured on ``count`` independent problems, two-sided at ``level``.

    Example:
        >>> wilson(0.5, 100)
        Interval(low=0.4038..., high=0.5961...)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def t_interval(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> Interval | None:
    """Student's interval of the mean of independent runs, cut to ``within``; ``None`` for fewer than two.

    For three to five seeds. A bootstrap of so few values is too narrow: three values have ten different resamples,
    none of which can leave their range, and the nominal 95 % covers the mean in about three of four cases. Student's
    interval takes the means for normally distributed and pays for the unknown deviation with its width.
    """
    if len(values) < 2:
        return None
    half = t_quantile((1 + LEVEL) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    mean, (least, most) = fmean(values), within
    return Interval(max(mean - half, least), min(mean + half, most))


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """The point that Student's t with ``degrees`` degrees of freedom stays below with ``probability`` (0.5 to 1)."""
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"expected a probability in [0.5, 1) and degrees >= 1, found {probability}, {degrees}")
    low, high = 0.0, 1.0
    while _t_below(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_below(t: float, degrees: int) -> float:
    """P(T ≤ t) for t ≥ 0: for whole degrees of freedom the integral is a finite sum in θ = atan(t / √degrees)."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for i in range(2 + odd, degrees - 1, 2):
        term *= (i - 1) / i * cosine * cosine
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + inside) / 2
