"""The dry run's figures: what a pass keeps for its backward, and notes on the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from projects import write_rows

from covrl.api import build, new_run_folder, train_run
from covrl.config import RunConfig, check
from covrl.evaluation.posterior_gain import gain_sentence
from covrl.models import compute
from covrl.models.model import LanguageModel
from covrl.planning.machine import Memory
from covrl.training import gradient
from covrl.training.dry_run import dry_run, largest_pass
from covrl.training.needs import made_up, measured, pass_bytes
from covrl.training.run import Run
from covrl.training.step import take_step

Make = Callable[..., Run]


@pytest.fixture(autouse=True)
def unknown_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which processor this is no note depends."""
    monkeypatch.setattr(compute, "has_bfloat16_units", lambda: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dry")
    save_tiny("qwen2", place / "model", max_position_embeddings=128)
    rows = [{"question": f"{i}+{i}", "answer": "x" * i + str(2 * i)} for i in range(7)]
    write_rows(place / "train.jsonl", rows)
    return place


@pytest.fixture
def make(folder: Path) -> Make:
    def make(
        tokens_per_pass: int = 4096,
        answer_tokens: int = 9,
        steps_problems: int = 7,
        dtype: str = "float32",
        method: str = "covrl",
        **training: Any,
    ) -> Run:
        table: dict[str, Any] = {
            "algorithm": {"name": method},
            "model": {"path": str(folder / "model"), "device": "cpu", "dtype": dtype},
            "problems": {"train": str(folder / "train.jsonl")},
            "generation": {"max_trace_tokens": 24, "max_answer_tokens": answer_tokens, "rows_per_pass": 64},
            "prompts": {
                "user": "{question}",
                "prior_open": "=",
                "posterior_open": "({hint})=",
                "close": "e",
                "answer_prefix": ":",
                "answer_suffix": ";",
            },
            "training": {
                "problems_per_step": steps_problems,
                "rollouts_per_problem": 4,
                "tokens_per_pass": tokens_per_pass,
                **training,
            },
        }
        return build(check(RunConfig, table))

    return make


def deeper(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    """Adds layers to the trunk of which each keeps its output, 32 floats a token, and nothing else."""
    forward = LanguageModel._forward

    def with_layers(model: LanguageModel, ids: torch.Tensor, **named: Any) -> torch.Tensor:
        states = forward(model, ids, **named)
        for _ in range(layers):
            states = torch.tanh(states)
        return states

    monkeypatch.setattr(LanguageModel, "_forward", with_layers)


def test_what_a_layer_keeps_is_counted_once_and_by_token(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    with monkeypatch.context() as patch:
        deeper(patch, 1)
        one = pass_bytes(run)
    with monkeypatch.context() as patch:
        deeper(patch, 4)
        four = pass_bytes(run)
    assert four[1] - one[1] == pytest.approx(3 * 32 * 4)
    assert four[0] == one[0]


def test_casts_of_weights_are_no_tokens(make: Make) -> None:
    """In mixed precision a pass holds a cast of each matrix, however few tokens it has."""
    plain, mixed = make(), make(dtype="mixed")
    (nothing, _), (casts, token) = pass_bytes(plain), pass_bytes(mixed)
    matrices = sum(p.numel() for p in mixed.parameters if p.ndim > 1)
    assert nothing < matrices / 4
    assert matrices / 2 < casts < 3 * matrices
    assert token > 0


@pytest.mark.parametrize("tokens_per_pass", [1, 1000, 1500, 10**6])
def test_the_largest_pass_is_a_trace_a_whole_step_or_what_is_set(make: Make, tokens_per_pass: int) -> None:
    run = make(tokens_per_pass)
    trace = measured(run).trace
    unit = made_up(run, 24)
    assert trace == 2 * max(len(row.ids) for row in unit.rows.values())
    assert sum(token == unit.rows["prior"].ids[-12] for token in unit.rows["prior"].ids) >= 1
    step = trace * 7 * 4
    assert trace < 1000 < 1500 < step
    expected = {1: trace, 1000: 1000, 1500: 1500, 10**6: step}[tokens_per_pass]
    assert largest_pass(run, trace) == expected
    fixed, token = pass_bytes(run)
    assert dry_run(run).cost.activations == fixed + round(token * expected)


def test_what_is_kept_follows_what_is_trained_and_not_the_callers_mode(make: Make) -> None:
    run = make(1)
    small = pass_bytes(run)
    assert small[1] > 2 * 4 * 32 * 4, "two layers keep more than four states of 32 floats each"
    with torch.no_grad():
        assert pass_bytes(run) == small
    for parameter in run.parameters:
        parameter.requires_grad_(False)
    assert pass_bytes(run)[1] < small[1] / 10, "nothing is kept where nothing is trained"


def test_a_machine_that_is_too_small_is_said_with_what_to_change(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tokens_per_pass=10**6)
    enough = dry_run(run).cost
    assert enough.memory < enough.machine.total

    def small(run: Run) -> Memory:
        del run
        return Memory(enough.memory // 2, enough.memory // 2)

    monkeypatch.setattr("covrl.training.dry_run.least_memory", small)
    found = dry_run(run)
    assert found.cost.machine.total == enough.memory // 2
    said = [note for note in found.notes if note.startswith("there is ")]
    assert len(said) == 1
    assert "a training pass takes about" in said[0]
    assert "lower training.tokens_per_pass" in said[0]
    assert ("lower generation.rows_per_pass" in said[0]) == (enough.sampling > 0.8 * found.cost.machine.total)
    assert enough.rows == 28, "no more rows than a step has"


def test_a_measurement_leaves_no_gradient_and_its_sum_is_the_memory(make: Make) -> None:
    run = make()
    found = dry_run(run)
    assert all(p.grad is None for p in run.parameters)
    assert run.done == 0
    cost, needs = found.cost, found.cost.needs
    assert cost.activations > 0
    held = needs.weights + needs.gradients + needs.apart + needs.optimizer + needs.logits
    assert cost.memory == held + cost.activations
    vocabulary = len(run.prompts.tokenizer)
    assert needs.logits == 2 * 3 * 4 * vocabulary * 4096, "a small vocabulary does not fill the bound"


def test_answers_that_are_too_long_to_be_written_are_noted(make: Make) -> None:
    (note,) = dry_run(
        make(answer_tokens=4, warmup_steps=0)
    ).notes  # "xxx6" has four tokens, "xxxx8" five, "xxxxx10" seven
    assert note.startswith("3 of 7 reference answers are longer than")
    assert "generation.max_answer_tokens = 4 (the longest, of problem train/6, has 8)" in note
    assert dry_run(make(answer_tokens=8, warmup_steps=0)).notes == ()


def test_units_for_bfloat16_are_noted_with_float32(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "has_bfloat16_units", lambda: True)
    (note,) = dry_run(make(warmup_steps=0)).notes
    assert note.startswith("this processor has units for bfloat16: with model.dtype = mixed")
    assert compute.faster_note("mixed", torch.device("cpu")) is None
    assert compute.emulated_note("mixed", torch.device("cpu")) is None
    monkeypatch.setattr(compute, "has_bfloat16_units", lambda: False)
    assert compute.faster_note("float32", torch.device("cpu")) is None
    assert "has no units for bfloat16" in str(compute.emulated_note("mixed", torch.device("cpu")))


def test_case19_a_warm_up_longer_than_the_run_is_noted_in_the_dry_run_and_before_the_first_step(
    make: Make, tmp_path: Path
) -> None:
    run = make(steps=1, warmup_steps=3, learning_rate=4e-3)
    (note,) = dry_run(run).notes
    assert "rises to 0.001 in the last step and never reaches training.learning_rate = 0.004" in note
    said: list[str] = []
    new_run_folder(tmp_path / "run")
    train_run(run, tmp_path / "run", (), said.append)
    assert note in said


def test_the_posterior_gain_is_measured_where_the_method_samples_posterior_traces(make: Make) -> None:
    found = dry_run(make())
    assert found.gain is not None
    assert found.gain.asked == 7, "all problems, where there are fewer than it takes"
    assert found.gain_said == gain_sentence(found.gain)
    alone = dry_run(make(method="jepo"))
    assert (alone.gain, alone.gain_said) == (None, "")


def test_each_pass_on_a_cpu_gives_back_what_it_freed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(gradient, "give_back_freed", lambda: given.append(1))
    take_step(make(tokens_per_pass=400))
    assert len(given) > 1
