"""Weights without those of tokens that the policy did not write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def written_only(weight: Tensor, written: Sequence[bool] | None) -> Tensor:
    """``weight`` ``[T]`` with 0 at tokens that were put into a trace by others; ``written`` ``[T]`` None: unchanged.

    Such a token's weight is replaced and not multiplied, so that one that is not finite goes too.

    Example:
        >>> written_only(torch.tensor([0.5, 0.5, 0.5]), (True, False, True))
        tensor([0.5000, 0.0000, 0.5000])

    Raises:
        ValueError: they are of different lengths.
    """
    if written is None:
        return weight
    if weight.shape != (len(written),):
        raise ValueError(f"a weight of shape {list(weight.shape)} for a trace of {len(written)} tokens")
    mask = torch.tensor(written, dtype=torch.bool, device=weight.device)
    return torch.where(mask, weight, torch.zeros_like(weight))


def written_part(values: Tensor, written: Sequence[bool] | None) -> Tensor:
    """The ``values`` ``[T]`` of the tokens that the policy wrote, for statistics over a batch's tokens.

    Example:
        >>> written_part(torch.tensor([1.0, 9.0, 3.0]), (True, False, True))
        tensor([1., 3.])
    """
    return values if written is None else values[torch.tensor(written, dtype=torch.bool, device=values.device)]
