"""Advantages from a group's rewards. Every function sees the whole group."""

from __future__ import annotations

from collections.abc import Sequence


def centred(rewards: Sequence[float]) -> list[float]:
    """R − mean(R), the own reward included, not divided by a deviation.

    CoVRL's advantage (CONFIRMED-2nd, spec 3). Its score term is (G−1)/G of the leave-one-out one (VERIFIED).
    """
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]
