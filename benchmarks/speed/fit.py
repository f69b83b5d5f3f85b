"""The arithmetic of the figures: straight lines, exponents, and what a batched step is predicted to gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """``at(x) = start + slope · x``, and the share of the variance that it explains."""

    start: float
    slope: float
    r2: float

    def at(self, x: float) -> float:
        return self.start + self.slope * x


def line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The least-squares line through points at two or more different ``xs``.

    Example:
        >>> line([0, 1, 2], [1, 3, 5])
        Line(start=1.0, slope=2.0, r2=1.0)
    """
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    if spread == 0:
        raise ValueError("a line needs points at two different places")
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    start = mean_y - slope * mean_x
    whole = math.fsum((y - mean_y) ** 2 for y in ys)
    rest = math.fsum((y - start - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return Line(start, slope, 1 - rest / whole if whole else 1.0)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size that the seconds grow with: the slope of the line through the logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 6, 12]), 6)
        1.0
    """
    return line([math.log(s) for s in sizes], [math.log(s) for s in seconds]).slope


def batching_gain(batches: int, rows: int, generate: Mapping[int, float], rest: Line) -> float:
    """Time of ``batches`` steps of ``rows`` responses each, over that of one step with all of them.

    ``generate[n]`` are the seconds that sampling n responses side by side takes, ``rest.at(n)`` the seconds of
    everything else in a step of n responses: so much an update, and so much a response.
    """
    together = batches * rows
    return batches * (generate[rows] + rest.at(rows)) / (generate[together] + rest.at(together))
