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


def states(model: Any, records: bool = True) -> tuple[Shared, Fixed]:
    """Both ways after the same prompts; what no token was written to holds NaN, as fresh memory may."""
    _, plain = prefill_shared(model, PROMPTS, CPU)
    _, other = prefill_shared(model, PROMPTS, CPU)
    for keys, values in other.own.values():
        keys[:, :, other.longest :], values[:, :, other.longest :] = float("nan"), float("nan")
    return plain, fixed(other, PROMPTS, records=records)


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_its_logits_are_those_of_rows_that_grow(
    family: str, apart: bool, records: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over windows, soft caps, prompts of several lengths, rows that leave, and more tokens than there was room for."""
    if apart:
        keep_apart(monkeypatch)
    model = proved(family)
    plain, other = states(model, records)
    assert bool(other.prompts) == apart
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
            other.filled,
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


def keep_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("covrl.generation.decoding.LONG", 1)
    patch.setattr("covrl.generation.decoding.MANY", 0)


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_row_in_the_place_of_another_has_the_logits_of_one_alone(
    family: str, apart: bool, records: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new prompt, another row's, one that nobody has any more, and one of a single token; others go on."""
    if apart:
        keep_apart(monkeypatch)
    model = proved(family)
    _, state = states(model, records)
    rows = [list(prompt) for prompt in PROMPTS]
    coming = {
        3: {1: (20, 21, 22, 23, 24, 25, 26), 3: (5, 6, 7)},
        9: {0: (8, 9, 10, 11, 12), 2: (30,)},
        40: {3: (5, 6, 7), 0: (20, 21, 22, 23, 24, 25, 26), 1: (31, 32)},
    }
    for step in range(80):
        tokens = torch.tensor([(7 * step + 3 * place) % 48 for place in range(len(rows))])
        fresh = coming.get(step, {})
        if fresh:
            state.pause(list(fresh))
            tokens[list(fresh)] = state.refill(model, list(fresh), list(fresh.values()))
        for place, row in enumerate(rows):
            rows[place] = list(fresh[place]) if place in fresh else [*row, int(tokens[place])]
        found = state.advance(model, tokens)
        if step % 13 in (0, 1, 3, 9):  # with both refills and the growth of the room
            for place, row in enumerate(rows):
                expected = model(torch.tensor([row])).logits[0, -1]
                assert float((found[place] - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert len({len(row) for row in rows}) == len(rows), "no two are as long"


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
            return torch.zeros(len(self.base), 1, 1, self._slots_apart + self._width, dtype=dtype)

        monkeypatch.setattr(Fixed, "_seen", stale)
    said = prove_engine(engine)
    assert engine.paths == DecodingPaths(recorded=not broken, refilled=not broken)
    assert [("in recorded steps" in line, "launched one by one" in line) for line in said] == (
        [(True, True), (False, False)] if broken else []
    )
