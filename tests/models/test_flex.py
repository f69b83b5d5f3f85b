"""FlexAttention on rows laid end to end: what it sees and gives is what rows side by side see and give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, prove, tiny
from torch import Tensor

from covrl.models import attention, flex, proof
from covrl.models.flex import attend_flex, can_differentiate, segments, trouble_with_flex
from covrl.models.model import LanguageModel
from covrl.models.shared import Call, Layout, lay_out

CPU = torch.device("cpu")
PROMPT = (3, 4, 5, 6, 7)
ROWS = [((*PROMPT, 20, 21), 5), ((8, 9, 30), 2), ((*PROMPT, 23), 5), ((13, 14, 15), 2), ((16, 17), 0)]
rows_of_few = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=3), st.lists(st.integers(4, 9), min_size=1, max_size=4)),
    min_size=1,
    max_size=5,
)


def heads(layout: Layout, queries: int = 4, keys: int = 2) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    shapes = [(1, n, len(layout.ids), 8) for n in (queries, keys, keys)]
    return [torch.randn(shape, generator=made, dtype=torch.float64) for shape in shapes]


@settings(max_examples=60, deadline=None)
@given(rows_of_few, st.sampled_from([None, 1, 2, 3]))
def test_a_query_sees_its_rows_tokens_up_to_itself_and_nothing_else(
    parts: list[tuple[list[int], list[int]]], window: int | None
) -> None:
    """Against the rows themselves: token j of a row is seen from its token i where j <= i, i - j < window."""
    rows = [((*prompt, *rest), len(prompt)) for prompt, rest in parts]
    layout = lay_out(rows, CPU)
    expected = torch.zeros(len(layout.ids), len(layout.ids), dtype=torch.bool)
    for (ids, _), place in zip(rows, layout.places, strict=True):
        for i in range(len(ids)):
            for j in range(i + 1):
                expected[place(i), place(j)] |= window is None or i - j < window
    at = torch.arange(len(layout.ids))
    found = flex.sees(segments(layout), window)(at, at, at[:, None], at[None])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("call", [Call(0), Call(0, window=3), Call(0, cap=0.7), Call(0, scaling=0.2)], ids=str)
@torch.no_grad()
def test_it_gives_what_rows_side_by_side_give(call: Call) -> None:
    layout = lay_out(ROWS, CPU)
    query, key, value = heads(layout)
    found, expected = attend_flex(layout, call, query, key, value), layout.attend(call, query, key, value)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-12
    assert layout.blocks.keys() == {call.window}, "made once for all layers of a window"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_whole_model_gives_the_same_states(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of every family: windows, soft caps and shared key heads come with the model's own calls."""
    calls: list[Call] = []

    def counted(layout: Layout, call: Call, *tensors: Tensor) -> Tensor:
        calls.append(call)
        return attend_flex(layout, call, *tensors)

    monkeypatch.setattr(attention, "attend_flex", counted)
    one = LanguageModel(tiny(family, 48).double())
    assert prove(one) == []
    plain, flat = one.states(ROWS), None
    one.paths = one.paths._replace(flex=True)
    flat = one.states(ROWS)
    assert len({c.layer for c in calls}) == one.model.config.num_hidden_layers
    scale = float(plain.flat.abs().max())
    assert float((flat.flat - plain.flat).abs().max()) < 1e-5 * scale  # norms round to float32


def test_a_device_without_its_backward_pass_is_left_alone() -> None:
    assert not can_differentiate(CPU)
    one = LanguageModel(tiny("llama", 48))
    assert prove(one) == []
    assert not one.paths.flex


def other_mask(parts: Any, window: int | None) -> flex.Mod:
    """A row sees the other rows of its prompt."""
    return lambda _b, _h, q, k: (parts.family[q] == parts.family[k]) & (parts.position[k] <= parts.position[q])


def test_what_is_wrong_with_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (Call(0), (4, 2), 8, torch.float64)
    assert trouble_with_flex(lay_out(ROWS, CPU), *asked) is None
    with monkeypatch.context() as patch:
        patch.setattr(flex, "sees", other_mask)
        assert "differs" in (trouble_with_flex(lay_out(ROWS, CPU), *asked) or "")

    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(flex, "flex_attention", broken)
    assert trouble_with_flex(lay_out(ROWS, CPU), *asked) == "FlexAttention fails (RuntimeError: no such kernel)"


@pytest.mark.parametrize("wrong", [None, "mask"])
def test_a_model_takes_it_or_says_why_not(wrong: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, whose backward pass a CPU has not: outputs alone are compared here."""
    monkeypatch.setattr(proof, "can_differentiate", lambda _: True)
    if wrong:
        monkeypatch.setattr(flex, "sees", other_mask)
    one = LanguageModel(tiny("llama", 48))
    said = prove(one)
    assert one.paths.shared
    assert one.paths.flex == (wrong is None)
    assert len(said) == (1 if wrong else 0)
    assert all("rows are padded for attention" in line for line in said)
