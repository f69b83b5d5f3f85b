"""From hidden states to logits: the output layer with what belongs to it, apart from the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Projection:
    """From hidden states to logits: ``softcap(h Wᵀ + b)``, in float32 or wider; without a weight, h are logits already.

    ``softcap`` c means c·tanh(logits / c), as in Gemma 2. The temperature divides the logits last, so that scores
    are those of the distribution that was sampled.
    """

    weight: Tensor | None  # [V, D]
    bias: Tensor | None = None  # [V]
    softcap: float | None = None
    temperature: float = 1.0
    dtype: torch.dtype | None = None  # of the product, if not the weights' own

    def __call__(self, hidden: Tensor) -> Tensor:
        ready = self.prepared()
        return ready.logits(ready.product(hidden))

    def product(self, hidden: Tensor, into: Tensor | None = None) -> Tensor:
        """``h Wᵀ + b`` of what is :meth:`prepared`; h itself without a weight. ``into`` is a :meth:`buffer` for it."""
        if self.weight is None:
            return hidden
        wide = hidden.to(self.weight.dtype)
        if into is None:
            return torch.nn.functional.linear(wide, self.weight, self.bias)
        out, turned = into[: len(hidden)], self.weight.T
        return torch.mm(wide, turned, out=out) if self.bias is None else torch.addmm(self.bias, wide, turned, out=out)

    def buffer(self, rows: int) -> Tensor | None:
        """Room for products of so many rows, ``[rows, V]``: memory that is asked for anew has to be made first."""
        return None if self.weight is None else self.weight.new_empty(rows, len(self.weight))

    def logits(self, product: Tensor) -> Tensor:
        """What follows the product: wide, capped, over the temperature."""
        logits = product if product.dtype == torch.float64 else product.float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def prepared(self) -> Projection:
        """With weight and bias in the dtype of the product: cast once, and not for every chunk."""
        if self.dtype is None or self.weight is None:
            return self
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return replace(self, weight=self.weight.to(self.dtype), bias=bias)
