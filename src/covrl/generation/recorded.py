"""Decoding in steps of fixed shape, which a device records once and repeats.

A small model on an accelerator waits for its operations to be launched one by one, token after token. Here every tensor
of a step has the same shape and the same address as in the step before: the buffers of keys and values are large enough
for the tokens to come, and unused slots are masked. A CUDA device records such a step as a graph and launches it as a
whole. On other devices the same steps run without recording, as in the tests.

A step is recorded again when the shapes change: when rows are removed from the batch, or the buffer is full.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from covrl.generation.decoding import Shared, attend_rows, change_layers, room_to_add
from covrl.models.shared import Call, additive, nothing_masked

Step = Callable[[], Tensor]


@dataclass(slots=True)
class Fixed:
    """Rows decoded in steps of fixed shape.

    ``own[layer]`` are keys and values ``[B, H', room, D]``: ``longest`` slots for a row's prompt, of which its own
    takes the first ``lengths`` ``[B]``, then one for each token that was ``taken``, of at most ``most``. ``tokens`` and
    ``position`` ``[B]`` are the input of the next step, ``at`` ``[1]`` is the slot that it writes, and ``masks``
    ``[B, 1, 1, room]``, by window and dtype, the slots that it may attend to.
    """

    own: dict[int, tuple[Tensor, Tensor]]
    lengths: Tensor
    longest: int
    most: int = sys.maxsize
    taken: int = 0
    tokens: Tensor = field(init=False)
    position: Tensor = field(init=False)
    at: Tensor = field(init=False)
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
        self.tokens, self.position = torch.zeros_like(self.lengths), torch.zeros_like(self.lengths)
        self.at = self.lengths.new_zeros(1)

    @property
    def _room(self) -> int:
        return next(iter(self.own.values()))[0].shape[2]

    def select(self, rows: Tensor) -> None:
        self.step = None  # before its tensors are freed
        change_layers(self.own, lambda t: t[rows])
        self.lengths = self.lengths[rows]
        self._place()

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        if self.longest + self.taken == self._room:
            self._widen(room_to_add(self.taken, self.most))
        self.tokens.copy_(tokens)
        self.position.copy_(self.lengths + self.taken)
        self.at.fill_(self.longest + self.taken)
        for (window, _), mask in self.masks.items():
            mask.copy_(self._seen(window, mask.dtype))
        if self.step is None:
            self.step = recorded(lambda: self._forward(model))
        logits = self.step()
        self.taken += 1
        return logits

    def _widen(self, more: int) -> None:
        def wider(t: Tensor) -> Tensor:
            return torch.cat([t, t.new_zeros(*t.shape[:2], more, t.shape[3])], dim=2)

        self.step = None
        change_layers(self.own, wider)
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
        own = self.own[call.layer]
        for kept, fresh in zip(own, (key, value), strict=True):
            kept.index_copy_(2, self.at, fresh[0].transpose(0, 1)[:, :, None].to(kept.dtype))
        if (call.window, rows.dtype) not in self.masks:
            self.masks[call.window, rows.dtype] = self._seen(call.window, rows.dtype)
        out = attend_rows(call, rows, own[0], own[1], self.masks[call.window, rows.dtype])
        return out.reshape(1, batch, heads, size)

    def _seen(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the logits ``[B, 1, 1, room]``: -inf at empty slots and before the window."""
        slots, lengths = torch.arange(self._room, device=self.lengths.device)[None], self.lengths[:, None]
        own = slots >= self.longest
        position = torch.where(own, slots - self.longest + lengths, slots)
        now = lengths + self.taken
        seen = (own | (slots < lengths)) & (position <= now)
        if window is not None:
            seen &= now - position < window
        return additive(seen[:, None, None], dtype)


def fixed(state: Shared) -> Fixed | None:
    """The state after reading the prompts, for steps of fixed shape; None if rows share prompts' keys."""
    if state.prompts or state.taken:
        return None
    for kept in (t for both in state.own.values() for t in both):
        kept[:, :, state.longest :] = 0  # unwritten memory may hold NaN, and 0 * NaN is not 0
    return Fixed(state.own, state.lengths[state.of], state.longest, state.most)


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
