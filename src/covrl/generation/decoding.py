"""Batched decoding: the state between two tokens, in three forms.

:class:`Shared` has a buffer for the keys and values of a row's own tokens, and stores those of a long prompt with many
rows only once. :class:`Padded` is transformers' cache, with each row's prompt in it. :class:`Replay` has no cache
and reads whole rows again. All have ``select`` and ``advance``; which of them work for a model is checked when it is
loaded (:meth:`covrl.generation.engine.TorchGenerator.prove`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache as remembered
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache

from covrl.models.attention import arranged
from covrl.models.shared import Call, Layout, additive, lay_out, nothing_masked

ROOM = 64
"""Initial size of a row's buffer for keys and values, in tokens; it doubles when it is full, up to ``most``."""

SHRINK_BELOW = 0.75
"""Share of unfinished rows below which the finished ones are removed from the batch."""

LONG, MANY = 128, 4
"""Prompts of at least this many tokens, with more than this many rows each, are not copied to their rows: above these
sizes reading them once is faster (measured on a CPU), and memory grows only with the rows' own tokens."""


def change_layers(held: dict[int, tuple[Tensor, Tensor]], change: Callable[[Tensor], Tensor]) -> None:
    """Replace each layer's keys and values by changed ones, one layer after the other.

    Old and new of all layers at once would take twice the memory.
    """
    for layer in held:
        keys, values = held[layer]
        held[layer] = (change(keys), change(values))


