"""Advantages from a group's rewards. Every function sees the whole group."""

from __future__ import annotations

import math
from collections.abc import Sequence

STD_EPSILON = 1e-6
"""Added to a deviation before dividing by it, as in verl; TRL-derived code adds 1e-4 (CONFIRMED-code, both)."""


def centred(rewards: Sequence[float]) -> list[float]:
    """R − mean(R), the own reward included, not divided by a deviation.

    CoVRL's advantage (CONFIRMED-2nd, spec 3). Its score term is (G−1)/G of the leave-one-out one (VERIFIED).
    """
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Reward minus the mean of the others, G/(G−1)·(R − mean): unbiased (RLOO). A group of one has nothing to compare.

    Example:
        >>> leave_one_out([1.0, 0.0, 0.0])
        [1.0, -0.5, -0.5]
    """
    if len(rewards) == 1:
        return [0.0]
    factor = len(rewards) / (len(rewards) - 1)
    return [factor * value for value in centred(rewards)]


def standardised(rewards: Sequence[float], epsilon: float = STD_EPSILON) -> list[float]:
    """(R − mean)/(std + ε) with the sample deviation, as GRPO divides (CONFIRMED-code, verl); alone: 0."""
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    values = centred(rewards)
    deviation = math.sqrt(sum(v * v for v in values) / (len(values) - 1))
    return [v / (deviation + epsilon) for v in values]
