"""A model whose numbers are not finite on real prompts, through every command: one line that says where and why.

Its weights pass what is looked at when it is loaded: one row of its embedding is not a number, and no token of the rows
that are read then is that row's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Covrl
from models import character_tokenizer, tiny
from projects import PROMPTS, write_rows

from covrl.config import ModelConfig, PromptConfig
from covrl.errors import BrokenModelError
from covrl.evaluation.likelihood import answer_log_probs
from covrl.generation import engine as engine_module
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator, next_tokens
from covrl.models.compute import compute_in_bfloat16
from covrl.models.finite import broken
from covrl.models.model import load_model
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout

CONFIG = f"""
[model]
path = "model"
device = "cpu"
[problems]
train = "train.jsonl"
held_out = "train.jsonl"
solution_field = "solution"
{PROMPTS}[generation]
max_trace_tokens = 24
max_answer_tokens = 4
[evaluation]
verifier = "text"
problems = 2
every = 1
[training]
steps = 1
problems_per_step = 2
rollouts_per_problem = 4
warmup_steps = 0
"""
BAD = "~"
COMMON = ("--problems", "train.jsonl", "--config", "run.toml")


def write_model(folder: Path) -> None:
    """One token a character; the row of :data:`BAD` is not a number, and no other token reads it."""
    tokenizer = character_tokenizer()
    model = tiny("llama", len(tokenizer), tie_word_embeddings=False)
    with torch.no_grad():
        row = tokenizer.convert_tokens_to_ids(BAD)
        model.get_input_embeddings().weight[row] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "model"
    write_model(place)
    return place


@pytest.fixture
def project(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "model")
    write_problems(tmp_path, [(f"{BAD}{i}+{i}", str(2 * i)) for i in range(1, 4)])
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def write_problems(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    write_rows(folder / "train.jsonl", [{"question": q, "answer": a, "solution": "1 and 1"} for q, a in pairs])


COMMANDS = {
    "ask": ("ask", "model", f"{BAD}1+1", "--config", "run.toml"),
    "eval": ("eval", "--model", "model", *COMMON, "--out", "looked"),
    "eval, greedy alone": ("eval", "--model", "model", *COMMON, "-n", "0", "--out", "looked"),
    "leak": ("leak", "--model", "model", *COMMON),
    "calibrate": ("calibrate", "--model", "model", *COMMON, "-n", "2"),
    "dry run": ("train", "--config", "run.toml", "--dry-run"),
}


def said(covrl: Covrl, code: int, *command: str) -> str:
    found = covrl(*command)
    assert found.code == code, found.err
    assert "Traceback" not in found.err
    lines = [line for line in found.err.splitlines() if "not finite" in line]
    assert len(lines) == 1, found.err
    return lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_case_18_a_command_names_the_model_the_problem_and_the_weight(project: Path, covrl: Covrl, name: str) -> None:
    line = said(covrl, 2, *COMMANDS[name])
    assert line.startswith("covrl: model LlamaForCausalLM (model): its logits are not finite at problem ")
    assert "prompt, as its weight model.embed_tokens.weight holds NaN or infinities: take another copy" in line


@pytest.mark.parametrize("every", [0, 1])
def test_training_stops_with_the_same_line(project: Path, covrl: Covrl, every: int) -> None:
    """At the first look at the generator, or in the first step."""
    command = ("train", "--config", "run.toml", "--set", f"guards.publish_check_every={every}", "--out", "run")
    line = said(covrl, 1, *command)
    when = "before step 1" if every else "step 1"
    assert f"covrl: {when}: model LlamaForCausalLM (model): its logits are not finite at problem" in line
    assert "continue with: covrl train --resume run" in line


def test_teaching_the_format_stops_with_one_line(project: Path, covrl: Covrl) -> None:
    command = ("warm-format", "--config", "run.toml", "--out", "warm", "--steps", "1")
    found = covrl(*command)
    assert found.code == 1
    assert "Traceback" not in found.err
    assert "is nan" in found.err


def test_a_score_that_is_no_number_is_told_of_its_problem(made: Path) -> None:
    """The answer alone holds the token: sampling goes well, and log p of the answer, of `ask` and `calibrate`, not."""
    model, tokenizer = load_model(ModelConfig(path=str(made), device="cpu"))
    prompts = Prompts(tokenizer, PromptConfig(prior_open="=", close="e", answer_prefix=":", answer_suffix=";"))
    good, bad = Problem("p1", "1+1", "2"), Problem("p2", "1+1", f"1{BAD}2")
    trace = Rollout(Request("", 0, (), "prior"), tuple(tokenizer.encode("one")), (0.0,) * 3, "closed", "sampled", "one")
    (found,) = answer_log_probs(model, prompts, [(good, trace)])
    assert found is not None
    assert found.total < 0
    with pytest.raises(BrokenModelError, match=r"log p of the answer to problem p2 is not finite, as its weight model"):
        answer_log_probs(model, prompts, [(good, trace), (bad, trace)])


@pytest.mark.parametrize(("dtype", "remedy"), [("bfloat16", "float32"), ("mixed", "float32"), ("float32", "float64")])
def test_weights_that_are_sound_are_not_blamed(dtype: str, remedy: str) -> None:
    model = tiny("llama").to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    if dtype == "mixed":
        compute_in_bfloat16(model)
    found = str(broken(model, "its logits are not finite"))
    assert found.startswith("model LlamaForCausalLM: its logits are not finite, though its weights are: compute in ")
    assert f"compute in model.dtype = {remedy}" in found


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("row", [[0.0, float("nan")], [0.0, float("inf")], [-float("inf")] * 2])
def test_no_token_is_taken_of_logits_that_are_no_numbers(row: list[float], greedy: bool) -> None:
    logits = torch.tensor([[0.0, 1.0], row])
    how = Sampling(1, "Q", 0.0 if greedy else 1.0)
    with pytest.raises(FloatingPointError):
        next_tokens(logits, how, None if greedy else np.array([0.5, 0.5]))


@pytest.mark.parametrize("greedy", [True, False])
def test_a_token_that_is_ruled_out_is_no_fault(greedy: bool) -> None:
    logits = torch.tensor([[0.0, -float("inf"), -1.0]])
    how = Sampling(1, "Q", 0.0 if greedy else 1.0, 1.0 if greedy else 0.5)
    tokens, chosen = next_tokens(logits, how, None if greedy else np.array([0.5]))
    assert tokens.tolist() == [0]
    assert torch.isfinite(chosen).all()


def test_the_row_and_the_place_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of four rows, two tokens after its prompt."""
    tokenizer, own, calls = character_tokenizer(), next_tokens, iter(range(9))

    def spoilt(logits: torch.Tensor, *how: object) -> object:
        if next(calls) == 2:
            logits[2, 5] = float("nan")
        return own(logits, *how)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(engine_module, "next_tokens", spoilt)
    generator = TorchGenerator(tiny("llama", 97), tokenizer, 8)
    asked = [Request(f"p{i}", i, (5, 6, 7 + i), "posterior") for i in range(4)]
    with pytest.raises(BrokenModelError, match=r"not finite at problem p2, after 2 tokens of its trace, though"):
        generator.generate(asked, Sampling(9, "\n\n"), Draw(0, 0))


def test_nothing_of_it_is_in_the_results(project: Path, covrl: Covrl) -> None:
    """What was answered before is kept, and goes on where it was left; no figure is made of what is no number."""
    write_problems(project, [("1+1", "2"), (f"{BAD}1+1", "2")])
    said(covrl, 2, *COMMANDS["eval"], "--set", "generation.rows_per_pass=1")
    assert not (project / "looked" / "results.json").exists()
    (kept,) = (path for path in (project / "looked" / "samples").rglob("*") if path.is_file())
    _, *stored = kept.read_text().splitlines()
    assert [json.loads(line)["problem"] for line in stored] == ["train/0"]
