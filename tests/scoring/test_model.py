"""The split forward proves itself at load, for several families, and says so where it does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, character_tokenizer, tiny
from transformers import CohereConfig, CohereForCausalLM

from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.scoring.model import LanguageModel, load_model, resolve_device


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_families_pass(family: str, dtype: torch.dtype) -> None:
    LanguageModel(tiny(family).to(dtype)).probe()


def test_an_output_layer_that_does_more_is_rejected_by_name() -> None:
    config = CohereConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        logit_scale=0.5,
        pad_token_id=0,
    )
    with pytest.raises(UserError, match="CohereForCausalLM: its logits differ"):
        LanguageModel(CohereForCausalLM(config).eval()).probe()


def test_a_soft_cap_that_the_config_does_not_tell_is_noticed() -> None:
    model = tiny("gemma2")
    own = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = 3.0 * torch.tanh(out.logits / 3.0)
        return out

    model.forward = capped
    with pytest.raises(UserError, match="its logits differ"):
        LanguageModel(model).probe()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_with_its_tokenizer(family: str, tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    model = tiny(family, len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read_back = load_model(ModelConfig(path=str(tmp_path), device="cpu"))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True)
    )
    if (
        family != "qwen2"
    ):  # transformers puts its own byte-level tokenizer in the place of any that a Qwen2 folder holds
        assert read_back("ab 1").input_ids == tokenizer("ab 1").input_ids


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no \*.safetensors weights"):
        load_model(ModelConfig(path=str(tmp_path), device="cpu"))


def test_an_unknown_device_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.device: gpu"):
        resolve_device("gpu")
