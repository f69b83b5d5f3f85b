"""Adapters in a model: what is on, what is off, files that PEFT reads and those that it wrote, and the merged model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, character_tokenizer, prove, save_tiny, tiny
from torch import Tensor
from transformers import AutoModelForCausalLM

from covrl.cli.merge import merge
from covrl.config import LoraConfig, ModelConfig
from covrl.errors import UserError
from covrl.models import adapters
from covrl.models.adapted import Adapted
from covrl.models.model import LanguageModel, Paths, load_model
from covrl.scoring.head import log_prob

peft = pytest.importorskip("peft")

ROWS = [(3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13), (9, 8, 7, 6, 5)]


def scores(model: LanguageModel) -> Tensor:
    """Log-probs of each token of ROWS after the first, through the production path."""
    with torch.no_grad():
        hidden, project = model.hidden(ROWS), model.projection()
        found = [log_prob([project(hidden[i, : len(r) - 1])], torch.tensor(r[1:]))[0] for i, r in enumerate(ROWS)]
    return torch.cat(found)


def moved(model: Any, amount: float = 0.3, name: str = adapters.POLICY) -> None:
    """An adapter that has been trained: neither of its factors is 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in adapters.adapter_weights(model, name).values():
            weight.add_(amount * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def adapted(model: Any, rank: int = 3, *names: str, base: str = "base") -> Adapted:
    settings = LoraConfig(rank=rank, alpha=6, target_modules=names or ("all-linear",))
    whole = LanguageModel(model)
    adapters.add_adapter(model, settings, 0, base)
    return Adapted(whole, adapters.POLICY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_the_base_to_the_last_bit_and_on_comes_back(family: str, dtype: torch.dtype) -> None:
    plain = scores(LanguageModel(tiny(family).to(dtype)))
    policy = adapted(tiny(family).to(dtype))
    assert torch.equal(scores(policy), plain)  # B is 0
    moved(policy.model)
    trained = scores(policy)
    assert not torch.allclose(trained, plain, atol=1e-2)
    base = Adapted(policy, None)
    assert torch.equal(scores(base), plain)
    assert torch.equal(scores(policy), trained)
    assert prove(policy) == []
    assert policy.paths == Paths()
    assert {id(p) for p in policy.parameters()} == {id(p) for p in policy.model.parameters() if p.requires_grad}
    assert base.parameters() == base.own_weights() == []
    assert all(p.dtype == torch.float32 for p in policy.parameters())  # bfloat16 would lose small updates


def test_a_second_adapter_is_apart_from_the_first() -> None:
    policy = adapted(tiny("llama"))
    moved(policy.model)
    adapters.copy_adapter(policy.model, adapters.POLICY, "reference")
    other = Adapted(policy, "reference")
    assert torch.equal(scores(other), scores(policy))
    before = scores(other)
    moved(policy.model)
    assert torch.equal(scores(other), before)
    assert not torch.equal(scores(policy), before)
    assert not any(p.requires_grad for p in other.own_weights())
    assert all(p.requires_grad for p in policy.parameters())
    assert other.parameters() == []
    assert policy.hidden(ROWS).grad_fn is not None
    assert other.hidden(ROWS).grad_fn is None


def test_a_is_drawn_from_the_seed_alone() -> None:
    drawn = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        model = tiny("llama")
        torch.manual_seed(noise)
        adapters.add_adapter(model, LoraConfig(rank=2), seed, "base")
        drawn.append(torch.cat([w.detach().flatten() for w in adapters.adapter_weights(model).values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("family", "wanted", "said"),
    [
        (
            "llama",
            ("q_pro",),
            "no linear layer is named 'q_pro'; there is down_proj, gate_proj, k_proj, o_proj, q_proj, ",
        ),
        ("gpt2", ("q_proj",), "no linear layer is named 'q_proj'; there is c_attn, c_fc, c_proj"),
        ("llama", ("q_proj", "embed_tokens"), "no linear layer is named 'embed_tokens'"),
        ("llama", ("lm_head",), "lm_head is the output layer"),
        ("gpt2", ("c_fc", "lm_head"), "lm_head is the output layer"),
    ],
)
def test_names_that_cannot_be_targets(family: str, wanted: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=f"^lora.target_modules: {said}") as error:
        adapters.add_adapter(tiny(family), LoraConfig(rank=2, target_modules=wanted), 0, "base")
    assert "\n" not in str(error.value)


def test_targets_are_the_named_layers_alone_and_all_linear_is_all_but_the_head() -> None:
    names = adapters.adapter_weights(adapted(tiny("qwen2"), 2, "q_proj", "mlp.up_proj").model)
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.model.layers.") for name in names}
    assert layers == {"0.self_attn.q_proj", "1.self_attn.q_proj", "0.mlp.up_proj", "1.mlp.up_proj"}
    for family, each in (("qwen2", 7), ("gpt2", 4)):
        assert len(adapters.adapter_weights(adapted(tiny(family)).model)) == 2 * 2 * each


def saved(folder: Path, family: str, dtype: Any = "float32") -> Adapted:
    """``folder/base``, and in ``folder/adapter`` a trained adapter of it."""
    save_tiny(family, folder / "base")
    base, _ = load_model(ModelConfig(path=str(folder / "base"), device="cpu", dtype=dtype))
    policy = adapted(base.model, base=str(folder / "base"))
    moved(policy.model, 0.1)
    policy.save(folder / "adapter")
    return policy


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])  # an untied output layer, and a tied one with transposed weights
def test_a_saved_adapter_is_read_by_us_and_by_peft_and_merged(tmp_path: Path, family: str) -> None:
    policy = saved(tmp_path, family)
    expected = scores(policy)
    loaded, tokenizer = load_model(ModelConfig(path=str(tmp_path / "adapter"), device="cpu"))
    assert torch.equal(scores(loaded), expected)
    assert tokenizer("ab").input_ids == character_tokenizer()("ab").input_ids or family == "qwen2"
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    assert torch.allclose(scores(LanguageModel(theirs)), expected, atol=1e-5)
    plain = merge(str(tmp_path / "adapter"), tmp_path / "merged", ["model.device=cpu"])
    found, _ = load_model(ModelConfig(path=str(plain), device="cpu"))
    assert type(found.model) is type(base)
    assert not adapters.is_adapter(plain)
    assert not [name for name, _ in found.model.named_parameters() if "lora" in name or "base_layer" in name]
    assert torch.allclose(scores(found), expected, atol=1e-5)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (original.get_output_embeddings().weight == found.model.get_output_embeddings().weight).all()


def test_a_bfloat16_run_keeps_what_merging_into_bfloat16_rounds(tmp_path: Path) -> None:
    policy = saved(tmp_path, "llama", "bfloat16")
    expected = scores(policy)
    loaded, _ = load_model(ModelConfig(path=str(tmp_path / "adapter"), device="cpu", dtype="bfloat16"))
    assert torch.equal(scores(loaded), expected)
    for dtype in ("float32", "bfloat16"):
        out = merge(str(tmp_path / "adapter"), tmp_path / dtype, [f"model.dtype={dtype}"])
        found, _ = load_model(ModelConfig(path=str(out), device="cpu", dtype="bfloat16"))
        assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == getattr(torch, dtype)
        assert (scores(found) - expected).abs().mean() < 0.1


def test_the_file_of_the_same_weights_has_the_same_bytes(tmp_path: Path) -> None:
    policy = saved(tmp_path, "llama")
    policy.save(tmp_path / "again")
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_dropout_of_an_adapter_from_elsewhere_is_off(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.add_(0.1 * ("lora_B" in name))
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, _ = load_model(ModelConfig(path=str(tmp_path / "theirs"), device="cpu"))
    assert torch.equal(scores(loaded), scores(loaded))
    assert torch.allclose(scores(loaded), scores(LanguageModel(theirs.merge_and_unload())), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, r"not a plain LoRA adapter \(peft_type = IA3\): make a model of it with `covrl merge"),
        ({"modules_to_save": ["lm_head"]}, r"\(modules_to_save = \['lm_head'\]\)"),
        ({"use_dora": True}, r"\(use_dora = True\)"),
        ({"bias": "all"}, r"\(bias = all\)"),
        ({"init_lora_weights": "pissa"}, r"\(init_lora_weights = pissa\)"),
        ({"base_model_name_or_path": None}, "it names no base_model_name_or_path"),
        ({"base_model_name_or_path": "./nowhere"}, "there is no folder ./nowhere, which the adapter is for"),
        ({"r": 5}, "its adapter does not fit the model, beginning with base_model.model.model.layers.0"),
        ({"target_modules": ["q_proj"]}, "its adapter does not fit the model"),
        ({"target_modules": ["c_attn"]}, "an adapter of another model: Target modules"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    saved(tmp_path, "llama")
    file = tmp_path / "adapter" / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=said) as error:
        load_model(ModelConfig(path=str(tmp_path / "adapter"), device="cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["config", "weights", "no weights", "pickled"])
def test_a_damaged_adapter_is_one_line(tmp_path: Path, damage: str) -> None:
    policy = saved(tmp_path, "llama")
    folder = tmp_path / "adapter"
    weights = folder / adapters.WEIGHTS
    if damage == "config":
        (folder / adapters.CONFIG).write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        weights.unlink()
        if damage == "pickled":
            torch.save(dict(adapters.adapter_weights(policy.model)), folder / "adapter_model.bin")
    for use in (
        lambda: load_model(ModelConfig(path=str(folder), device="cpu")),
        lambda: merge(str(folder), tmp_path / "merged"),
    ):
        with pytest.raises(UserError, match=r"cannot be read|cannot read|holds no|cannot be merged") as error:
            use()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    with pytest.raises(UserError, match="no adapter, so there is nothing to merge"):
        merge(str(tmp_path / "base"), tmp_path / "merged")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="there is something already"):
        merge(str(tmp_path / "adapter"), tmp_path / "full")


def test_without_peft_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, "peft", None)
    for use in (
        lambda: adapters.add_adapter(tiny("llama"), LoraConfig(rank=2), 0, "base"),
        lambda: load_model(ModelConfig(path=str(tmp_path / "adapter"), device="cpu")),
        lambda: merge(str(tmp_path / "adapter"), tmp_path / "merged"),
    ):
        with pytest.raises(UserError, match=r"^LoRA needs the package peft: pip install 'peft"):
            use()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"rank": 4, "dropout": 0.1}, "there is no dropout: a sampled trace, its scores and its loss"),
        ({"alpha": 8}, "alpha is set, but rank is 0"),
        ({"target_modules": "q_proj"}, "target_modules is set, but rank is 0"),
        ({"rank": 4, "target_modules": ["all-linear", "q_proj"]}, "all-linear stands alone"),
        ({"rank": -1}, "lora.rank: .*greater than or equal to 0"),
        ({"rank": 4, "target_modules": []}, "lora.target_modules: .*at least 1"),
    ],
)
def test_settings_that_make_no_sense(table: dict[str, Any], said: str) -> None:
    from covrl.config import RunConfig, check

    with pytest.raises(UserError, match=said):
        check(RunConfig, {"model": {"path": "x"}, "lora": table})


def test_names_may_stand_in_one_text() -> None:
    assert LoraConfig(rank=2, target_modules="q_proj, v_proj").target_modules == ("q_proj", "v_proj")  # ty: ignore
