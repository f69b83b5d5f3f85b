"""How much a step on some tokens moves the log-prob of others, through the output layer alone.

A gradient step on log π(y) at hidden state h moves the output layer by (onehot(y) − π) hᵀ. Its inner product with
another token's is that token's first-order change, ⟨g, g'⟩⟨h, h'⟩ with g = onehot(y) − π (catalogue 3.5; THR, arXiv
2510.03669). Summed over the tokens of some responses it is one matrix M, and a token's influence g'ᵀ M h'.
"""

from __future__ import annotations

import torch
from torch import Tensor


def residuals(log_probs: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """onehot(y) − π at the tokens ``known``, ``[n, K]``, of log-probs over the vocabulary ``[n, V]``.

    ``targets`` ``[n]`` are the tokens y, all of them in ``known`` ``[K]``, which is sorted. π is not normalised again.
    """
    found = -log_probs[:, known].exp()
    return found.scatter_add(1, torch.searchsorted(known, targets)[:, None], found.new_ones(len(targets), 1))


def step_on_output(gradients: Tensor, hidden: Tensor, weight: float) -> Tensor:
    """weight · Σ_n g_n h_nᵀ, ``[K, D]``: what a step on these tokens does to the output layer's rows."""
    return weight * gradients.T @ hidden


def influence(gradients: Tensor, hidden: Tensor, step: Tensor) -> Tensor:
    """g_nᵀ M h_n of each token, ``[n]``: the first-order change of its log-prob after the ``step`` ``[K, D]``."""
    return ((gradients @ step) * hidden).sum(dim=1)
