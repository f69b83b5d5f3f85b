"""Returns and advantages along one trace, from per-token rewards and values. Pure; ``[T]`` in, ``[T]`` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from covrl.precision import wide


def generalised_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE (Schulman et al., arXiv 1506.02438): A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} − V_t; ``[T]``.

    ``rewards[t]`` comes after token t, ``values[t]`` is of the state before it; after the last token the value is 0.
    CONFIRMED in code (OpenAI baselines, TRL, verl). γ = λ = 1 is the return-to-go minus the value.

    Example:
        >>> generalised_advantages(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.7]), 0.95, 0.95)
        tensor([0.6635, 0.5357, 0.3000])
    """
    after = torch.cat([values[1:], values.new_zeros(min(len(values), 1))])
    deltas = (rewards + gamma * after - values).tolist()
    found, ahead = [], 0.0
    for delta in reversed(deltas):
        ahead = delta + gamma * lam * ahead
        found.append(ahead)
    return torch.tensor(found[::-1], dtype=values.dtype, device=values.device)


def return_to_go(rewards: Tensor) -> Tensor:
    """Σ_{u≥t} r_u for each t; ``[T]``."""
    return rewards.flip(0).cumsum(0).flip(0)


def whitened(parts: Sequence[Tensor], epsilon: float = 1e-8) -> Callable[[Tensor], Tensor]:
    """What brings all tokens of ``parts`` to mean 0 and sample deviation 1: x -> (x − mean)/(deviation + ε)."""
    every = torch.cat([wide(part) for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)
    mean = float(every.mean()) if len(every) else 0.0
    deviation = float(every.std()) if len(every) > 1 else 0.0
    return lambda values: (values - mean) / (deviation + epsilon)
