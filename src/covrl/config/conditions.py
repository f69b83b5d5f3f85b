"""Conditions on a metric, as settings write them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_FORM = re.compile(r"\s*([\w.-]+(?:/[\w.-]+)+)\s*([<>])\s*(\S+)\s*")


class Condition(NamedTuple):
    """One entry of ``guards.stop_when``.

    Example:
        >>> parse_condition("kl/nats_per_token > 2")
        Condition(metric='kl/nats_per_token', above=True, limit=2.0)
    """

    metric: str
    above: bool
    limit: float

    def holds(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit


def parse_condition(text: str) -> Condition:
    """``METRIC > NUMBER`` or ``METRIC < NUMBER``; a metric is named ``family/name``.

    Raises:
        ValueError: anything else.
    """
    found = _FORM.fullmatch(text)
    try:
        limit = float(found[3]) if found else math.nan
    except ValueError:
        limit = math.nan
    if found is None or not math.isfinite(limit):
        raise ValueError(f"{text!r} is not a condition such as 'kl/nats_per_token > 2' or 'entropy/prior < 0.01'")
    return Condition(found[1], found[2] == ">", limit)
