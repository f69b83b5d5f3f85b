"""The attention function of models whose rows are arranged: laid end to end (shared prompts), or decoded from a cache.

The arrangement reaches the function as an argument of the model's forward. The function stands in transformers' table
of attention functions under a name of ours and hands every other call on to ``sdpa``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from covrl.models.flex import attend_flex
from covrl.models.shared import Call, Layout, additive, attend_masked

NAME = "covrl_shared"
"""The attention function's name in transformers' table; it also works where no layout is given."""


class Arrangement(Protocol):
    """How the tokens of one flat row see each other."""

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query ``[1, H, N, D]``, key and value ``[1, H', N, D]`` -> ``[1, N, H, D]``."""
        ...


def arranged(arrangement: Arrangement, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The arrangement's own attention, or FlexAttention for a layout made for it. Shapes as :class:`Arrangement`."""
    if isinstance(arrangement, Layout) and arrangement.flex:
        return attend_flex(arrangement, call, query, key, value)
    return arrangement.attend(call, query, key, value)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    covrl_layout: Arrangement | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **named: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query ``[1, H, N, D]``, key and value ``[1, H', N, D]`` -> ``[1, N, H, D]``.

    Raises:
        NotImplementedError: the model asks for something that this does not know (the proof at load then gives it up).
    """
    cap = named.get("softcap")
    if covrl_layout is None and cap is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **named)
        return out, None
    query, key, value = (_as_computed(t) for t in (query, key, value))
    if covrl_layout is None:  # which the fused kernel cannot do
        mask = attention_mask if attention_mask is not None else _causal(query.shape[2], key.shape[2], query.device)
        out = attend_masked(query, key, value, additive(mask, query.dtype), Call(-1, None, scaling, cap))
        return out.transpose(1, 2), None
    unknown = [name for name in ("s_aux", "position_bias") if named.get(name) is not None]
    if dropout or unknown:
        raise NotImplementedError(f"attention with {unknown or 'dropout'}")
    call = Call(module.layer_idx, named.get("sliding_window"), scaling, cap)
    return arranged(covrl_layout, call, query, key, value), None


def _as_computed(t: Tensor) -> Tensor:
    """In autocast's dtype where that is on: rotations leave queries and keys in float32 there."""
    kind = t.device.type
    return t.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else t


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """``[1, 1, Q, K]``: the last query sees every key."""
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
