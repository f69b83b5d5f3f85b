"""Mixed precision keeps wide weights and agrees with itself; recomputed activations change nothing but the work."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from models import character_tokenizer, tiny

from covrl.config import ModelConfig
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator
from covrl.records import Request
from covrl.scoring.compute import blocks, recompute_activations
from covrl.scoring.head import apply_head, log_prob
from covrl.scoring.model import LanguageModel, load_model
from covrl.training.models import frozen_copy

FAMILIES = ["qwen2", "gpt2", "gemma2"]
ROWS = [tuple(range(3, 23)), tuple(range(40, 50))]


def load(folder: Path, family: str, dtype: str) -> LanguageModel:
    tokenizer = character_tokenizer()
    tiny(family, len(tokenizer)).save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
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
    assert engine.prove() == []
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