class Decoding(Protocol):
    """Rows between two tokens. Finished rows are removed when fewer than ``shrink_below`` of the rows are
    unfinished."""

    shrink_below: ClassVar[float]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows ``[B']``, in this order."""
        ...

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        """Feed one token per row, ``[B]``; next-token logits ``[B, V]``."""
        ...


def room_to_add(taken: int, most: int) -> int:
    """Slots to add when ``taken`` own tokens have filled the buffer: as many again, or as many as can still come."""
    more = max(ROOM, taken)
    return min(more, most - taken) if taken < most else more


def attend_rows(call: Call, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """One token per row over the row's own keys: ``[B, H', g, D]`` and ``[B, H', K, D]`` -> ``[B, H', g, D]``.

    ``mask`` is added to the logits.
    """
    if call.cap is None:
        return scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=call.scaling)
    logits = call.logits(rows.flatten(0, 1), keys.flatten(0, 1)).unflatten(0, rows.shape[:2])
    return torch.softmax(logits if mask is None else logits + mask, dim=-1).to(values.dtype) @ values


@dataclass(frozen=True, slots=True)
class Siblings:
    """Which rows continue which of F prompts, so that a prompt's keys are read once for all its rows.

    ``members`` ``[F, G]`` are the rows of each prompt, with any row where there are fewer than G, and ``place`` ``[B]``
    where a row is in it, flattened.
    """

    members: Tensor
    place: Tensor

    @staticmethod
    def of(prompt: Tensor) -> Siblings:
        """Of rows that continue the prompts ``prompt`` ``[B]``, each of which has a row."""
        order = torch.argsort(prompt, stable=True)
        counts = torch.bincount(prompt)
        rank = torch.arange(len(prompt), device=prompt.device) - (counts.cumsum(0) - counts)[prompt[order]]
        width = int(counts.max())
        members = prompt.new_zeros(len(counts), width)
        members[prompt[order], rank] = order
        place = torch.empty_like(prompt)
        place[order] = prompt[order] * width + rank
        return Siblings(members, place)

    def by_prompt(self, rows: Tensor) -> Tensor:
        """``[B, H', g, X]`` as ``[F·H', G·g, X]``."""
        _, _, group, width = rows.shape
        return rows[self.members].transpose(1, 2).reshape(-1, self.members.shape[1] * group, width)

    def by_row(self, together: Tensor, group: int) -> Tensor:
        """``[F·H', G·g, X]`` as ``[B, H', g, X]``."""
        prompts, width = self.members.shape
        split = together.view(prompts, -1, width, group, together.shape[-1])
        return split.transpose(1, 2).flatten(0, 1)[self.place]

    def attend(
        self, call: Call, rows: Tensor, prompts: Sequence[Tensor], own: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """One token per row ``[B, H', g, D]`` over its prompt's keys and its own, under one softmax; the same shape.

        Keys and values of prompts ``[F, H', P, D]`` and of rows ``[B, H', K, D]``; ``mask`` is added to the logits
        ``[B, H', g, P + K]``.
        """
        group, longest = rows.shape[2], prompts[0].shape[2]
        before = self.by_row(call.logits(self.by_prompt(rows), prompts[0].flatten(0, 1)), group)
        after = call.logits(rows.flatten(0, 1), own[0].flatten(0, 1)).unflatten(0, rows.shape[:2])
        logits = torch.cat([before, after], dim=-1)
        weights = torch.softmax(logits if mask is None else logits + mask, dim=-1).to(own[1].dtype)
        before, after = weights.split([longest, own[0].shape[2]], dim=-1)
        out = self.by_row(torch.bmm(self.by_prompt(before), prompts[1].flatten(0, 1)), group)
        return out + torch.bmm(after.flatten(0, 1), own[1].flatten(0, 1)).unflatten(0, rows.shape[:2])


@dataclass(slots=True)
class Shared:
    """Rows that continue prompts: row i continues prompt ``of[i]`` and has ``taken`` tokens of its own.

    ``prompts[layer]`` are keys and values ``[F, H', P, D]``, ``lengths`` ``[F]`` how many of the P are a prompt's;
    ``own[layer]`` are keys and values ``[B, H', room, D]`` of the rows' own tokens. If prompts are short or have few
    rows each, ``prompts`` is empty, and each prompt is at the beginning of its rows' own slots, P slots long.
    ``room`` is the initial number of slots for own tokens, ``most`` the largest.
    """

    prompts: dict[int, tuple[Tensor, Tensor]]
    lengths: Tensor
    of: Tensor
    room: int = ROOM
    most: int = sys.maxsize
    own: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    taken: int = 0
    siblings: Siblings = field(init=False)
    longest: int = field(init=False)
    ragged: bool = field(init=False)
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    decodes = True
    shrink_below: ClassVar[float] = SHRINK_BELOW

    def __post_init__(self) -> None:
        self.longest = next(iter(self.prompts.values()))[0].shape[2]
        self._arrange()

    def _arrange(self) -> None:
        """Record which rows continue which prompt, and free prompts that no row continues."""
        used, of = torch.unique(self.of, return_inverse=True)
        if len(used) < len(self.lengths):
            change_layers(self.prompts, lambda t: t[used])
            self.lengths = self.lengths[used]
        self.of = of
        self.ragged = bool((self.lengths < self.longest).any())
        if self.prompts and (self.longest < LONG or len(of) <= MANY * len(used)):
            self._copy_prompts()
        self.siblings = Siblings.of(of)

    def _copy_prompts(self) -> None:
        """Put each row's prompt before its own tokens."""
        end = self.longest + self.taken
        for layer in list(self.prompts):
            shared, own = self.prompts.pop(layer), self.own.get(layer)
            room = self.longest + (own[0].shape[2] if own else self.room)
            rows = [t.new_empty(len(self.of), t.shape[1], room, t.shape[3]) for t in shared]
            for i, (row, prompt) in enumerate(zip(rows, shared, strict=True)):
                row[:, :, : self.longest] = prompt[self.of]
                if own:
                    row[:, :, self.longest : end] = own[i][:, :, : self.taken]
            self.own[layer] = (rows[0], rows[1])

    @property
    def _filled(self) -> int:
        """Filled slots of the rows' own keys and values."""
        return self.taken + (0 if self.prompts else self.longest)

    def select(self, rows: Tensor) -> None:
        change_layers(self.own, lambda t: t[rows])
        self.of = self.of[rows]
        self._arrange()

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        self.masks.clear()
        out = model(
            input_ids=tokens[None],
            attention_mask=nothing_masked(tokens.device),
            position_ids=(self.lengths[self.of] + self.taken)[None],
            use_cache=False,
            covrl_layout=self,
        )
        self.taken += 1
        return out.logits[0]

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One token per row: query ``[1, H, B, D]``, its key and value ``[1, H', B, D]`` -> ``[1, B, H, D]``.

        Query heads that share a key head are adjacent, ``[B, H', g, D]``.
        """
        (_, heads, batch, size), shared = query.shape, key.shape[1]
        rows = query[0].transpose(0, 1).reshape(batch, shared, heads // shared, size)
        own = [t[:, :, : self._filled + 1] for t in self._keep(call.layer, key, value)]
        window = call.window if call.window is not None and call.window <= self.longest + self.taken else None
        mask = self._mask(window, rows.dtype) if self.ragged or window is not None else None
        if self.prompts:
            out = self.siblings.attend(call, rows, self.prompts[call.layer], own, mask)
        else:
            out = attend_rows(call, rows, own[0], own[1], mask)
        return out.reshape(1, batch, heads, size)

    def _keep(self, layer: int, *fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Write the token's key and value after the rows' own; return both with all earlier ones."""
        held = self.own.get(layer)
        at = self._filled
        if held is None or at == held[0].shape[2]:
            more = self.room if held is None else room_to_add(self.taken, self.most)
            wider = [t.new_zeros(t.shape[2], t.shape[1], more, t.shape[3]) for t in fresh]
            both = wider if held is None else [torch.cat(pair, dim=2) for pair in zip(held, wider, strict=True)]
            held = self.own[layer] = (both[0], both[1])
        for kept, t in zip(held, fresh, strict=True):
            kept[:, :, at] = t[0].transpose(0, 1)
        return held

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the logits ``[B, H', g, P + taken + 1]``: -inf after a prompt's end and before a window."""
        if (window, dtype) not in self.masks:
            lengths = self.lengths[self.of][:, None]
            slots = torch.arange(self.longest + self.taken + 1, device=lengths.device)[None]
            own = slots >= self.longest
            seen = own | (slots < lengths)
            if window is not None:
                position = torch.where(own, slots - self.longest + lengths, slots)
                seen &= lengths + self.taken - position < window
            self.masks[window, dtype] = additive(seen[:, None, None], dtype)
        return self.masks[window, dtype]


@dataclass(slots=True)
class _Prefill:
    """Concatenated prompts, and their keys and values, ``[F, H', P, D]`` by layer."""

    layout: Layout
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    decodes = True

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.kept[call.layer] = (self.layout.rows(key), self.layout.rows(value))
        return arranged(self.layout, call, query, key, value)


def read_prompts(
    model: Any, prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """Next-token logits ``[F, V]`` after these prompts, and their keys and values ``[F, H', P, D]`` by layer."""
    layout = lay_out([(ids, 0) for ids in prompts], device)
    reading = _Prefill(layout)
    last = torch.tensor([p(len(ids) - 1) for p, ids in zip(layout.places, prompts, strict=True)], device=device)
    out = model(
        input_ids=layout.ids[None],
        attention_mask=nothing_masked(device),
        position_ids=layout.positions[None],
        use_cache=False,
        logits_to_keep=last,
        covrl_layout=reading,
    )
    return out.logits[0], reading.kept


def prefill_shared(
    model: Any, prompts: Sequence[tuple[int, ...]], device: torch.device, most: int = ROOM
) -> tuple[Tensor, Shared]:
    """Next-token logits ``[B, V]`` after each prompt, and the state; each distinct prompt is read once.

    ``most`` is how many tokens may follow, which limits the buffer.
    """
    distinct = {ids: i for i, ids in enumerate(dict.fromkeys(prompts))}
    logits, kept = read_prompts(model, list(distinct), device)
    of = torch.tensor([distinct[ids] for ids in prompts], device=device)
    lengths = torch.tensor([len(ids) for ids in distinct], device=device)
    return logits[of], Shared(kept, lengths, of, min(ROOM, most), most)


@dataclass(slots=True)
class Padded:
    """transformers' cache, padding mask ``[B, past]`` (None where no row is padded) and next position ``[B]``."""

    cache: DynamicCache
    mask: Tensor | None
    position: Tensor
    shrink_below: ClassVar[float] = SHRINK_BELOW

    def select(self, rows: Tensor) -> None:
        choose(self.cache, rows)
        self.mask = None if self.mask is None else self.mask[rows]
        self.position = self.position[rows]

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        out = model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            use_cache=True,
            **{cache_keyword(type(model)): self.cache},
        )
        self.position = self.position + 1
        return out.logits[:, -1]


def choose(cache: Any, rows: Tensor) -> None:
    """Keep these rows ``[B']`` of a cache, each as often as it is named.

    Uses the one method that states of linear attention and state-space models have too.
    """
    cache.reorder_cache(rows)


@remembered
def cache_keyword(model: type[Any]) -> str:
    """The name of the cache argument in a model class's forward: transformers renamed it, some models have the old
    name.

    Example:
        >>> cache_keyword(LlamaForCausalLM)
        'cache'
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def prefill_padded(model: Any, prompts: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Padded]:
    """As :func:`prefill_shared`; prompts are padded on the left, and each row gets a copy of its prompt's cache."""
    distinct = {ids: i for i, ids in enumerate(dict.fromkeys(prompts))}
    width = max(map(len, distinct))
    pads = torch.tensor([width - len(ids) for ids in distinct], device=device)
    filled = [(0,) * (width - len(ids)) + ids for ids in distinct]
    mask = (torch.arange(width, device=device)[None] >= pads[:, None]).long()
    cache = DynamicCache(config=model.config)
    out = model(
        input_ids=torch.tensor(filled, device=device),
        attention_mask=mask if bool(pads.any()) else None,
        position_ids=(torch.arange(width, device=device)[None] - pads[:, None]).clamp_min(0),
        use_cache=True,
        logits_to_keep=1,
        **{cache_keyword(type(model)): cache},
    )
    rows = torch.tensor([distinct[ids] for ids in prompts], device=device)
    choose(cache, rows)
    state = Padded(cache, mask[rows] if bool(pads.any()) else None, width - pads[rows])
    return out.logits[rows, -1], state


@dataclass(slots=True)
class Replay:
    """Decoding without a cache: the whole rows ``[B, L]`` are read again for every token."""

    ids: Tensor
    shrink_below: ClassVar[float] = SHRINK_BELOW

    def select(self, rows: Tensor) -> None:
        self.ids = self.ids[rows]

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        return model(input_ids=self.ids, use_cache=False).logits[:, -1]
