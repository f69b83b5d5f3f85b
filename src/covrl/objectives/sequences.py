"""Sums and means over the tokens of each sequence, where sequences lie one after the other in one long row."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_mean(values: Tensor, owner: Tensor, counted: Tensor | None = None) -> Tensor:
    """Each token gets the mean over its sequence; ``values`` ``[N]``, ``owner`` ``[N]`` (any integers) -> ``[N]``.

    The mean is over the tokens that are ``counted`` ``[N]`` (None: all); 0 for a sequence in which none is.

    Example:
        >>> values, counted = torch.tensor([1.0, 9.0, 3.0, 5.0]), torch.tensor([True, False, True, True])
        >>> sequence_mean(values, torch.tensor([0, 0, 0, 1]), counted)
        tensor([2., 2., 2., 5.])
    """
    _, place = torch.unique(owner, return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    ones = torch.ones_like(values) if counted is None else counted.to(values)
    total = values.new_zeros(count).index_add(0, place, values.where(ones > 0, torch.zeros_like(values)))
    size = values.new_zeros(count).index_add(0, place, ones)
    return (total / size.clamp_min(1.0))[place]


def next_in_sequence(values: Tensor, owner: Tensor) -> Tensor:
    """Each token gets the value of the next token of its sequence, the last one 0; ``[N]`` -> ``[N]``."""
    following = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
    same = torch.cat([owner[1:] == owner[:-1], owner.new_zeros(min(1, len(owner)), dtype=torch.bool)])
    return torch.where(same, following, torch.zeros_like(following))


def between_extremes(values: Tensor, owner: Tensor) -> Tensor:
    """(value − least)/(largest − least) of each token's own sequence, in [0, 1]; ½ where all are equal; ``[N]``.

    Example:
        >>> between_extremes(torch.tensor([0.2, 1.4, 0.8, 3.0]), torch.tensor([0, 0, 0, 1]))
        tensor([0.0000, 1.0000, 0.5000, 0.5000])
    """
    _, place = torch.unique(owner, return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    least = values.new_full((count,), float("inf")).scatter_reduce(0, place, values, "amin")
    room = values.new_full((count,), -float("inf")).scatter_reduce(0, place, values, "amax") - least
    if not count:
        return values
    return torch.where(room[place] > 0, (values - least[place]) / room.clamp_min(1e-30)[place], 0.5)
