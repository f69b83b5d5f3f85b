"""Rewards from the likelihood of the reference answer, log p(y | x, z): no verifier needed."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Form = Literal["sum", "mean", "prob", "mean_prob"]

FLOOR_NATS = -30.0
FLOOR_TOKENS = 16


def reward_floor(tokens: int, floor: float = FLOOR_NATS) -> float:
    """The least Σ log p that counts, in nats: ``floor`` up to 16 answer tokens, lower in proportion beyond.

    INFERRED (spec 9.5.3): a sum has no lower limit, and one very bad trace would determine the group's mean. With
    a fixed floor all long answers, whose sums are far below −30, would be equal and have no signal.
    """
    return floor * max(1.0, tokens / FLOOR_TOKENS)


def is_floored(log_probs: Tensor, floor: float = FLOOR_NATS) -> bool:
    """Whether the answer's Σ log p, from its per-token log-probs ``[A]``, is at or below the floor."""
    return float(log_probs.sum()) <= reward_floor(len(log_probs), floor)


def answer_reward(log_probs: Tensor, form: Form, floor: float = FLOOR_NATS) -> float:
    """The reward of one trace from its answer's per-token log-probs ``[A]``, closing tag included.

    ``floor``, in nats, is that of :func:`reward_floor`.

    ``sum``        Σ log p in nats, floored: the ELBO's unit, so that β = 1 keeps its meaning (INFERRED default)
    ``mean``       the floored sum / A, in nats per token: for long answers, with β divided likewise
    ``prob``       exp Σ log p (VeriFree's form)
    ``mean_prob``  mean of p over tokens (RLPR's form)

    That several forms were tried is CONFIRMED-2nd, which ones is not known (spec 3).
    """
    if form == "mean_prob":
        return float(log_probs.exp().mean())
    total = float(log_probs.sum())
    if form == "prob":
        return math.exp(total)
    floored = max(total, reward_floor(len(log_probs), floor))
    return floored if form == "sum" else floored / len(log_probs)
