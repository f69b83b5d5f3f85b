"""Makes the folder f21ff7b/ beside it with the code of commit f21ff7b.

In the root of the repository:

    git worktree add --detach ../f21ff7b f21ff7b
    cd tests/old_runs && rm -r f21ff7b
    PYTHONPATH=../../../f21ff7b/src OMP_NUM_THREADS=1 python make_old_runs.py

What is in it:

    base/, problems.jsonl     a model of 4,000 weights, and twelve sums
    covrl/, grpo/, lora/      runs of four steps that were interrupted after the second
    ends/NAME.safetensors     the weights that the same code reached when it resumed a copy of the run
    ends/NAME.jsonl           the metrics of that run
    settings.json             every setting of that version: its default, and the choices where it has some
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch
from old_run_rewards import digits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from covrl import api
from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.config import RunConfig, check
from covrl.errors import RunInterruptedError

OUT = Path("f21ff7b")
LETTERS = "0123456789+-=:;()e?xyz"
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "covrl": {"algorithm": {"name": "covrl", "beta": 0.5}},
    "grpo": {"algorithm": {"name": "grpo", "kl": "k3", "kl_weight": 0.05}, "evaluation": {"every": 0}},
    "lora": {"algorithm": {"name": "rlpr", "filter": 0.25}, "lora": {"rank": 2}},
}


def settings(name: str) -> RunConfig:
    """The settings of a run; paths are relative to the folder that all are in."""
    shared: dict[str, dict[str, Any]] = {
        "model": {"path": "base", "device": "cpu"},
        "problems": {"train": "problems.jsonl", "held_out": "problems.jsonl"},
        "prompts": {
            "user": "{question}",
            "prior_open": "=",
            "posterior_open": "({hint})=",
            "close": "e",
            "answer_prefix": ":",
            "answer_suffix": ";;;",  # by chance in no response: today it ends one only where an answer has begun
        },
        "generation": {"max_trace_tokens": 12, "max_answer_tokens": 3, "rows_per_pass": 64},
        "training": {
            "steps": 4,
            "problems_per_step": 4,
            "rollouts_per_problem": 4,
            "learning_rate": 2e-3,
            "warmup_steps": 0,
            "tokens_per_pass": 4096,
            "stream_norms_every": 2,
        },
        "evaluation": {"every": 2, "problems": 6},
        "checkpoint": {"every": 2, "keep": 1},
        "guards": {"stop_when": ["entropy/prior < 0.001"]},
        "report": {"traces_every": 2, "groups_shown": 1},
    }
    return check(RunConfig, shared | RUNS[name])


class InterruptAt:
    """A sink that sends the process Ctrl-C while a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, report: Any) -> None:
        """Interrupt at the step."""
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None:
        """Nothing is held."""


def make_base(folder: Path) -> None:
    """A random Llama with one token for each letter."""
    words = {letter: i for i, letter in enumerate(["<unk>", "<eos>", *LETTERS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(words),
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_run(name: str) -> None:
    """A run that is interrupted after its second step, and where it ends when it is resumed."""
    reward = digits if name == "grpo" else None
    api.new_run_folder(Path(name))
    try:
        api.train_run(api.build(settings(name), reward=reward), Path(name), [InterruptAt(2)])
    except RunInterruptedError:
        (Path(name) / ".lock").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(name, Path(scratch) / name))
        trained = api.train_run(api.resume(copy, reward=reward), copy)
        (weights,) = trained.last.glob("*.safetensors")
        shutil.copy(weights, Path("ends") / f"{name}.safetensors")
        shutil.copy(copy / "metrics.jsonl", Path("ends") / f"{name}.jsonl")


def table_of(config: Any) -> dict[str, Any]:
    """Default and choices of each setting of a section or method."""
    schema = config.model_json_schema()
    return {
        name: {"default": part.get("default"), "choices": choices_of(part, schema.get("$defs", {}))}
        for name, part in schema["properties"].items()
    }


def choices_of(part: Any, shared: Any) -> list[Any]:
    """All values that a setting's schema lists."""
    if isinstance(part, list):
        return [value for each in part for value in choices_of(each, shared)]
    if not isinstance(part, dict):
        return []
    if "$ref" in part:
        return choices_of(shared[part["$ref"].rpartition("/")[2]], shared)
    own = part.get("enum", []) + ([part["const"]] if "const" in part else [])
    return own + [value for key in ("anyOf", "allOf", "items") for value in choices_of(part.get(key), shared)]


def main() -> None:
    """Make all of it."""
    (OUT / "ends").mkdir(parents=True)
    os.chdir(OUT)
    sums = [{"id": f"p{i}", "question": f"{i}+{2 * i}?", "answer": str(3 * i)} for i in range(12)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    make_base(Path("base"))
    for name in RUNS:
        make_run(name)
    sections = {name: table_of(field.annotation) for name, field in RunConfig.model_fields.items()}
    methods = {name: table_of(find_algorithm(name).Config) for name in ALGORITHMS}
    text = json.dumps({"sections": sections, "methods": methods}, ensure_ascii=False)
    Path("settings.json").write_text(text.replace("}}, ", "}},\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
