"""GGUF files: they compute what the folder does that they were made from, and what is bad in one is one line."""

from __future__ import annotations

import builtins
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl
from gguf_files import write_llama
from projects import PROMPTS, write_rows
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.extras import install_command
from covrl.models import gguf as reading
from covrl.models.model import load_model, load_tokenizer

pytest.importorskip("gguf")

CONFIG = f"""
[model]
path = "model.gguf"
device = "cpu"
[problems]
train = "train.jsonl"
held_out = "train.jsonl"
{PROMPTS}[generation]
max_trace_tokens = 24
max_answer_tokens = 4
[evaluation]
verifier = "text"
problems = 2
[training]
steps = 1
problems_per_step = 2
rollouts_per_problem = 4
warmup_steps = 0
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``plain.gguf`` and ``blocks.gguf`` with the folders that say the same."""
    place = tmp_path_factory.mktemp("made")
    write_llama(place / "plain.gguf")
    write_llama(place / "blocks.gguf", quantised=True)
    return place


@pytest.fixture
def project(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "blocks.gguf", tmp_path / "model.gguf")
    write_rows(tmp_path / "train.jsonl", [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(4)])
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def load(path: Path, **settings: Any) -> Any:
    return load_model(ModelConfig(path=str(path), device="cpu", **settings))[0]


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        load(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
@pytest.mark.parametrize("name", ["plain", "blocks"])
def test_a_file_gives_the_logits_of_the_folder_it_was_made_from(made: Path, name: str, dtype: str) -> None:
    ours, theirs = (load(made / n, dtype=dtype) for n in (f"{name}.gguf", name))
    assert torch.equal(logits(ours.model), logits(theirs.model))
    assert ours.paths == theirs.paths
    kind = "bfloat16" if dtype == "bfloat16" else "float32"
    said = f"{name}.gguf: dequantised to {kind}, 44,192 parameters; results are written as a plain folder"
    assert ours.given_up == [said, *theirs.given_up]


def test_the_blocks_are_read_and_are_not_the_weights_they_were_made_of(made: Path) -> None:
    """Else the test above would say nothing of dequantisation."""
    gap = (logits(load(made / "blocks.gguf").model) - logits(load(made / "plain.gguf").model)).abs().max()
    assert 1e-3 < gap < 1


def test_the_vocabulary_and_the_ends_are_the_files(made: Path, tmp_path: Path) -> None:
    """And nothing that transformers adds: its class for such files brings a token that the model has no row for."""
    ours, theirs = load_tokenizer(str(made / "plain.gguf")), load_tokenizer(str(made / "plain"))
    assert ours.get_vocab() == theirs.get_vocab()
    ours.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == theirs.get_vocab()
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)
    text = "What is 12 + 30? naïve ☕ 数学\n"
    assert ours.decode(ours.encode(text)) == text


