"""The room of keys and values: how it grows, and that old and new of all layers are never there at once."""

from __future__ import annotations

import weakref

import pytest
import torch
from models import prove, tiny
from torch import Tensor

from covrl.generation.decoding import ROOM, Shared, change_layers, prefill_shared, room_to_add
from covrl.models.model import LanguageModel


@pytest.mark.parametrize(
    ("taken", "most", "more"),
    [(64, 1000, 64), (128, 1000, 128), (512, 1000, 488), (64, 70, 6), (64, 64, 64), (200, 100, 200)],
)
def test_room_doubles_up_to_what_can_still_come(taken: int, most: int, more: int) -> None:
    """Where more come than was said, it doubles again."""
    assert room_to_add(taken, most) == more


def test_layers_change_one_after_the_other() -> None:
    held = {layer: (torch.zeros(4, 2), torch.ones(4, 2)) for layer in range(6)}
    old = [weakref.ref(t) for both in held.values() for t in both]
    alive: list[int] = []

    def change(t: Tensor) -> Tensor:
        alive.append(sum(r() is not None for r in old))
        return t[:2]

    change_layers(held, lambda t: change(t).clone())
    assert alive == [12 - i // 2 * 2 for i in range(12)], "a layer's old pair goes before the next layer changes"
    assert all(k.shape == v.shape == (2, 2) and not k.any() and v.all() for k, v in held.values())


@torch.no_grad()
def test_no_more_room_is_made_than_tokens_may_follow() -> None:
    model = LanguageModel(tiny("llama", 48))
    prove(model)
    _, state = prefill_shared(model.model, [(3, 4, 5)] * 2, torch.device("cpu"), most=ROOM + 7)
    assert isinstance(state, Shared)
    for token in range(ROOM + 6):
        state.advance(model.model, torch.tensor([token % 40, token % 7]))
    assert {k.shape[2] - state.longest for k, _ in state.own.values()} == {ROOM + 7}
