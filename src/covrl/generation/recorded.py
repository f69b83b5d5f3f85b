"""Decoding in places that stay where they are: finished rows are replaced, and a device can record a step.

While prompts wait, the place of a finished row is given to the next one, so that as many rows as fit are decoded all
the time: a step costs about as much for a few rows as for many.

A small model on an accelerator waits for its operations to be launched one by one, token after token. Where steps are
recorded, every tensor of a step has the same shape and the same address as in the step before: the buffers of keys and
values are large enough for the tokens to come, and unused slots are masked. A CUDA device records such a step as a
graph and launches it as a whole. A step is recorded again when the shapes change: when rows are removed from the batch,
prompts that are kept apart come or go, or the buffer is full. On other devices the same steps run without recording, as
in the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from covrl.generation.decoding import Shared, Siblings, attend_rows, change_layers, read_prompts, room_to_add
from covrl.models.shared import Call, Ids, additive, nothing_masked

Step = Callable[[], Tensor]


@dataclass(slots=True)
class Fixed:
    """Rows in places of their own, each with as many tokens as it has.

    ``own[layer]`` are keys and values ``[B, H', room, D]``, of which a row has ``filled`` ``[B]``; ``limit`` is the
    largest room that it may need. Row i continues the prompt ``ids[i]``, which is at the beginning of its slots. With
    ``prompts[layer]`` ``[F, H', P, D]``, those of ``known``, prompts are kept apart: row i continues the first
    ``base[i]`` tokens of prompt ``of[i]``, and its slots have what follows. Else ``base`` is 0.

    ``fullest`` is the largest of ``filled``. ``tokens`` and ``position`` ``[B]`` are the input of the next step, and
    ``masks``, by window and dtype, say which slots it may attend to, ``[B, 1, 1, P + room]``. Unless a device
    ``records`` the step, slots that no row has are left out.
    """

    own: dict[int, tuple[Tensor, Tensor]]
    base: Tensor
    filled: Tensor
    ids: list[Ids]
    limit: int = sys.maxsize
    records: bool = True
    prompts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    known: list[Ids] = field(default_factory=list)
    of: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    fullest: int = field(init=False)
    rows: Tensor = field(init=False)
    tokens: Tensor = field(init=False)
    position: Tensor = field(init=False)
    siblings: Siblings | None = None
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    step: Step | None = None
    decodes = True
    shrink_below: ClassVar[float] = 0.5
    """Rows are removed less often than elsewhere, because each time a step has to be recorded again."""

    def __post_init__(self) -> None:
        self._place()

    def _place(self) -> None:
        """New tensors for the input of a step, and no recorded step."""
        self.step = None
        self.masks = {}
        self.fullest = int(self.filled.max())
        self.rows = torch.arange(len(self.filled), device=self.filled.device)
        self.tokens, self.position = torch.zeros_like(self.filled), torch.zeros_like(self.filled)
        if self.prompts:
            used, self.of = torch.unique(self.of, return_inverse=True)
            if len(used) < len(self.known):
                change_layers(self.prompts, lambda t: t[used])
                self.known = [self.known[i] for i in used.tolist()]
            self.siblings = Siblings.of(self.of)

    @property
    def _room(self) -> int:
        return next(iter(self.own.values()))[0].shape[2]

    @property
    def _width(self) -> int:
        """Slots that a step attends to."""
        return self._room if self.records else self.fullest + 1

    def select(self, rows: Tensor) -> None:
        self.step = None  # before its tensors are freed
        change_layers(self.own, lambda t: t[rows])
        self.base, self.filled = self.base[rows], self.filled[rows]
        self.of = self.of[rows] if self.prompts else self.of
        self.ids = [self.ids[i] for i in rows.tolist()]
        self._place()

    def pause(self, places: Sequence[int]) -> None:
        """Let the rows in these places, which have finished, take no further slots: they go back to their prompts."""
        at = torch.tensor(places, device=self.filled.device)
        lengths = [0 if self.prompts else len(self.ids[i]) for i in places]
        self.filled[at] = torch.tensor(lengths, device=self.filled.device)
        self.fullest = int(self.filled.max())

    def refill(self, model: Any, places: Sequence[int], prompts: Sequence[Ids]) -> Tensor:
        """Rows that continue ``prompts`` take the places of others; the tokens to feed to them next, ``[R]``.

        All but the last token of each prompt is read here, or taken from a row that continues the same prompt.
        """
        device, there = self.filled.device, self.known if self.prompts else self.ids
        fresh = [p for p in dict.fromkeys(prompts) if len(p) > 1 and p not in there]
        kept = read_prompts(model, [p[:-1] for p in fresh], device)[1] if fresh else {}
        at = torch.tensor(places, device=device)
        before = torch.tensor([len(p) - 1 for p in prompts], device=device)
        every = [*there, *fresh]
        source = torch.tensor([every.index(p) if p in every else 0 for p in prompts], device=device)
        if self.prompts:
            self.step = None  # before its tensors are freed
            for layer, more in kept.items():
                keys, values = (_stacked(*both) for both in zip(self.prompts[layer], more, strict=True))
                self.prompts[layer] = (keys, values)
            self.known, self.of[at] = every, source
            self.base[at], self.filled[at] = before, 0
        else:
            self._widen(max(map(len, prompts)) - self._room)
            self._copy(at, source, max(map(len, prompts)) - 1, kept)
            self.filled[at] = before
        for place, prompt in zip(places, prompts, strict=True):
            self.ids[place] = prompt
        if self.prompts:
            self._place()
        self.fullest = int(self.filled.max())
        return torch.tensor([p[-1] for p in prompts], device=device)

    def _copy(self, at: Tensor, source: Tensor, longest: int, kept: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Put prompts into the places ``at`` ``[R]``: from row ``source`` ``[R]``, or behind the rows from ``kept``."""
        old, new = source < len(self.ids), source >= len(self.ids)
        for layer, both in self.own.items():
            for i, slots in enumerate(both):
                slots[at[old], :, :longest] = slots[source[old], :, :longest]  # before its row is another's
                if layer in kept:
                    read = kept[layer][i]
                    slots[at[new], :, : read.shape[2]] = read[source[new] - len(self.ids)].to(slots.dtype)

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        if self.fullest == self._room:
            self._widen(room_to_add(self._room, self.limit))
        self.tokens.copy_(tokens)
        self.position.copy_(self.base + self.filled)
        if not self.records:
            self.masks.clear()
        for (window, _), mask in self.masks.items():
            mask.copy_(self._seen(window, mask.dtype))
        if self.step is None:
            step = lambda: self._forward(model)  # noqa: E731
            self.step = recorded(step) if self.records else step
        logits = self.step()
        self.filled += 1
        self.fullest += 1
        return logits

    def _widen(self, more: int) -> None:
        if more <= 0:
            return
        self.step = None
        change_layers(self.own, lambda t: pad(t, (0, 0, 0, more)))
        self._place()

    def _forward(self, model: Any) -> Tensor:
        out = model(
            input_ids=self.tokens[None],
            attention_mask=nothing_masked(self.tokens.device),
            position_ids=self.position[None],
            use_cache=False,
            covrl_layout=self,
        )
        return out.logits[0]

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One token per row: query ``[1, H, B, D]``, its key and value ``[1, H', B, D]`` -> ``[1, B, H, D]``."""
        (_, heads, batch, size), shared = query.shape, key.shape[1]
        rows = query[0].transpose(0, 1).reshape(batch, shared, heads // shared, size)
        for kept, fresh in zip(self.own[call.layer], (key, value), strict=True):
            kept[self.rows, :, self.filled] = fresh[0].transpose(0, 1).to(kept.dtype)
        own = [t[:, :, : self._width] for t in self.own[call.layer]]
        if (call.window, rows.dtype) not in self.masks:
            self.masks[call.window, rows.dtype] = self._seen(call.window, rows.dtype)
        mask = self.masks[call.window, rows.dtype]
        if self.siblings is None:
            out = attend_rows(call, rows, own[0], own[1], mask)
        else:
            out = self.siblings.attend(call, rows, self.prompts[call.layer], own, mask)
        return out.reshape(1, batch, heads, size)

    def _seen(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the logits: -inf after a row's tokens, after its prompt, and before the window."""
        base, filled = self.base[:, None], self.filled[:, None]
        apart = torch.arange(self._slots_apart, device=base.device)[None]
        own = torch.arange(self._width, device=base.device)[None]
        seen = torch.cat([apart < base, own <= filled], dim=1)
        if window is not None:
            seen &= base + filled - torch.cat([apart.expand(len(base), -1), base + own], dim=1) < window
        return additive(seen[:, None, None], dtype)

    @property
    def _slots_apart(self) -> int:
        return next(iter(self.prompts.values()))[0].shape[2] if self.prompts else 0


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    """``[F, H', P, D]`` and ``[F', H', P', D]`` as ``[F + F', H', max(P, P'), D]``."""
    longest = max(first.shape[2], second.shape[2])
    return torch.cat([pad(t, (0, 0, 0, longest - t.shape[2])) for t in (first, second)])


def _room_for(prompts: Tensor, rows: int, room: int) -> Tensor:
    """``[B, H', room, D]``, empty, beside prompts ``[F, H', P, D]``."""
    return prompts.new_zeros(rows, prompts.shape[1], room, prompts.shape[3])


def fixed(state: Shared, ids: Sequence[Ids], limit: int = sys.maxsize, records: bool = True) -> Fixed:
    """The state after reading the prompts ``ids``, one a row, for rows in fixed places."""
    assert not state.taken, "before anything is decoded"
    lengths = state.lengths[state.of]
    if state.prompts:
        rooms = {i: [_room_for(t, len(ids), state.room) for t in both] for i, both in state.prompts.items()}
        own = {layer: (keys, values) for layer, (keys, values) in rooms.items()}
        known = list(dict.fromkeys(ids))
        return Fixed(own, lengths, torch.zeros_like(lengths), list(ids), limit, records, state.prompts, known, state.of)
    for kept in (t for both in state.own.values() for t in both):
        kept[:, :, state.longest :] = 0  # unwritten memory may hold NaN, and 0 * NaN is not 0
    return Fixed(state.own, torch.zeros_like(lengths), lengths, list(ids), limit, records)


def recorded(step: Step) -> Step:
    """The step as a graph that is launched as a whole on a CUDA device; on others the step itself.

    It must read and write the same tensors every time, and running it twice must not change the result: it runs once
    before it is recorded, so that one-time initialisation of kernels is not recorded.
    """
    if not torch.cuda.is_available():
        return step
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        on_graph = step().is_cuda
    here.wait_stream(aside)
    if not on_graph:
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
