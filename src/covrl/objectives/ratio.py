"""Importance ratios and clips, per token."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from covrl.objectives.kl import LARGEST_LOG_RATIO

Level = Literal["token", "sequence"]
"""Whether an importance weight is a token's own or that of its whole sequence."""


def capped(ratio: Tensor, cap: float) -> Tensor:
    """min(ratio, cap), elementwise."""
    return ratio.clamp_max(cap)


def smoothly_capped(ratio: Tensor, cap: float) -> Tensor:
    """The ratio itself up to 1, then bending towards ``cap`` (above 1) without a corner; elementwise.

    1 + (cap−1)·tanh((ratio−1)/(cap−1)) above 1: value and slope are continuous, and it is never above ``cap``.
    """
    room = cap - 1
    return ratio.where(ratio <= 1, 1 + room * ((ratio - 1) / room).tanh())


def doubly_clipped_ratio(log_ratio: Tensor, weight: Tensor, low: float, high: float, dual: float | None) -> Tensor:
    """:func:`clipped_ratio`, with the ratio of negative weights never above ``dual`` (None: no such bound).

    Dual clip (Ye et al., 2020): for w < 0 the objective is max(min(ρw, clip(ρ)w), dual·w).
    """
    bounded = clipped_ratio(log_ratio, weight, low, high)
    return bounded if dual is None else bounded.clamp_max(dual).where(weight < 0, bounded)


def clipped_ratio(log_ratio: Tensor, weight: Tensor, low: float, high: float) -> Tensor:
    """The part of PPO's pessimistic ratio that binds, by the sign of the token's weight; ``[T]`` -> ``[T]``.

    With ρ = exp(log_ratio) and w = ``weight``:   w · clipped_ratio = min(ρ·w, clip(ρ, 1−low, 1+high)·w),
    so that a stream can be summed as weight × value and a token without weight contributes nothing.
    The gradient is zero where the clip binds, as in PPO (Schulman et al., 2017). ``log_ratio`` is held within ±20, as
    in verl (CONFIRMED-code): exp overflows float32 at 89, and 0 · inf is NaN even where the clip binds.
    """
    ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    return ratio.clamp_max(1 + high).where(weight >= 0, ratio.clamp_min(1 - low))


def truncated_importance(trainer: Tensor, sampler: Tensor, cap: float, level: Level = "token") -> Tensor:
    """min(π_trainer / π_sampler, cap) of sampled tokens, from log-probs ``[T]``; constant, ``[T]`` or ``[1]``.

    token: a weight each, from its own ratio (truncated importance sampling, as in Yao et al., 2025). It corrects the
    choice of each token, not the prefixes that the sampler came to. sequence: one weight, from the product of the
    ratios, which corrects everything at the price of variance that grows with the length.
    """
    apart = (trainer - sampler).detach()
    return (apart if level == "token" else apart.sum(dim=-1, keepdim=True)).exp().clamp_max(cap)
