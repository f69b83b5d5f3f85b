"""What is observed of the distribution that a token is drawn from: entropy and likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from covrl.errors import UserError
from covrl.generation.trace import NOTHING, Seen
from covrl.precision import wide
from covrl.records import Observe, Request

Look = Callable[[int, Tensor], None]
"""Called with the first row's number and the log-probs ``[B', V]`` of some rows that are drawn from at once."""


def look(log_probs: Tensor, wanted: Sequence[Observe]) -> list[Seen]:
    """What is ``wanted`` of each row of ``log_probs`` ``[B, V]`` (nats, −inf for what cannot be drawn).

    Rows of which nothing is wanted cost nothing. The entropy −Σ p log p is summed in float64 where the device has it.
    """
    found = [NOTHING] * len(wanted)
    entropies = _entropies(log_probs, [i for i, w in enumerate(wanted) if w.entropy])
    tops = _tops(log_probs, {i: w.top_k for i, w in enumerate(wanted) if w.top_k})
    for i in entropies.keys() | tops.keys():
        found[i] = Seen(entropies.get(i, math.nan), *tops.get(i, ((), ())))
    return found


def _entropies(log_probs: Tensor, rows: Sequence[int]) -> dict[int, float]:
    if not rows:
        return {}
    probs = wide(_rows(log_probs, rows)).exp_()
    return dict(zip(rows, torch.special.entr(probs).sum(-1).tolist(), strict=True))


def _tops(log_probs: Tensor, most: dict[int, int]) -> dict[int, tuple[tuple[int, ...], tuple[float, ...]]]:
    if not most:
        return {}
    values, ids = _rows(log_probs, list(most)).topk(max(most.values()), dim=-1)
    both = zip(most.items(), ids.tolist(), values.tolist(), strict=True)
    return {row: (tuple(i[:k]), tuple(v[:k])) for (row, k), i, v in both}


def _rows(log_probs: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of some rows."""
    return log_probs[torch.tensor(rows, device=log_probs.device)]


def refuse_what_cannot_be_observed(requests: Sequence[Request], engine: str, entropy: bool, most: int) -> None:
    """Before anything is sampled: whether the engine can observe what each request asks for.

    ``entropy`` and ``most`` are what it can do: exact entropies, and how many likeliest tokens.

    Raises:
        UserError: it cannot; names engine, field and remedy.
    """
    for request in requests:
        if request.observe.entropy and not entropy:
            raise UserError(
                f"generation.engine: {engine} gives no exact entropy (Request.observe.entropy); set "
                "generation.engine = torch, or observe top_k instead"
            )
        if request.observe.top_k > most:
            raise UserError(
                f"generation.engine: {engine} gives at most the {most} likeliest tokens, and Request.observe.top_k is "
                f"{request.observe.top_k}; set it to {most} or less"
            )
