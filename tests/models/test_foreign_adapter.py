"""An adapter of somebody else's: whatever its two files hold, it is used or refused in one line, and reads no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from models import character_tokenizer, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from covrl.cli.merge import merge
from covrl.config import LoraConfig, ModelConfig
from covrl.errors import UserError
from covrl.models import adapters
from covrl.models.model import load_model

peft = pytest.importorskip("peft")

PEFTS = {
    "LORA": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"]),
    "ADALORA": lambda: peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=8, target_modules=["q_proj"]),
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=["q_proj"]),
    "IA3": lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "LOHA": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "LOKR": lambda: peft.LoKrConfig(r=2, target_modules=["q_proj"]),
    "MISS": lambda: peft.MissConfig(r=2, target_modules=["q_proj"]),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"]),
    "RANDLORA": lambda: peft.RandLoraConfig(r=2, target_modules=["q_proj"]),
    "VERA": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, and ``adapter``, a small LoRA of it."""
    folder = tmp_path_factory.mktemp("foreign")
    tokenizer = character_tokenizer()
    model = tiny("llama", len(tokenizer), num_hidden_layers=1)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapters.add_adapter(model, LoraConfig(rank=2, target_modules=("q_proj",)), 0, str(folder / "base"))
    adapters.save_adapter(model, adapters.POLICY, folder / "adapter")
    return folder


def again(made: Path, to: Path) -> Path:
    """The adapter in a folder of its own, which may be changed."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(made / "adapter", to)
    return to


def change(folder: Path, values: dict[str, Any]) -> None:
    file = folder / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def one_line_or_fine(use: Callable[[], Any]) -> str | None:
    said = None
    try:
        use()
    except UserError as error:
        said = str(error)
    assert "\n" not in (said or "")
    return said


def both(folder: Path) -> list[str | None]:
    shutil.rmtree(folder.parent / "merged", ignore_errors=True)
    return [
        one_line_or_fine(lambda: load_model(ModelConfig(path=str(folder), device="cpu"))),
        one_line_or_fine(lambda: merge(str(folder), folder.parent / "merged")),
    ]


KEYS = sorted({*peft.LoraConfig(target_modules=["q_proj"]).to_dict(), "unheard"} - {"base_model_name_or_path"})
VALUES: list[Any] = [None, True, -1, 2, 10**30, 1e308, "", "(a", "x", [], ["q_proj", 3], {"a": 1}, {"q_proj": None}]
SAME = {"max_examples": 25, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(**SAME)
@given(key=st.sampled_from(KEYS), value=st.sampled_from(VALUES))
@example(key="r", value=None)
@example(key="target_modules", value="(a")
@example(key="rank_pattern", value=None)
@example(key="peft_type", value="x")
@example(key="peft_type", value=["LORA"])
@example(key="peft_type", value="PROMPT_TUNING")
@example(key="megatron_config", value={"a": 1})
@example(key="bias", value={"a": 1})
def test_odd_settings_are_one_line(made: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = again(made, tmp_path / "adapter")
    change(folder, {key: value})
    both(folder)


@settings(**SAME | {"max_examples": 15})
@given(at=st.integers(0, 5000), byte=st.integers(0, 255), cut=st.booleans())
def test_odd_bytes_of_weights_are_one_line(made: Path, tmp_path: Path, at: int, byte: int, cut: bool) -> None:
    folder = again(made, tmp_path / "adapter")
    file = folder / adapters.WEIGHTS
    content = bytearray(file.read_bytes())
    at %= len(content)
    file.write_bytes(content[:at] if cut else bytes([*content[:at], byte, *content[at + 1 :]]))
    both(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float16])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_odd_numbers_are_one_line(made: Path, tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    folder = again(made, tmp_path / "adapter")
    file = folder / adapters.WEIGHTS
    save_file({k: torch.full_like(w, value).to(dtype) for k, w in load_file(file).items()}, file)
    both(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "evil_module"}, "megatron_config names files or code outside"),
        ({"megatron_core": "evil_module"}, "megatron_core names files or code outside of the adapter"),
        ({"corda_config": {"cache_file": "evil.bin"}}, "corda_config names files or code outside of the adapter"),
        ({"tokenizer_name_or_path": "../other"}, "tokenizer_name_or_path names files or code outside of the adapter"),
    ],
)
def test_a_setting_that_leads_elsewhere_is_refused(
    made: Path, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    folder = again(made, tmp_path / "adapter")
    change(folder, values)
    assert all(found is not None and said in found for found in both(folder))


def test_no_file_outside_of_the_folder_is_read(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A multitask prompt's initial state would be unpickled from wherever its settings say."""
    folder, outside = again(made, tmp_path / "adapter"), tmp_path / "outside.bin"
    torch.save({"prompt_embeddings": torch.zeros(4, 16), "task_cols": torch.zeros(4, 1)}, outside)
    read: list[Any] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **named: read.append(given[0]) or load(*given, **named))
    values = {"peft_type": "MULTITASK_PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    values |= {"prompt_tuning_init": "AVERAGE_SOURCE_TASK", "prompt_tuning_init_state_dict_path": str(outside)}
    (folder / adapters.CONFIG).write_text(json.dumps(values | {"base_model_name_or_path": str(made / "base")}))
    assert all(both(folder))
    assert not read
    values.pop("prompt_tuning_init_state_dict_path")
    (folder / adapters.CONFIG).write_text(json.dumps(values | {"base_model_name_or_path": str(made / "base")}))
    assert "MULTITASK_PROMPT_TUNING' cannot be merged here; known: LORA, " in str(both(folder)[1])


@pytest.mark.parametrize("kind", adapters.MERGED)
def test_what_is_merged_computes_what_the_adapter_does(kind: str, made: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(made / "base")
    theirs = peft.get_peft_model(base, PEFTS[kind]()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (w for w in theirs.parameters() if w.requires_grad):
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "adapter")
    row = torch.arange(3, 12)[None]
    expected = theirs(row).logits
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    untouched = AutoModelForCausalLM.from_pretrained(made / "base")
    assert torch.allclose(plain(row).logits, expected, atol=1e-4)
    assert not torch.allclose(untouched(row).logits, expected, atol=1e-4)
