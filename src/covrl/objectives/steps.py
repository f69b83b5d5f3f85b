"""Numbers of reasoning steps: what refines the scores of a process reward model, and advantages between states."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def clipped_scores(scores: Sequence[float], threshold: float) -> list[float]:
    """min(p_k − η, 0): a step can only lose, and most lose nothing, so that more steps earn no more.

    Example:
        >>> clipped_scores([0.9, 0.7, 0.8, 0.95], 0.9)
        [0.0, -0.2, -0.1, 0.0]
    """
    return [min(score - threshold, 0.0) for score in scores]


def score_differences(scores: Sequence[float], keep_last: bool = True) -> list[float]:
    """p_k − p_{k+1}; the last step keeps p_K, or has 0. The sum from step k on is then p_k, or p_k − p_K.

    Example:
        >>> score_differences([0.9, 0.7, 0.8, 0.95])
        [0.2, -0.1, -0.15, 0.95]
    """
    if not scores:
        return []
    return [now - after for now, after in pairwise(scores)] + [scores[-1] * keep_last]


def step_advantages(values: Sequence[float], reward: float) -> list[float]:
    """V(s_{k+1}) − V(s_k) of each step k, with the reward after the last: γ = 1, no value after the end.

    ``values[k]`` is of the state before step k. The advantages sum to reward − V(s_0).

    Example:
        >>> step_advantages([0.5, 0.75, 0.25], 1.0)
        [0.25, -0.5, 0.75]
    """
    ahead = [*values[1:], reward]
    return [after - now for now, after in zip(values, ahead, strict=True)]
