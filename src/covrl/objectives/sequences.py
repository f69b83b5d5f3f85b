"""Sums and means over the tokens of each sequence, where sequences lie one after the other in one long row."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_mean(values: Tensor, owner: Tensor) -> Tensor:
    """Each token gets the mean over its sequence; ``values`` ``[N]``, ``owner`` ``[N]`` (any integers) -> ``[N]``."""
    _, place = torch.unique(owner, return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    total = values.new_zeros(count).index_add(0, place, values)
    size = values.new_zeros(count).index_add(0, place, torch.ones_like(values))
    return (total / size)[place]


def next_in_sequence(values: Tensor, owner: Tensor) -> Tensor:
    """Each token gets the value of the next token of its sequence, the last one 0; ``[N]`` -> ``[N]``."""
    following = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
    same = torch.cat([owner[1:] == owner[:-1], owner.new_zeros(min(1, len(owner)), dtype=torch.bool)])
    return torch.where(same, following, torch.zeros_like(following))
