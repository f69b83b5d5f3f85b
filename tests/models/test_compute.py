"""Mixed precision keeps wide weights and agrees with itself; recomputed activations change nothing but the work."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
import torch
from models import character_tokenizer, prove_engine, save_tiny, tiny

from covrl.config import ModelConfig
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator
from covrl.models import compute
from covrl.models.compute import (
    blocks,
    compute_in_bfloat16,
    emulated_note,
    faster_note,
    recompute_activations,
    weights_ready,
)
from covrl.models.copies import frozen_copy
from covrl.models.model import LanguageModel, load_model, resolve_dtype
from covrl.records import Request
from covrl.scoring.head import apply_head, log_prob

FAMILIES = ["qwen2", "gpt2", "gemma2"]
ROWS = [tuple(range(3, 23)), tuple(range(40, 50))]


def load(folder: Path, family: str, dtype: str) -> LanguageModel:
    save_tiny(family, folder / family)
    return load_model(ModelConfig.model_validate({"path": str(folder / family), "device": "cpu", "dtype": dtype}))[0]


def log_probs(model: LanguageModel) -> torch.Tensor:
    hidden = model.hidden(ROWS)[0, :-1]
    targets = torch.tensor(ROWS[0][1:])
    return apply_head(log_prob, [hidden], targets, [model.projection()], chunk=4)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_precision_is_bfloat16_on_float32_weights(tmp_path: Path, family: str) -> None:
    wide, mixed = load(tmp_path, family, "float32"), load(tmp_path, family, "mixed")
    assert mixed.given_up == []
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    assert mixed.model(input_ids=torch.tensor([ROWS[0]])).logits.dtype == torch.bfloat16
    found, exact = log_probs(mixed), log_probs(wide)
    assert found.dtype == torch.float32
    assert 1e-5 < float((found - exact).detach().abs().max()) < 0.5
    found.sum().backward()
    exact.sum().backward()
    for a, b in zip(mixed.parameters(), wide.parameters(), strict=True):
        assert a.grad is not None
        assert a.grad.dtype == torch.float32
        if b.grad is not None and b.grad.norm() > 1e-3:
            assert float((a.grad - b.grad).norm() / b.grad.norm()) < 0.2


def test_mixed_precision_samples_from_what_it_scores(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen2", "mixed")
    engine = TorchGenerator(model.model, character_tokenizer(), 8)
    assert prove_engine(engine) == []
    (rollout,) = engine.generate([Request("p", 0, ROWS[0], "prior")], Sampling(12, "~~"), Draw(0, 0))
    row = ROWS[0] + rollout.trace_ids
    hidden = model.hidden([row])[0, len(ROWS[0]) - 1 : -1]
    scored = apply_head(log_prob, [hidden], torch.tensor(rollout.trace_ids), [model.projection()], chunk=64)[0]
    assert float((scored.detach() - torch.tensor(rollout.log_probs)).abs().max()) < 0.2


def test_a_small_update_reaches_the_weights(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen2", "mixed")
    weight = model.model.get_output_embeddings().weight
    before = weight.detach().clone()
    log_probs(model).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-6).step()
    moved = (weight.detach() - before)[weight.grad.abs() > 0.5]
    assert len(moved)
    assert bool((moved != 0).all())


def test_copies_compute_as_their_model_does_with_their_own_weights(tmp_path: Path) -> None:
    model = load(tmp_path, "qwen2", "mixed")
    recompute_activations(model.model)
    copied = frozen_copy(model)
    assert torch.equal(log_probs(copied), log_probs(model))
    with torch.no_grad():
        for p in copied.model.parameters():
            p.mul_(0.5)
    assert not torch.equal(log_probs(copied), log_probs(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradient(family: str) -> None:
    plain = LanguageModel(tiny(family, 97).double())
    again = LanguageModel(copy.deepcopy(plain.model))
    recompute_activations(again.model)
    calls = [0]
    attention = next(m for m in blocks(again.model)[0].modules() if "Attention" in type(m).__name__)
    attention.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    first, second = log_probs(plain), log_probs(again)
    assert torch.equal(first, second)
    assert calls == [1]
    first.sum().backward()
    second.sum().backward()
    assert calls == [2]
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_made_ready_give_what_the_model_gives_and_are_put_back(family: str, mixed: bool) -> None:
    """With the casts kept and the weights packed; frozen ones too, and behind an error."""
    model = tiny(family) if mixed else tiny(family).to(torch.bfloat16)
    if mixed:
        compute_in_bfloat16(model)
    frozen = next(model.parameters()).requires_grad_(False)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        plain = model(ids).logits
    with contextlib.suppress(KeyError), weights_ready(model):
        ready = model(ids).logits
        raise KeyError
    assert float((ready - plain).abs().max()) <= 0.0625 * max(4.0, float(plain.abs().max()))
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)
    assert not any("forward" in m.__dict__ for m in model.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain)


def test_weights_of_float32_are_left_as_they_are() -> None:
    model = tiny("llama")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        plain = model(ids).logits
    with weights_ready(model):
        assert torch.equal(model(ids).logits, plain)


def test_without_the_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_can_pack", lambda: False)
    model = tiny("llama").to(torch.bfloat16)
    with weights_ready(model):
        assert not any("forward" in m.__dict__ for m in model.modules())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 units")
def test_with_bfloat16_units_linear_layers_are_packed() -> None:
    model = tiny("llama").to(torch.bfloat16)
    with weights_ready(model):
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        assert all("forward" in layer.__dict__ for layer in layers)


@pytest.mark.parametrize("units", [(False, False), (True, False), (False, True)])
def test_bfloat16_without_units_for_it_is_noted(units: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that says which units it has; elsewhere nothing is known and nothing said."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name, has in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), units, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda has=has: has)
    cpu = torch.device("cpu")
    for dtype in ("mixed", "bfloat16"):
        assert ("set model.dtype = float32" in (emulated_note(dtype, cpu) or "")) == (units == (False, False))
        assert faster_note(dtype, cpu) is None
    assert ("model.dtype = mixed" in (faster_note("float32", cpu) or "")) == (units != (False, False))
    assert emulated_note("float32", cpu) is faster_note("float32", torch.device("meta")) is None
    assert emulated_note("mixed", torch.device("meta")) is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert emulated_note("mixed", cpu) is faster_note("float32", cpu) is None


def test_the_dtype_is_chosen_by_the_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = ModelConfig(path="unused")
    assert auto.dtype == "auto"
    monkeypatch.setattr("covrl.models.model.resolve_device", lambda name: torch.device(name))
    chosen = {d: resolve_dtype(auto.model_copy(update={"device": d})).dtype for d in ("cpu", "cuda", "mps")}
    assert chosen == {"cpu": "float32", "cuda": "mixed", "mps": "mixed"}
    for dtype in ("float32", "mixed", "bfloat16", "float64"):
        set_ = ModelConfig(path="unused", device="cuda", dtype=dtype)
        assert resolve_dtype(set_) is set_
