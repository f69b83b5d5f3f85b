"""Attention over rows laid end to end by torch's FlexAttention: no padding, and no copies of a prompt's keys.

The kernel reads the flat row as it is and leaves out blocks of queries and keys that do not see each other, so work
grows with what is seen and not with rows times the longest. It has a backward pass on accelerators alone;
:func:`covrl.models.proof.prove_scoring` takes it where :func:`trouble_with_flex` finds none, and elsewhere
rows are put side by side (:mod:`covrl.models.shared`). On a CPU the same mask and the same call run without
gradients, which is how the tests see them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from covrl.models.shared import Call, Layout

Mod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of (batch, head, query, key), indices as tensors."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-2}
"""Largest difference between both ways, over the largest value, in outputs and gradients; other dtypes: 0.05. Wide in
float32, as accelerators multiply that in fewer digits (TF32); a wrong mask or gradient is apart by far more."""


class Segments(NamedTuple):
    """What a token of the flat row belongs to, ``[N]`` each.

    ``family``: the prompt that it is in or continues; ``row``: its row, -1 in a prompt that several rows have;
    ``position``: how many tokens its row has before it.
    """

    family: Tensor
    row: Tensor
    position: Tensor


def segments(layout: Layout) -> Segments:
    """Read off the layout's tables.

    Example:
        >>> segments(lay_out([((5, 6, 7), 2), ((5, 6, 8), 2)], torch.device("cpu"))).row
        tensor([-1, -1,  0,  1])
    """
    prompts, own, keys = layout.prompts, layout.own, layout.keys
    row = torch.full_like(layout.ids, -1)
    family = torch.full_like(layout.ids, -1)
    _write(row, own, torch.arange(len(own), device=row.device))
    _write(family, prompts, torch.arange(len(prompts), device=row.device))
    first = keys[:, 0]  # of its prompt, or -1 or its own where it shares none
    alone = len(prompts) + torch.arange(len(own), device=row.device)
    inherited = family[first.clamp_min(0)]
    _write(family, own, torch.where((first >= 0) & (inherited >= 0), inherited, alone))
    return Segments(family, row, layout.positions)


def _write(to: Tensor, table: Tensor, values: Tensor) -> None:
    """Set the tokens in row i of the table ``[R, L]`` (-1 is padding) to ``values[i]``."""
    there = table >= 0
    to[table[there]] = values[:, None].expand_as(table)[there]


def sees(parts: Segments, window: int | None) -> Mod:
    """Whether a query sees a key: its prompt's and its own tokens, itself and before, at most ``window`` back."""
    family, row, position = parts

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (family[query] == family[key]) & ((row[key] < 0) | (row[key] == row[query]))
        back = position[query] - position[key]
        return near & (back >= 0) & ((back < window) if window is not None else near)

    return mask


def capped(cap: float) -> Callable[..., Tensor]:
    """The soft cap of Gemma 2 on a logit."""

    def mod(logit: Tensor, *_where: Tensor) -> Tensor:
        return cap * torch.tanh(logit / cap)

    return mod


def attend_flex(layout: Layout, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Query ``[1, H, N, D]``, key and value ``[1, H', N, D]`` -> ``[1, N, H, D]``, as :meth:`Layout.attend`."""
    blocks = layout.blocks.get(call.window)
    if blocks is None:
        layout.blocks[call.window] = blocks = _blocks(layout, call.window)
    attend = _compiled(flex_attention) if query.device.type != "cpu" else flex_attention
    out = attend(
        *(query.contiguous(), key.contiguous(), value.contiguous()),
        score_mod=None if call.cap is None else capped(call.cap),
        block_mask=blocks,
        scale=call.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _blocks(layout: Layout, window: int | None) -> BlockMask:
    length, device = len(layout.ids), layout.ids.device
    make = create_block_mask if device.type == "cpu" else _compiled(create_block_mask)
    return make(sees(segments(layout), window), None, None, length, length, device=device)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once for rows of any length. Uncompiled, both would hold a number for every query and key."""
    return torch.compile(function, dynamic=True)


def can_differentiate(device: torch.device) -> bool:
    """Whether FlexAttention has a backward pass there."""
    return device.type not in ("cpu", "mps", "meta")


def trouble_with_flex(layout: Layout, call: Call, heads: tuple[int, int], size: int, dtype: torch.dtype) -> str | None:
    """Compare outputs and gradients with those of the rows side by side; what is wrong, or None.

    ``heads`` are those of queries and of keys, ``size`` is what each of them has.
    """
    made = torch.Generator().manual_seed(0)
    count, device = len(layout.ids), layout.ids.device
    shapes = [(1, n, count, size) for n in (heads[0], heads[1], heads[1])]
    given = [torch.randn(shape, generator=made).to(device, dtype) for shape in (*shapes, (1, count, heads[0], size))]
    try:
        found = [
            _with_gradients(way, given) for way in (partial(attend_flex, layout, call), partial(layout.attend, call))
        ]
    except Exception as error:  # whatever a device or a build cannot do is said, and the other way is taken
        return f"FlexAttention fails ({type(error).__name__}: {str(error).strip().splitlines()[0][:120]})"
    apart = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)) for a, b in zip(*found, strict=True))
    fine = apart <= TOLERANCE.get(dtype, 0.05)
    return None if fine else f"FlexAttention differs by {apart:.2g} from rows side by side"


def _with_gradients(attend: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The output and, where there is a backward pass, the gradients of queries, keys and values."""
    backward = can_differentiate(given[0].device)
    with torch.set_grad_enabled(backward):
        leaves = [t.clone().requires_grad_(backward) for t in given[:3]]
        out = attend(*leaves)
        gradients = torch.autograd.grad(out, leaves, given[3]) if backward else ()
    return [t.detach().double() for t in (out, *gradients)]
