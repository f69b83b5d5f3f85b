"""Rows of a group laid end to end with their prompt once, and the attention that reads them so.

    prompt | trace 1 | trace 2 | … | prompt' | trace 1' | …        one row of N tokens, no padding

Every layer but attention works on single tokens, so it sees each prompt once and no padding. Attention sees each row as
it stands alone: a trace's queries look at its prompt's keys and its own. The log-probs are those of the plain pass;
:func:`covrl.models.proof.prove_scoring` compares them at load.

:mod:`covrl.models.attention` is the function that models call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

Ids = tuple[int, ...]

SHORT = 384
"""Keys up to which attention in bfloat16 on a CPU is spelt out: there the fused kernel's backward pass is slower."""


class Call(NamedTuple):
    """What a layer's attention is besides its tensors: its number, and how it weighs keys.

    ``window``: keys that a query sees, itself included, None for all. ``scaling``: factor of the logits, None for
    1/√D. ``cap`` c: logits become c·tanh(logits / c), as in Gemma 2.
    """

    layer: int
    window: int | None = None
    scaling: float | None = None
    cap: float | None = None

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Queries ``[N, Q, D]`` times keys ``[N, K, D]``, scaled before they are rounded, and capped; ``[N, Q, K]``."""
        scale = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        logits = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=scale)
        if self.cap is None:
            return logits
        return self.cap * torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.cap)


class Place(NamedTuple):
    """Where a row's tokens are in the flat row: token i at ``first + i``, from ``shared`` on at ``rest + i``."""

    first: int
    shared: int
    rest: int

    def __call__(self, token: int) -> int:
        return (self.first if token < self.shared else self.rest) + token


