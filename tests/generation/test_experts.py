"""A tiny mixture of experts: trained for some steps, with what its routers do to the sampler's log-probs measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import torch
from models import character_tokenizer
from projects import LETTERS
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from covrl import api
from covrl.generation.handover import layers_of
from covrl.records import Problem

PROBLEMS = [Problem(f"p{i}", f"{i}+{i}=?", str(2 * i)) for i in range(4)]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of four experts, of which a token goes to two."""
    folder, tokenizer = tmp_path_factory.mktemp("experts"), character_tokenizer()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(folder: Path, engine: str) -> dict[str, Any]:
    return {
        "model": {"path": str(folder), "device": "cpu"},
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 10, "max_answer_tokens": 4, "engine": engine, "rows_per_pass": 16},
        "training": {
            "steps": 3,
            "problems_per_step": 2,
            "rollouts_per_problem": 4,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "tokens_per_pass": 500,
        },
    }


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_experts_are_trained_and_the_sampler_is_measured(
    engine: str, experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that another expert reads has another log-prob, which is what the sampler's gap shows."""
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)  # ty: ignore
    trained = api.train(settings(experts, engine), PROBLEMS, out=tmp_path / "run")
    assert len(trained.reports) == 3
    before, after = (dict(Qwen3MoeForCausalLM.from_pretrained(p).named_parameters()) for p in (experts, trained.last))
    for name in before:
        assert "k_norm" in name or not torch.equal(before[name], after[name]), name
    for report in trained.reports:
        assert report.metrics["sampler/gap_max"] < 1e-3
        assert report.metrics["guard/publish_gap"] < 1e-3


def test_experts_are_handed_over_as_their_files_have_them(experts: Path) -> None:
    model = Qwen3MoeForCausalLM.from_pretrained(experts)
    named = [name for name, _ in layers_of(model)]
    assert named == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    weights = dict(list(layers_of(model, torch.bfloat16))[1][1])
    assert weights["model.layers.0.mlp.experts.3.down_proj.weight"].shape == (32, 16)
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
