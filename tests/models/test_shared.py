"""Rows laid end to end with their prompt read once: the layout, and log-probs and gradients of the plain pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, prove, tiny
from torch import Tensor

from covrl.models.compute import compute_in_bfloat16, recompute_activations
from covrl.models.model import LanguageModel
from covrl.models.shared import lay_out

TOLERANCE = {"gpt2": 1e-10}
"""Its norms keep float64; the others' round to float32, which two ways of summing carry to about 1e-6."""


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest value where that is above 1."""
    return float((found - expected).detach().abs().max()) / max(float(expected.detach().abs().max()), 1.0)


Rows = list[tuple[tuple[int, ...], int]]

PROMPT, OTHER = (3, 4, 5, 6, 7, 8, 9), (11, 12)
ROWS: Rows = [
    ((*PROMPT, 20, 21, 22), 7),
    ((*OTHER, 30), 2),
    ((*PROMPT, 23), 7),
    ((*OTHER, 31, 32, 33, 34, 35, 36, 37, 38), 2),
    ((13, 14, 15), 2),  # a prompt that no other row has
    ((16, 17), 0),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(4, 9), min_size=1, max_size=4)),
        min_size=1,
        max_size=6,
    )
)
def test_every_token_is_where_its_place_says_and_common_prompts_stand_once(
    parts: list[tuple[list[int], list[int]]],
) -> None:
    rows: Rows = [((*prompt, *rest), len(prompt)) for prompt, rest in parts]
    layout = lay_out(rows, torch.device("cpu"))
    for (ids, _), place in zip(rows, layout.places, strict=True):
        assert [int(layout.ids[place(i)]) for i in range(len(ids))] == list(ids)
        assert [int(layout.positions[place(i)]) for i in range(len(ids))] == list(range(len(ids)))
    prompts = [ids[:shared] for ids, shared in rows]
    saved = sum(len(p) * (prompts.count(p) - 1) for p in set(prompts))
    assert len(layout.ids) == sum(len(ids) for ids, _ in rows) - saved
    assert sorted(layout.back.tolist()) == sorted(set(layout.back.tolist()))


def log_probs(model: LanguageModel, rows: Rows) -> list[Tensor]:
    """Of each row's tokens after the first."""
    flat, places = model.states(rows)
    logs = torch.log_softmax(model.projection()(flat), dim=-1)
    return [
        logs[[place(i) for i in range(len(ids) - 1)]].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        for (ids, _), place in zip(rows, places, strict=True)
    ]


def both(own: Any) -> tuple[LanguageModel, LanguageModel]:
    """A model that reads rows end to end, and its twin that pads them."""
    shared, plain = LanguageModel(own), LanguageModel(copy.deepcopy(own))
    assert prove(shared) == []
    assert shared.paths.shared
    assert not plain.paths.shared
    return shared, plain


def gradients(model: LanguageModel, rows: Rows) -> list[Tensor | None]:
    weights = torch.linspace(-1.0, 2.0, sum(len(ids) - 1 for ids, _ in rows), dtype=torch.float64)
    (torch.cat(log_probs(model, rows)).double() * weights).sum().backward()
    return [p.grad for p in model.model.parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_padded_rows(family: str) -> None:
    shared, plain = both(tiny(family).double())
    tolerance = TOLERANCE.get(family, 2e-5)
    for found, expected in zip(log_probs(shared, ROWS), log_probs(plain, ROWS), strict=True):
        assert apart(found, expected) <= tolerance
    for found, expected in zip(gradients(shared, ROWS), gradients(plain, ROWS), strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert apart(found, expected) <= tolerance


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[4:], [ROWS[0]] * 3])
def test_one_row_no_common_prompt_and_equal_rows(rows: Rows) -> None:
    shared, plain = both(tiny("llama").double())
    for found, expected in zip(log_probs(shared, rows), log_probs(plain, rows), strict=True):
        assert apart(found, expected) <= 2e-5


def test_activations_that_are_computed_again_use_the_same_layout() -> None:
    own = tiny("qwen2").double()
    shared, plain = both(own)
    recompute_activations(shared.model)
    for found, expected in zip(gradients(shared, ROWS), gradients(plain, ROWS), strict=True):
        assert found is not None
        assert expected is not None
        assert apart(found, expected) <= 2e-5


def test_bfloat16_spells_attention_out_and_stays_within_its_rounding() -> None:
    own = tiny("qwen2").float()
    shared, plain = LanguageModel(copy.deepcopy(own)), LanguageModel(own)
    compute_in_bfloat16(shared.model)
    assert prove(shared) == []
    for found, expected in zip(log_probs(shared, ROWS), log_probs(plain, ROWS), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=0.1)


def test_a_model_whose_attention_asks_for_more_reads_each_row_alone() -> None:
    own = tiny("llama")
    for layer in own.base_model.layers:
        inner = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, inner=inner, **k: inner(*a, **k, s_aux=torch.zeros(1))
    before = own.config._attn_implementation
    model = LanguageModel(own)
    notes = prove(model)
    assert "it cannot be computed where rows share a prompt (NotImplementedError" in notes[0]
    assert not model.paths.shared
    assert model.model.config._attn_implementation == before


def test_the_name_of_the_attention_is_not_written_into_a_saved_model(tmp_path: Any) -> None:
    shared, _ = both(tiny("llama"))
    shared.model.save_pretrained(tmp_path)
    assert "covrl" not in (tmp_path / "config.json").read_text()
