"""Weights on their way to an engine: what is left is gone through, and what cannot be put together is said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from covrl.errors import EngineError, OutOfMemoryError
from covrl.generation.handover import handed_over, layer_of


def parts(made: list[int], full_at: int = 9) -> Iterator[int]:
    for number in range(5):
        if number == full_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made.append(number)
        yield number


def test_what_an_engine_leaves_is_gone_through() -> None:
    """Other ranks put each weight together with this one."""
    for left in (0, 2, 5):
        made: list[int] = []
        with handed_over(parts(made)) as given:
            for _ in range(left):
                next(given)
        assert made == [0, 1, 2, 3, 4]
    made = []

    def refuse() -> None:
        with handed_over(parts(made)) as given:
            next(given)
            raise EngineError("refused")

    with pytest.raises(EngineError, match="refused"):
        refuse()
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("taken", [True, False])
def test_memory_that_runs_out_while_a_weight_is_put_together_is_said(taken: bool) -> None:
    """And not what the engine makes of it: its rank ends alone, as the others cannot be reached."""

    def hand_over() -> None:
        with handed_over(parts([], full_at=3)) as given:
            try:
                list(given) if taken else None
            except torch.OutOfMemoryError as error:
                raise EngineError("cannot take the new weights") from error

    with pytest.raises(OutOfMemoryError) as said:
        hand_over()
    assert str(said.value).startswith("CUDA out of memory: no room for a weight on its way to the engine, ")
    assert "\n" not in str(said.value)


def test_weights_of_a_block_belong_together() -> None:
    names = {
        "transformer.h.11.mlp.c_fc.weight": "transformer.h.11",
        "model.layers.0.mlp.experts.3.up.weight": "model.layers.0",
    }
    names |= {"lm_head.weight": "lm_head", "model.norm.weight": "model.norm"}
    assert {name: layer_of(name) for name in names} == names