@dataclass(frozen=True)
class Layout:
    """Rows laid end to end; see the module's docstring.

    ``ids`` and ``positions`` are ``[N]``. ``prompts`` ``[F, P]``, ``own`` ``[R, T]`` and ``keys`` ``[R, P + T]`` say
    which flat token stands where when prompts, and rows behind their prompts, are put side by side; -1 is padding.
    ``back`` ``[N]`` is the way back from the two, flattened one behind the other. With ``flex`` attention reads the
    flat row as it is (:mod:`covrl.models.flex`); :meth:`attend` never does.
    """

    ids: Tensor
    positions: Tensor
    prompts: Tensor
    own: Tensor
    keys: Tensor
    back: Tensor
    places: tuple[Place, ...]
    flex: bool = False
    masks: dict[tuple[str, int | None, torch.dtype], Tensor] = field(default_factory=dict)
    blocks: dict[int | None, BlockMask] = field(default_factory=dict)

    def mask(self, queries: str, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where ``prompts`` or ``own`` may look, itself and before, at most ``window`` back, else -inf.

        ``[·, 1, Q, K]``. Padded queries may look at the first key, as a softmax over nothing is not a number.
        """
        if (queries, window, dtype) not in self.masks:
            asking, asked = (self.prompts, self.prompts) if queries == "prompts" else (self.own, self.keys)
            q, k = self.positions[asking.clamp_min(0)][:, :, None], self.positions[asked.clamp_min(0)][:, None, :]
            seen = (k <= q) & (asked >= 0)[:, None, :]
            if window is not None:
                seen &= q - k < window
            seen[:, :, 0] |= (asking < 0) | ~seen.any(-1)
            self.masks[queries, window, dtype] = additive(seen[:, None], dtype)
        return self.masks[queries, window, dtype]

    def rows(self, flat: Tensor) -> Tensor:
        """Tokens ``[1, H, N, D]`` as rows ``[R, H, T, D]`` behind their prompts; padding means nothing."""
        return _side_by_side(flat[0], self.own)

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """A row's tokens see their prompt's and their own, rows side by side: query ``[1, H, N, D]``, key and value
        ``[1, H', N, D]`` -> ``[1, N, H, D]``.
        """
        parts = []
        for name, asking, asked in (("prompts", self.prompts, self.prompts), ("own", self.own, self.keys)):
            if not asking.numel():
                continue
            q, k, v = (_side_by_side(t[0], at) for t, at in ((query, asking), (key, asked), (value, asked)))
            mask = self.mask(name, call.window, q.dtype)
            parts.append(attend_masked(q, k, v, mask, call).transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)[self.back][None]


def lay_out(rows: Sequence[tuple[Ids, int]], device: torch.device, flex: bool = False) -> Layout:
    """Lay out rows of (ids, how many of them are the prompt); a prompt that only one row has is part of that row.

    Example:
        >>> lay_out([((5, 6, 7), 2), ((5, 6, 8), 2)], torch.device("cpu")).ids
        tensor([5, 6, 7, 8])
    """
    prompts = [ids[:shared] for ids, shared in rows]
    several = {p for p in prompts if p and prompts.count(p) > 1}
    first: dict[Ids, int] = {}
    ids: list[int] = []
    positions: list[int] = []
    for prompt in dict.fromkeys(p for p in prompts if p in several):
        first[prompt] = len(ids)
        ids += prompt
        positions += range(len(prompt))
    places = []
    for (row, _), prompt in zip(rows, prompts, strict=True):
        shared = len(prompt) if prompt in first else 0
        places.append(Place(first.get(prompt, 0), shared, len(ids) - shared))
        ids += row[shared:]
        positions += range(shared, len(row))
    before = [range(start, start + len(prompt)) for prompt, start in first.items()]
    own = [range(p.rest + p.shared, p.rest + len(row)) for (row, _), p in zip(rows, places, strict=True)]
    heads = [range(p.first, p.first + p.shared) for p in places]
    tables = [_table(before), _table(own), torch.cat([_table(heads), _table(own)], dim=1)]
    flat = torch.cat([tables[0].flatten(), tables[1].flatten()])
    back = torch.empty(len(ids), dtype=torch.long)
    back[flat[flat >= 0]] = (flat >= 0).nonzero()[:, 0]
    parts = [t.to(device) for t in (torch.tensor(ids), torch.tensor(positions), *tables, back)]
    return Layout(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], tuple(places), flex)


def _table(rows: Sequence[range]) -> Tensor:
    """The ranges as rows, padded with -1; ``[len(rows), longest]``."""
    width = max(map(len, rows), default=0)
    table = [[*row, *([-1] * (width - len(row)))] for row in rows]
    return torch.tensor(table, dtype=torch.long).reshape(len(rows), width)


def _side_by_side(flat: Tensor, table: Tensor) -> Tensor:
    """Tokens ``[H, N, D]`` as rows ``[R, H, L, D]``; what stands in padding means nothing."""
    rows = flat.index_select(1, table.clamp_min(0).flatten())
    return rows.unflatten(1, tuple(table.shape)).transpose(0, 1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to logits: 0 where it is true, else -inf."""
    return (
        mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else mask
    )


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, call: Call) -> Tensor:
    """Queries ``[R, H, Q, D]``, keys and values ``[R, H', K, D]``, an additive mask ``[R, 1, Q, K]``."""
    spelt = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT
    if spelt or call.cap is not None:
        return _spelt(q, k, v, mask, call)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=call.scaling)


def _spelt(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, call: Call) -> Tensor:
    """Query heads that share a key head are one product; few passes over the logits, which are in the given dtype."""
    rows, heads, queries, size = q.shape
    together = (rows * k.shape[1], heads // k.shape[1] * queries, -1)
    logits = call.logits(q.reshape(together), k.flatten(0, 1))
    logits = logits.view(rows, k.shape[1], -1, queries, k.shape[2]).add_(mask[:, :, None])
    weights = torch.softmax(logits, dim=-1).to(v.dtype)
    return torch.bmm(weights.view(together), v.flatten(0, 1)).view(rows, heads, queries, size)


def nothing_masked(device: torch.device) -> Tensor:
    """The attention mask for a forward with an arrangement: of four axes, so that models take it as it is."""
    return torch.zeros(1, 1, 1, 1, device=device)
