"""The linear layers of a frozen base in 4 bits a weight (NF4 of QLoRA, Dettmers et al., arXiv 2305.14314).

A weight is one of 16 values, quantiles of a normal distribution, times the scale of its block: the largest magnitude of
up to 64 weights of a row. Two weights share a byte, and a scale is float32: 4.5 bits a weight. None of it is trained. A
pass makes a layer's matrix when it is its turn, in the dtype of its input, and once more in the backward pass.

The same files give the same codes on every start, so codes are in no checkpoint. It is torch's own operations on any
device; kernels that multiply codes without making the matrix, as bitsandbytes has, would be faster for single tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from covrl.models.blockwise import in_blocks, in_rows
from covrl.models.text import trunk

BLOCK = 64
"""Weights that share a scale, at most."""


@cache
def values() -> Tensor:
    """The 16 values, ascending, float32: 8 quantiles above 0, 0 itself, and 7 below; the outermost are -1 and 1."""
    outermost = 0.9677083  # half a step inside of the distribution, on average of both sides; CONFIRMED (its code)
    sides = [torch.special.ndtri(torch.linspace(outermost, 0.5, n, dtype=torch.float64))[:-1] for n in (9, 8)]
    found = torch.cat([-sides[1], torch.zeros(1, dtype=torch.float64), sides[0].flip(0)])
    return (found / found.max()).float()


def codes_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes of ``weight`` [R, C], two in a byte [R, C/2], and the scales [R, blocks], float32."""
    blocks = in_blocks(weight.float(), BLOCK)
    scales = blocks.abs().amax(-1).clamp_(min=torch.finfo(torch.float32).tiny)
    table = values().to(weight.device)
    codes = torch.bucketize(blocks / scales[..., None], (table[1:] + table[:-1]) / 2, out_int32=True)
    codes = in_rows(codes, weight.shape[1]).to(torch.uint8)
    return codes[:, 0::2] * 16 + codes[:, 1::2], scales


def weight_of(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix [R, C] of :func:`codes_of`, computed in float32."""
    table = values().to(codes.device)
    pairs = torch.cartesian_prod(table, table)  # [256, 2]: what each byte stands for
    width = 2 * codes.shape[1]
    blocks = in_blocks(pairs[codes.int()].view(len(codes), width), BLOCK)
    return in_rows(blocks * scales[..., None], width).to(dtype)


class FourBitLinear(nn.Linear):
    """A linear layer whose ``weight`` is codes, with ``scales`` beside it; ``dtype`` is what the weights were."""

    dtype: torch.dtype
    scales: nn.Parameter

    @classmethod
    def of(cls, linear: nn.Linear) -> FourBitLinear:
        """The layer in 4 bits; its bias stays what it is."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features, made.dtype = linear.in_features, linear.out_features, linear.weight.dtype
        codes, scales = codes_of(linear.weight.detach())
        made.weight = nn.Parameter(codes, requires_grad=False)
        made.scales = nn.Parameter(scales, requires_grad=False)
        made.bias = linear.bias
        return made.train(linear.training)

    def whole(self) -> nn.Linear:
        """A plain layer with the weights that this one computes with."""
        made = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        made.weight = nn.Parameter(weight_of(self.weight, self.scales, self.dtype), requires_grad=False)
        made.bias = self.bias
        return made.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        found = _Product.apply(input, self.weight, self.scales)
        return found if self.bias is None else found + self.bias.to(found.dtype)


class _Product(torch.autograd.Function):
    """``input`` times the transposed matrix; what is kept for the backward is codes, and no input."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return input @ weight_of(codes, scales, input.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (gradient,) = grads
        return gradient @ weight_of(*ctx.saved_tensors, gradient.dtype), None, None


def quantise(model: Any) -> int:
    """Put the linear layers of a model's trunk into 4 bits, one after the other; how many weights they have.

    Left as they are: embedding, output layer, norms, and layers whose rows have an odd number of weights or that are no
    ``nn.Linear`` (GPT-2's, fused experts).
    """
    head, count = model.get_output_embeddings(), 0
    for owner in list(trunk(model).modules()):
        for name, layer in list(owner.named_children()):
            if type(layer) is nn.Linear and layer is not head and not layer.in_features % 2:
                setattr(owner, name, FourBitLinear.of(layer))
                count += layer.weight.numel()
    return count


def dequantise(model: Any) -> None:
    """Undo :func:`quantise`, but for the rounding."""
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, FourBitLinear):
                setattr(owner, name, layer.whole())


def packed(model: nn.Module) -> list[FourBitLinear]:
    """The layers in 4 bits."""
    return [module for module in model.modules() if isinstance(module, FourBitLinear)]
