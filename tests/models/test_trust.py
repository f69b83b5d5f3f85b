"""A model's folder is data of somebody else's: nothing in it runs, and what cannot be read is one line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from models import save_tiny
from safetensors.torch import load_file, save_file

from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.models.model import load_model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "model"
    save_tiny("qwen2", place, max_position_embeddings=64)
    return place


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, **settings: Any) -> Any:
    return load_model(ModelConfig(path=str(folder), device="cpu", **settings))[0]


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        load(folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Runs:
    """Unpickled without limits, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def as_pickle(folder: Path, name: str = "pytorch_model.bin") -> None:
    """The weights as a pickle instead."""
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()


def test_a_pickle_is_refused_with_the_way_to_allow_it(folder: Path) -> None:
    as_pickle(folder)
    said = refusal(folder)
    assert "holds no *.safetensors weights, and pytorch_model.bin is a pickle" in said
    assert said.endswith("convert it to safetensors, or, if you trust who made it, set model.allow_pickle = true")


def test_a_pickle_that_is_allowed_gives_the_same_model(folder: Path, made: Path) -> None:
    as_pickle(folder)
    ours, theirs = (load(f, allow_pickle=True).model.state_dict() for f in (folder, made))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_that_would_run_something_does_not_run_it(folder: Path, tmp_path: Path, allowed: bool) -> None:
    mark = tmp_path / "it-ran"
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Runs(mark)}, folder / "pytorch_model.bin")
    said = refusal(folder, allow_pickle=allowed)
    assert not mark.exists()
    assert "cannot load" in said if allowed else "is a pickle" in said
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the mine is live: without limits it goes off
    assert mark.exists()


def index(folder: Path, shard: str) -> None:
    names = list(load_file(folder / "model.safetensors"))
    table = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def test_an_index_cannot_name_a_pickle_beside_a_decoy(folder: Path) -> None:
    index(folder, "weights.bin")
    as_pickle(folder, "weights.bin")
    save_file({"a": torch.zeros(1)}, folder / "decoy.safetensors")
    assert "names weights that are no safetensors: 'weights.bin'" in refusal(folder)


def test_an_index_of_safetensors_is_read(folder: Path) -> None:
    index(folder, "part.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    load(folder)


@pytest.mark.parametrize("where", ["../outside.safetensors", "{}/outside.safetensors", "a/../../outside.safetensors"])
@pytest.mark.parametrize("allowed", [False, True])
def test_no_weights_outside_the_folder_are_read(folder: Path, tmp_path: Path, where: str, allowed: bool) -> None:
    name = where.format(tmp_path)
    index(folder, name)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "decoy.safetensors")
    assert "names weights outside its folder" in refusal(folder, allow_pickle=allowed)


@pytest.mark.parametrize("name", ["weights.bin", "../outside.safetensors"])
def test_a_config_cannot_name_other_weights(folder: Path, name: str) -> None:
    as_pickle(folder, "weights.bin")
    save_file({"a": torch.zeros(1)}, folder / "decoy.safetensors")
    edit(folder / "config.json", transformers_weights=name)
    assert "names weights" in refusal(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_a_config_cannot_ask_for_a_kernel_from_the_hub(folder: Path, key: str) -> None:
    edit(folder / "config.json", **{key: "kernels-community/flash-attn2"})
    assert f"asks for {key} 'kernels-community/flash-attn2', which is code from the hub" in refusal(folder)


CODE = "import os\nos.mkdir({mark!r})\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"


@pytest.mark.parametrize("part", ["config", "model", "tokenizer"])
def test_code_in_the_folder_never_runs_and_nobody_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "it-ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    if part == "tokenizer":
        auto = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
        edit(folder / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=auto)
    else:
        auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        edit(folder / "config.json", model_type="unheard-of" if part == "config" else "qwen2", auto_map=auto)
    said = loads_or_says(folder)
    assert not said or "covrl runs no code that comes with a model" in said
    assert not mark.exists()
    assert asked == []


def test_an_adapter_that_is_a_pickle_is_refused(folder: Path) -> None:
    edit(folder / "config.json")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin is a pickle" in refusal(folder)


# Files that are not what they should be

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json")
VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-4, 80), st.just(-(2**70)), st.just(1e300), st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=2), st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=1),
)  # fmt: skip
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says(folder: Path) -> str:
    said = ""
    try:
        load(folder)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    return said


@FUZZ
@given(name=st.sampled_from(FILES), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_flipped_bit_or_a_cut_end_is_one_line_or_no_matter(
    folder: Path, made: Path, name: str, at: float, bit: int, cut: bool
) -> None:
    content = bytearray((made / name).read_bytes())
    place = int(at * min(len(content), 3000))  # the header of the weights, where sizes and names are
    content = content[:place] if cut else content
    if not cut:
        content[place] ^= 1 << bit
    (folder / name).write_bytes(content)
    try:
        loads_or_says(folder)
    finally:
        shutil.copy(made / name, folder / name)


CONFIG_KEYS = (
    "hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "model_type", "architectures", "dtype",
    "rope_parameters", "layer_types", "pad_token_id", "tie_word_embeddings", "quantization_config", "auto_map",
    "hidden_act", "transformers_weights", "attn_implementation", "rms_norm_eps", "num_key_value_heads",
)  # fmt: skip


@FUZZ
@given(key=st.sampled_from(CONFIG_KEYS), value=VALUE)
@example(key="num_attention_heads", value=0)
@example(key="quantization_config", value={"quant_method": "fp8"})
def test_an_odd_value_in_the_config_is_one_line_or_no_matter(folder: Path, made: Path, key: str, value: Any) -> None:
    if key == "num_hidden_layers" and value == 1e300:
        return
    shutil.copy(made / "config.json", folder / "config.json")
    edit(folder / "config.json", **{key: value})
    loads_or_says(folder)
