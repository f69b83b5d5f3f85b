"""Models with a vision part: their text model's numbers are read, it is trained alone, the rest is saved untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import WITH_VISION, prove, save_tiny, tiny, tiny_with_vision
from projects import LETTERS
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, T5Config

from covrl import api
from covrl.cli.eval_run import Order, evaluate_several
from covrl.config import ModelConfig, RunConfig
from covrl.errors import UserError
from covrl.models.compute import blocks
from covrl.models.copies import frozen_copy
from covrl.models.model import LanguageModel, Paths, load_model
from covrl.models.text import cache_numbers, context_length, model_class, text_config, trunk, vocabulary
from covrl.records import Problem

SHAPES = Path(__file__).parents[3] / "shared" / "configs" / "models.json"
PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(4)]
SAVED_WHOLE = [family for family in WITH_VISION if family != "llama4"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family."""
    place = tmp_path_factory.mktemp("vision")
    for family in WITH_VISION:
        save_tiny(family, place / family)
    return place


def settings(model: Path, method: str, **sections: Any) -> RunConfig:
    table = {
        "model": {"path": str(model), "device": "cpu"},
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 32, "max_answer_tokens": 4},
        "training": {"rollouts_per_problem": 8, "problems_per_step": 2, "steps": 1, "warmup_steps": 0}
        | {"learning_rate": 1e-2},
        "evaluation": {"every": 1, "problems": 2, "verifier": "text"},
        "algorithm": {"name": method},
    }
    return RunConfig.model_validate(table | sections)


def by_text(problem: Problem, text: str) -> float:
    return float(sum(map(ord, text)) % 2)


@pytest.mark.parametrize("family", WITH_VISION)
def test_the_numbers_are_the_text_models_and_the_fast_paths_hold(made: Path, family: str) -> None:
    model, _ = load_model(ModelConfig(path=str(made / family), device="cpu"))
    assert (vocabulary(model.model), model.context_length, cache_numbers(model.model.config)) == (98, 512, 64)
    assert trunk(model.model) is not model.model
    assert len(blocks(model.model)) == 2  # and not the tower's one
    shared = family != "qwen3.5"  # linear attention reads rows end to end as one
    given_up = prove(model)
    assert model.paths == Paths(shared=shared)
    assert len(given_up) == (0 if shared else 1)
    said = model.given_up
    assert said == [] if family != "llama4" else ["text model alone" in note for note in said] == [True]


@pytest.mark.parametrize("method", ["covrl", "grpo"])
@pytest.mark.parametrize("family", SAVED_WHOLE)
def test_case_17_a_step_moves_the_text_model_and_saves_the_rest_as_it_was(
    made: Path, tmp_path: Path, family: str, method: str
) -> None:
    reward = by_text if method == "grpo" else None
    trained = api.train(settings(made / family, method), PROBLEMS, PROBLEMS, tmp_path / "run", reward=reward)
    assert trained.reports[0].metrics["optim/updates"] == 1
    before, after = (load_file(f / "model.safetensors") for f in (made / family, trained.last))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if any(part in name for part in ("vision", "visual", "multi_modal"))]
    model, text = trained.run.models["policy"].model, {id(p) for p in trained.run.parameters}
    others = [p for p in model.parameters() if id(p) not in text]
    assert others
    assert all(p.grad is None and not p.requires_grad for p in others)
    loaded = AutoModelForImageTextToText.from_pretrained(trained.last).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    found = evaluate_several(Order([str(trained.last)], ["digits:test"], limit=2, max_tokens=8), tmp_path / "eval")
    assert len(next(iter(found.solved.values()))) == 2


def test_the_text_model_alone_is_trained_and_saved_where_the_whole_cannot_read_text(made: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = api.build(settings(made / "llama4", "covrl"), PROBLEMS)
    api.new_run_folder(tmp_path / "run")
    last = api.train_run(run, tmp_path / "run", say=said.append).last
    assert any("the text model alone is read, and results are saved without the other parts" in note for note in said)
    names = load_file(last / "model.safetensors").keys()
    assert names
    assert not [name for name in names if "vision" in name]
    again, _ = load_model(ModelConfig(path=str(last), device="cpu"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, run.models["policy"].model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["gemma3", "qwen2.5-vl"])
def test_adapters_are_put_in_the_text_model_alone(made: Path, tmp_path: Path, family: str) -> None:
    pytest.importorskip("peft")
    run = api.build(settings(made / family, "covrl", lora={"rank": 2}), PROBLEMS)
    names = [n for n, p in run.models["policy"].model.named_parameters() if p.requires_grad]
    assert names
    assert all(".language_model.layers." in name and ".lora_" in name for name in names)
    api.new_run_folder(tmp_path / "run")
    last = api.train_run(run, tmp_path / "run").last
    adapted, _ = load_model(ModelConfig(path=str(last), device="cpu"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(adapted.model(input_ids=ids).logits, run.models["policy"].model(input_ids=ids).logits)


def test_a_model_of_text_alone_loses_no_gradient() -> None:
    model = tiny("llama")
    assert len(LanguageModel(model).parameters()) == len(list(model.parameters()))
    assert trunk(model) is model.base_model


def test_a_frozen_copy_of_a_model_with_more_parts_is_frozen(made: Path) -> None:
    copied = frozen_copy(load_model(ModelConfig(path=str(made / "gemma3"), device="cpu"))[0])
    assert copied.parameters() == []


def test_what_continues_no_text_is_one_line(tmp_path: Path) -> None:
    config = T5Config(d_model=8, num_layers=1, num_heads=1, vocab_size=9)
    with pytest.raises(UserError, match=r"'m' is a model of type 't5', which continues no text"):
        model_class(config, "m")


@pytest.mark.skipif(not SHAPES.is_file(), reason=f"needs {SHAPES}, which is not part of the project")
def test_the_shapes_of_models_that_people_train_are_read() -> None:
    table: dict[str, dict[str, Any]] = json.loads(SHAPES.read_text())
    assert table
    for name, shape in table.items():
        fields = {k: v for k, v in shape.items() if k not in ("model_type", "parameters")}
        config = AutoConfig.for_model(shape["model_type"], **fields)
        with torch.device("meta"):
            model: PreTrainedModel = model_class(config, name).from_config(config)
        assert vocabulary(model) == shape["vocab_size"] == model.get_output_embeddings().weight.shape[0], name
        assert context_length(config) == shape.get("max_position_embeddings", context_length(config)), name
        heads = shape.get("num_key_value_heads", shape["num_attention_heads"])
        width = getattr(text_config(config), "head_dim", None) or shape["hidden_size"] // shape["num_attention_heads"]
        assert cache_numbers(config) == 2 * shape["num_hidden_layers"] * heads * width, name
        assert len(blocks(model)) == shape["num_hidden_layers"], name
        inside = [*trunk(model).parameters(), *model.get_output_embeddings().parameters()]
        assert {id(p) for p in inside} == {id(p) for p in model.parameters()}, name
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(shape["parameters"], rel=0.001), name


def test_the_tower_of_a_large_vision_part_is_not_taken_for_the_blocks() -> None:
    model = tiny_with_vision("gemma3")
    tower = next(m for n, m in model.named_modules() if n.endswith("vision_tower.encoder.layers"))
    tower.extend([torch.nn.Linear(200, 200)])
    assert blocks(model) == list(trunk(model).layers)
