"""Per-token penalties that hold a policy π near a reference, from log-probs of sampled tokens (nats).

With d = log π_ref − log π at a token drawn from π. What a term *is* and what its gradient *does* differ (spec A.2, all
derived and checked by enumeration in tests):

    form   value          mean over π        gradient as a loss (samples constant)
    k1     −d             KL(π‖π_ref)        0 in expectation: useless as a loss, right inside the reward
    k2     d²/2           ≈ KL               of the reverse KL(π‖π_ref)
    k3     e^d − d − 1    KL(π‖π_ref)        of the *forward* KL(π_ref‖π): what GRPO, TRL and verl call a reverse KL

``exact`` sums over the vocabulary (:func:`reverse_kl`, :func:`forward_kl`): value and gradient per visited state.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

LARGEST_LOG_RATIO = 20.0
"""Bound on |d| before it is exponentiated, as in verl (CONFIRMED-code)."""


def kl_estimate(policy: Tensor, reference: Tensor, form: Estimator) -> Tensor:
    """The estimator of one token from its log-probs under policy and reference; elementwise."""
    d = reference - policy
    if form == "k1":
        return -d
    if form == "k2":
        return 0.5 * d.square()
    bounded = d.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return bounded.exp() - bounded - 1


def reverse_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(π‖π_ref) over the last axis of normalised log-probs, ``[..., V]`` -> ``[...]``."""
    return (policy.exp() * (policy - reference)).sum(dim=-1)


def forward_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(π_ref‖π) over the last axis of normalised log-probs, ``[..., V]`` -> ``[...]``."""
    return (reference.exp() * (reference - policy)).sum(dim=-1)


def tempered(log_probs: Tensor, power: float) -> Tensor:
    """p^power / Σ p^power as log-probs over the last axis; power 1 is p itself, power 0 the uniform distribution."""
    return log_probs if power == 1.0 else torch.log_softmax(power * log_probs, dim=-1)
