"""The contrast of a right and a wrong hint: which tokens a trace owes to the answer that its prompt shows.

With e_t = log q(z_t|x,y) − log q(z_t|x,y′), y′ a wrong answer in the same words (a foil), and A a trace's advantage

    residual  r_t = λ tanh(e_t / τ)
    credit    A′_t = A + r_t where |r_t| > δ, and 0 where that turns the sign of A;  A elsewhere;  0 for A = 0

(RLCSD, arXiv 2606.11709; CONFIRMED in its code, with τ = 0.02, λ = 0.5, δ = 0.02.) For exact posteriors Σ_t e_t is
log π(y|x,z)/π(y′|x,z) − log p(y|x)/p(y′|x): the answer's log-odds, spread over tokens (VERIFIED). What a hint does to
every token whatever it says, its style, cancels in e_t and does not in log q − log p.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrast_residual(right: Tensor, wrong: Tensor, weight: float, temperature: float) -> Tensor:
    """λ tanh(e/τ) from log-probs ``[T]`` of a trace's tokens with the right and with the wrong hint; ``[T]``."""
    return weight * ((right - wrong) / temperature).tanh()


def contrasted(advantage: float, residual: Tensor, threshold: float, scale: float = 1.0) -> Tensor:
    """A′ of each token, ``[T]``; ``residual`` ``[T]`` is in units of ``scale``, the deviation of a group's advantages.

    Example:
        >>> contrasted(0.2, torch.tensor([0.5, -0.5, 0.0]), threshold=0.02)
        tensor([0.7000, 0.0000, 0.2000])
    """
    value = torch.full_like(residual, advantage)
    moved = value + scale * residual
    kept = moved.where(moved.sign() == value.sign(), 0.0)
    return kept.where(residual.abs() > threshold, value)
