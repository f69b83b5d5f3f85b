"""Rows of a group laid end to end with their prompt once, and the attention that reads them so.

    prompt | trace 1 | trace 2 | … | prompt' | trace 1' | …        one row of N tokens, no padding

Every layer but attention works on single tokens, so it sees each prompt once and no padding. Attention sees each row as
it stands alone: a trace's queries look at its prompt's keys and its own. The log-probs are those of the plain pass;
:meth:`covrl.scoring.model.LanguageModel.prove` compares them at load.

The layout reaches the attention function as an argument of the model's forward. The function stands in
transformers' table of attention functions under a name of ours and hands every other call on to ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

Ids = tuple[int, ...]

NAME = "covrl_shared"
"""The attention function's name in transformers' table; it also works where no layout is given."""

SHORT = 256
"""Keys up to which attention in bfloat16 on a CPU is spelt out: there the fused kernel's backward pass is slower."""


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
    ``back`` ``[N]`` is the way back from the two, flattened one behind the other.
    """

    ids: Tensor
    positions: Tensor
    prompts: Tensor
    own: Tensor
    keys: Tensor
    back: Tensor
    places: tuple[Place, ...]
    masks: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)

    def mask(self, queries: str, window: int | None) -> Tensor:
        """What ``prompts`` or ``own`` may look at, ``[·, 1, Q, K]``: itself and before, at most ``window`` back.

        Padded queries may look at the first key, as a softmax over nothing is not a number.
        """
        if (queries, window) not in self.masks:
            asking, asked = (self.prompts, self.prompts) if queries == "prompts" else (self.own, self.keys)
            q, k = self.positions[asking.clamp_min(0)][:, :, None], self.positions[asked.clamp_min(0)][:, None, :]
            seen = (k <= q) & (asked >= 0)[:, None, :]
            if window is not None:
                seen &= q - k < window
            seen[:, :, 0] |= (asking < 0) | ~seen.any(-1)
            self.masks[queries, window] = seen[:, None]
        return self.masks[queries, window]


def lay_out(rows: Sequence[tuple[Ids, int]], device: torch.device) -> Layout:
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
    return Layout(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], tuple(places))


def _table(rows: Sequence[range]) -> Tensor:
    """The ranges as rows, padded with -1; ``[len(rows), longest]``."""
    width = max(map(len, rows), default=0)
    table = [[*row, *([-1] * (width - len(row)))] for row in rows]
    return torch.tensor(table, dtype=torch.long).reshape(len(rows), width)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    covrl_layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **named: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query ``[1, H, N, D]``, key and value ``[1, H', N, D]`` -> ``[1, N, H, D]``.

    Raises:
        NotImplementedError: the model asks for something that this does not know (:meth:`prove` then gives it up).
    """
    cap = named.get("softcap")
    if covrl_layout is None and cap is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **named)
        return out, None
    if covrl_layout is None:  # which the fused kernel cannot do
        mask = attention_mask if attention_mask is not None else _causal(query.shape[2], key.shape[2], query.device)
        return _attend(query, key, value, mask, scaling, cap).transpose(1, 2), None
    unknown = [name for name in ("s_aux", "position_bias") if named.get(name) is not None]
    if dropout or unknown:
        raise NotImplementedError(f"attention with {unknown or 'dropout'}")
    window, layout, parts = named.get("sliding_window"), covrl_layout, []
    for name, asking, asked in (("prompts", layout.prompts, layout.prompts), ("own", layout.own, layout.keys)):
        if not asking.numel():
            continue
        q, k, v = (_side_by_side(t[0], at) for t, at in ((query, asking), (key, asked), (value, asked)))
        mask = layout.mask(name, window)
        parts.append(_attend(q, k, v, mask, scaling, cap).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[layout.back][None], None


def _side_by_side(flat: Tensor, table: Tensor) -> Tensor:
    """Tokens ``[H, N, D]`` as rows ``[R, H, L, D]``; what stands in padding means nothing."""
    rows = flat.index_select(1, table.clamp_min(0).flatten())
    return rows.unflatten(1, tuple(table.shape)).transpose(0, 1)


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """``[Q, K]``: the last query sees every key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, cap: float | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    spelt = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= SHORT
    if not spelt and cap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    logits = (q @ k.transpose(-1, -2)).float() if q.dtype != torch.float64 else q @ k.transpose(-1, -2)
    logits = logits * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return torch.softmax(logits.masked_fill(~mask, float("-inf")), dim=-1).to(v.dtype) @ v


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
