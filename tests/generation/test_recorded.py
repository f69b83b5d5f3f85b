"""Decoding in steps of fixed shape: the logits of other ways, the same places at every step, recorded at a change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import FAMILIES, character_tokenizer, prove, prove_engine, tiny
from torch import Tensor

from covrl.generation import recorded as recorded_module
from covrl.generation.decoding import Shared, prefill_shared
from covrl.generation.engine import DecodingPaths, TorchGenerator
from covrl.generation.recorded import Fixed, Step, fixed
from covrl.models.model import LanguageModel

CPU = torch.device("cpu")
PROMPTS = [(5, 6, 7), (8, 9, 10, 11, 12), (5, 6, 7), (13,)]


def proved(family: str) -> Any:
    one = LanguageModel(tiny(family, 48).double())
    assert prove(one) == []
    return one.model


def states(model: Any) -> tuple[Shared, Fixed]:
    """Both ways behind the same prompts; what no token was written to holds NaN, as fresh memory may."""
    _, plain = prefill_shared(model, PROMPTS, CPU)
    _, other = prefill_shared(model, PROMPTS, CPU)
    for keys, values in other.own.values():
        keys[:, :, other.longest :], values[:, :, other.longest :] = float("nan"), float("nan")
    found = fixed(other)
    assert found is not None
    return plain, found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_its_logits_are_those_of_rows_that_grow(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over windows, soft caps, prompts of several lengths, rows that leave, and more tokens than there was room for."""
    model = proved(family)
    plain, other = states(model)
    rows = torch.arange(len(PROMPTS))
    for step in range(70):
        if step == 40:
            rows = torch.tensor([0, 2, 3])
            plain.select(rows)
            other.select(rows)
        tokens = torch.tensor([(7 * step + int(row)) % 48 for row in rows])
        expected, found = plain.advance(model, tokens), other.advance(model, tokens)
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_a_step_is_recorded_where_shapes_change_and_reads_the_same_places_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph repeats kernels on addresses: what a step reads must not move, and running twice must not matter."""
    recordings: list[int] = []

    def twice(step: Step) -> Step:
        recordings.append(taken)
        step()  # as a device does before it records
        return step

    monkeypatch.setattr(recorded_module, "recorded", twice)
    model = proved("llama")
    plain, other = states(model)
    taken, places = 0, set()

    def addresses() -> tuple[int, ...]:
        read = [
            other.tokens,
            other.position,
            other.at,
            *other.masks.values(),
            *(t for b in other.own.values() for t in b),
        ]
        return tuple(t.data_ptr() for t in read)

    for taken in range(70):
        tokens = torch.tensor([(3 * taken + row) % 48 for row in range(4)])
        expected, found = plain.advance(model, tokens), other.advance(model, tokens)
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        places.add(addresses())
    assert recordings == [0, 64], "at the start and where the room was full"
    assert len(places) == 2


@torch.no_grad()
def test_rows_that_read_their_prompt_once_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covrl.generation.decoding.LONG", 1)
    monkeypatch.setattr("covrl.generation.decoding.MANY", 1)
    _, state = prefill_shared(proved("llama"), PROMPTS[:1] * 3, CPU)
    assert state.prompts
    assert fixed(state) is None


class Elsewhere(torch.Tensor):
    """A tensor that says it is on an accelerator."""

    @property
    def is_cuda(self) -> bool:  # ty: ignore[invalid-method-override]
        return True


def on_an_accelerator(engine: TorchGenerator) -> None:
    """Let the engine's look at its weights find them there."""
    parameters = engine.model.parameters
    weight = next(parameters()).detach().as_subclass(Elsewhere)
    engine.model.parameters = lambda *_: iter([weight])


@pytest.mark.parametrize("broken", [False, True])
def test_it_is_taken_on_an_accelerator_where_it_agrees(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchGenerator(proved("llama"), character_tokenizer(), 8)
    assert prove_engine(engine) == []
    assert engine.paths == DecodingPaths(), "a CPU records nothing"
    on_an_accelerator(engine)
    if broken:

        def stale(self: Fixed, window: int | None, dtype: torch.dtype) -> Tensor:
            return torch.zeros(len(self.lengths), 1, 1, self._room, dtype=dtype)

        monkeypatch.setattr(Fixed, "_seen", stale)
    said = prove_engine(engine)
    assert engine.paths == DecodingPaths(recorded=not broken)
    assert len(said) == int(broken)
    assert all("in recorded steps" in line and "launched one by one" in line for line in said)