def test_what_is_saved_is_a_plain_folder(made: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(ModelConfig(path=str(made / "blocks.gguf"), device="cpu"))
    model.save(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not [key for key in config if "quant" in key or "gguf" in key]
    assert "gguf" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    mine, folder = (load_file(f / "model.safetensors") for f in (tmp_path / "saved", made / "blocks"))
    assert mine.keys() == folder.keys()
    assert all(torch.equal(mine[name], folder[name]) for name in folder)
    assert torch.equal(logits(load(tmp_path / "saved").model), logits(model.model))


@pytest.mark.parametrize("kept", [5, 30, 1000, 12_000, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_one_line(made: Path, tmp_path: Path, kept: float) -> None:
    whole = (made / "blocks.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    said = refusal(cut)
    assert f"cut.gguf is damaged or cut off after {cut.stat().st_size:,} bytes" in said
    assert said.endswith("download it again")


def test_a_length_that_is_not_true_ends_at_once(made: Path, tmp_path: Path) -> None:
    """The package gguf would go through 2**61 values; a file of somebody else's may say so."""
    whole, key = (made / "blocks.gguf").read_bytes(), b"tokenizer.ggml.token_type"
    at = whole.index(key) + len(key) + 4 + 4  # type of the value, type of its elements
    bad = tmp_path / "long.gguf"
    bad.write_bytes(whole[:at] + struct.pack("<Q", 2**61) + whole[at + 8 :])
    assert "is damaged or cut off" in refusal(bad)


@pytest.mark.parametrize(("kind", "said"), [(99, "99) is not a valid GGMLQuantizationType"), (26, "cannot load")])
def test_a_quantisation_that_is_not_known_is_one_line(made: Path, tmp_path: Path, kind: int, said: str) -> None:
    """99 is no type; 26 is integers, which nothing makes weights of."""
    whole, name = (made / "blocks.gguf").read_bytes(), b"output_norm.weight"
    at = whole.index(name) + len(name) + 4 + 8  # number of axes, the one axis
    bad = tmp_path / "odd.gguf"
    bad.write_bytes(whole[:at] + struct.pack("<I", kind) + whole[at + 4 :])
    found = refusal(bad)
    assert said in found
    assert "odd.gguf" in found


@pytest.mark.parametrize(
    ("raw", "said"), [(b"", "is no GGUF file"), (b"PK\x03\x04" * 9, "is no GGUF file"), (None, "there is no file")]
)
def test_what_is_no_gguf_file_is_one_line(tmp_path: Path, raw: bytes | None, said: str) -> None:
    if raw is not None:
        (tmp_path / "odd.gguf").write_bytes(raw)
    assert said in refusal(tmp_path / "odd.gguf")
    assert "there is no file odd.gguf" in refusal(Path("odd.gguf"))  # and it is not looked for on the hub


def test_an_architecture_that_is_not_known_is_one_line(made: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.gguf"
    odd.write_bytes((made / "plain.gguf").read_bytes().replace(b"llama", b"lamal"))
    assert refusal(odd).endswith("GGUF model with architecture lamal is not supported yet.")


def test_a_file_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    write_llama(tmp_path / "mute.gguf", words=False)
    assert refusal(tmp_path / "mute.gguf").endswith(
        "mute.gguf holds no tokenizer: take a file that has one, or the model's folder"
    )


def test_the_stretched_rope_of_later_llamas_is_read(tmp_path: Path) -> None:
    """transformers passes it over; the folder says the same in its config, and what is saved does too."""
    stretched = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
    stretched |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=stretched)
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    divisors = (5e5 ** -(torch.arange(0, 8, 2) / 8) / found).tolist()
    assert divisors == pytest.approx([1, 1, divisors[2], 32])
    assert 1 < divisors[2] < 32
    folder = write_llama(tmp_path / "long.gguf", extra={"rope_freqs.weight": divisors}, theta=5e5)
    plain = logits(load(folder).model)
    table = json.loads((folder / "config.json").read_text()) | {"rope_parameters": stretched}
    (folder / "config.json").write_text(json.dumps(table))
    ours = load(tmp_path / "long.gguf")
    assert torch.allclose(logits(ours.model), logits(load(folder).model), atol=1e-6)
    assert (logits(ours.model) - plain).abs().max() > 1e-4
    ours.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["rope_parameters"]
    assert saved == pytest.approx(stretched)


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight"])
def test_another_stretched_rope_is_refused_as_it_would_not_be_read(tmp_path: Path, name: str) -> None:
    write_llama(tmp_path / "long.gguf", extra={name: [1.0, 2.0, 3.0, 4.0]})
    assert f"holds {name}, a stretched rope that transformers does not read" in refusal(tmp_path / "long.gguf")


def test_a_way_of_splitting_text_that_is_not_known_is_said(made: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "odd.gguf", pre="unheard-of")
    said = load(tmp_path / "odd.gguf").given_up
    assert any("does not know how its tokenizer splits text ('unheard-of')" in note for note in said)
    assert not any("splits text" in note for note in load(made / "plain.gguf").given_up)


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_missing_package_is_named_with_the_extra(made: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    own = reading.find_spec
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == missing else own(name))
    said = refusal(made / "plain.gguf")
    assert said.endswith(f"needs the package {missing}: {install_command('gguf')}")


def test_the_folder_of_a_file_is_told_to_name_it(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "plain.gguf", tmp_path)
    assert refusal(tmp_path).endswith(f"name its GGUF file itself: {tmp_path / 'plain.gguf'}")


def test_nothing_beside_the_file_is_read(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an adapter, whose base would be fetched, nor another tokenizer or config."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "plain.gguf", tmp_path / "model.gguf")
    beside = [tmp_path / n for n in ("adapter_config.json", "config.json", "tokenizer_config.json", "tokenizer.json")]
    for path in beside:
        path.write_text('{"base_model_name_or_path": "nobody/nothing", "tokenizer_class": "Nothing", "auto_map": {}}')
    opened: list[str] = []
    own = builtins.open

    def watched(file: Any, *given: Any, **named: Any) -> Any:
        opened.append(str(file))
        return own(file, *given, **named)

    monkeypatch.setattr(builtins, "open", watched)
    model = load(Path("model.gguf"))
    assert torch.equal(logits(model.model), logits(load(made / "plain").model))
    assert "model.gguf" in opened
    assert not [path for path in opened if Path(path).name == "adapter_config.json" or path in map(str, beside)]


def test_kernels_are_never_fetched(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers does for some architectures where the package kernels is there: those are refused."""
    import transformers.integrations.gguf as integration
    import transformers.utils.import_utils as there

    monkeypatch.setattr(integration, "is_gguf_arch_supported", lambda name: name == "llama", raising=False)
    load(made / "plain.gguf") if not there.is_kernels_available() else None
    monkeypatch.setattr(there, "is_kernels_available", lambda: True)
    assert "fetches code from the hub" in refusal(made / "plain.gguf")


def test_the_commands_take_a_file(project: Path, covrl: Covrl) -> None:
    done = covrl("train", "--config", "run.toml", "--out", "run")
    assert done.code == 0, done.err
    assert "model.gguf: dequantised to float32, 44,192 parameters" in done.err
    assert "it/s" not in done.err
    common = ("--problems", "train.jsonl", "--config", "run.toml", "--limit", "2")
    for command in (
        ("ask", "model.gguf", "1+1", "--answer", "2", "--config", "run.toml"),
        ("ask", "run", "1+1"),
        ("eval", "--model", "model.gguf", *common, "--out", "looked"),
        ("leak", "--model", "model.gguf", *common, "-n", "1"),
        ("calibrate", "--model", "model.gguf", *common, "-n", "2"),
        ("train", "--config", "run.toml", "--dry-run"),
    ):
        found = covrl(*command)
        assert found.code == 0, (command, found.err)
    weights = json.loads((project / "looked" / "results.json").read_text())["models"][0]["weights"]
    assert len(weights) == 16


def test_other_bytes_have_another_fingerprint(project: Path, made: Path, covrl: Covrl) -> None:
    asked = ("eval", "--model", "model.gguf", "--problems", "train.jsonl", "--config", "run.toml", "--out", "looked")
    assert covrl(*asked).code == 0
    shutil.copy(made / "plain.gguf", project / "model.gguf")
    assert "was made with weights = " in covrl(*asked).err


def test_a_resumed_run_reads_its_reference_from_the_file(project: Path, covrl: Covrl) -> None:
    """grpo with a KL term: the frozen model is the file's, the policy the checkpoint's."""
    settings = (
        "--set",
        "algorithm.name=grpo",
        "--set",
        "algorithm.kl=k3",
        "--set",
        "algorithm.kl_weight=0.1",
        "--set",
        "rewards.verifier=text",
    )
    assert covrl("train", "--config", "run.toml", *settings, "--set", "training.steps=2", "--out", "whole").code == 0
    assert covrl("train", "--config", "run.toml", *settings, "--out", "run").code == 0
    table = project / "run" / "config.toml"
    table.write_text(table.read_text().replace("steps = 1", "steps = 2"))
    done = covrl("train", "--resume", "run")
    assert done.code == 0, done.err
    ours, theirs = (
        load_file(project / run / "checkpoints" / "step-000002" / "model" / "model.safetensors")
        for run in ("run", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adapters_have_a_file_as_their_base(project: Path, covrl: Covrl) -> None:
    pytest.importorskip("peft")
    lora = ("--set", "lora.rank=2", "--set", "training.learning_rate=0.01")
    assert covrl("train", "--config", "run.toml", *lora, "--out", "run").code == 0
    adapter = project / "run" / "checkpoints" / "step-000001" / "model"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "model.gguf"
    assert covrl("ask", "run", "1+1").code == 0
    assert covrl("merge", "run", "--out", "merged").code == 0
    adapted = load(adapter)
    assert not torch.equal(logits(adapted.model), logits(load(project / "model.gguf").model))
    assert torch.allclose(logits(load(project / "merged").model), logits(adapted.model), atol=1e-4)
    (project / "model.gguf").unlink()
    assert "there is no file model.gguf, which the adapter is for" in covrl("ask", str(adapter), "1+1").err


def test_merge_makes_a_plain_folder_of_a_file(project: Path, made: Path, covrl: Covrl) -> None:
    done = covrl("merge", "model.gguf", "--out", "plain")
    assert done.code == 0, done.err
    mine, folder = (load_file(f / "model.safetensors") for f in (project / "plain", made / "blocks"))
    assert all(torch.equal(mine[name], folder[name]) for name in folder)


def test_vllm_is_told_to_take_a_folder(project: Path, covrl: Covrl) -> None:
    found = covrl("train", "--config", "run.toml", "--set", "generation.engine=vllm", "--out", "run")
    assert found.code == 2
    assert "`covrl merge model.gguf --out FOLDER`" in found.err
    assert not (project / "run").exists()
    assert "vllm" not in sys.modules
