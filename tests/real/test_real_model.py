"""SmolLM2 in each dtype: nothing is given up and nothing warns, a run goes on where it was cut, and it can be asked.

Each dtype's model is loaded and proved once. ``make check-slow`` runs this, with one method in each dtype; with
COVRL_REAL_EVERY=1 every method is trained in every dtype, which takes some minutes more.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl

from covrl import api
from covrl.config import RunConfig, check
from covrl.generation.engine import DecodingPaths
from covrl.models.beside import load_beside
from covrl.models.model import Paths
from covrl.records import Problem
from covrl.training import loop
from covrl.training.dry_run import dry_run
from covrl.training.run import Run

METHODS = {"float32": ("covrl",), "mixed": ("rlpr",), "bfloat16": ("grpo",)}
if os.environ.get("COVRL_REAL_EVERY"):
    METHODS = dict.fromkeys(METHODS, ("covrl", "grpo", "rlpr"))

PROBLEMS = [
    Problem(str(i), f"What is {a} plus {b}?", str(a + b))
    for i, (a, b) in enumerate([(2, 3), (4, 4), (1, 6), (5, 2), (7, 1), (3, 3)])
]

PROMPTS = {
    "system": "Answer in one short sentence.",
    "user": "{question}",
    "prior_open": "",
    "posterior_open": "It is {hint}: ",
    "close": ".",
    "answer_prefix": " So it is",
    "answer_suffix": ".",
}
"""Words in the place of tags, and a full stop that closes a thought: the model knows both without being taught."""


def settings(model: Path, dtype: str, method: str, steps: int = 3) -> RunConfig:
    """Two problems, two rollouts and 16 tokens."""
    table: dict[str, Any] = {
        "model": {"path": str(model), "dtype": dtype, "device": "cpu"},
        "algorithm": {"name": method},
        "prompts": PROMPTS,
        "generation": {"max_trace_tokens": 16, "max_answer_tokens": 4},
        "training": {
            "steps": steps,
            "problems_per_step": 2,
            "rollouts_per_problem": 2,
            "learning_rate": 1e-4,
            "schedule": "constant",
            "warmup_steps": 0,
            "stream_norms_every": 0,
        },
        "evaluation": {"every": 0},
        "checkpoint": {"every": 1},
    }
    return check(RunConfig, table)


def one_of_two() -> Callable[[Problem, str], float]:
    """A reward of 0 and 1 in turn, so that every group of two has signal whatever was sampled."""
    values = cycle((0.0, 1.0))
    return lambda problem, text: next(values)


@pytest.fixture(scope="module", params=METHODS)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(real_model: Path, dtype: str) -> Run:
    """A run whose model is loaded and proved in one dtype; methods take its model over."""
    return api.build(settings(real_model, dtype, "covrl"), PROBLEMS)


@pytest.fixture
def run_of(loaded: Run, real_model: Path) -> Callable[[str], Run]:
    """A run of a method on the model that is loaded, with the weights that it was loaded with."""
    begun = {name: value.clone() for name, value in loaded.models["policy"].model.state_dict().items()}

    def make(method: str) -> Run:
        loaded.models["policy"].model.load_state_dict(begun)
        config = settings(real_model, loaded.config.model.dtype, method)
        rewarded = method == "grpo"
        made = api.build_algorithm(config, loaded.prompts, None, rewarded)
        policy = loaded.models["policy"]
        models = {"policy": policy} | load_beside(policy, made.models, config, resumed=False)
        return replace(loaded, config=config, algorithm=made, models=models, reward=one_of_two() if rewarded else None)

    return make


def test_no_path_is_given_up(loaded: Run) -> None:
    """Neither is one said to be off by more than usual; how much is read at once is all that is said."""
    said = [note for note in loaded.notes if "no units for bfloat16" not in note]  # which is of the processor
    assert [note.partition(" for ")[0] for note in said] == ["chosen"]
    assert loaded.models["policy"].paths == Paths()
    assert loaded.generator.paths == DecodingPaths()  # ty: ignore[unresolved-attribute]


def test_dry_runs_and_three_steps_raise_no_false_alarm(run_of: Callable[[str], Run], dtype: str) -> None:
    for method in METHODS[dtype]:
        raises_no_false_alarm(run_of(method))


def raises_no_false_alarm(run: Run) -> None:
    """A dry run, and three steps that train."""
    found = dry_run(run, traces=2)
    assert not [note for note in found.notes if "slower" in note]
    if run.algorithm.samples == "thought":  # a response has to hold an answer in its place, which is taught first
        assert found.complaint() is None
    before = [p.detach().clone() for p in run.parameters[:3]]
    reports = list(loop.steps(run))
    warnings = [warning for report in reports for warning in report.warnings]
    true = ("invalid traces", "no signal") if run.algorithm.samples == "response" else ("invalid traces",)
    assert [warning for warning in warnings if not warning.startswith(true)] == []  # nobody taught it the format
    assert all(torch.isfinite(p).all() for p in run.parameters)
    moved = not all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=False))
    assert moved == any(report.metrics["tokens/trained"] > 0 for report in reports)


@pytest.fixture(scope="module")
def trained(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = settings(real_model, "float32", "grpo", steps=2)
    api.train(config, PROBLEMS, out=folder, reward=one_of_two())
    return folder


def test_a_run_that_was_cut_goes_on_to_the_same_weights(trained: Path, tmp_path: Path) -> None:
    first, last = sorted((trained / "checkpoints").iterdir())
    cut = tmp_path / "cut"
    shutil.copytree(trained, cut, ignore=shutil.ignore_patterns(last.name, "best"))
    said: list[str] = []
    run = api.resume(cut, PROBLEMS, reward=one_of_two())
    assert (run.done, list(run.notes)) == (1, [])
    again = api.train_run(run, cut, say=said.append)
    assert [line for line in said if "blind" not in line] == []
    weights = [folder / "model.safetensors" for folder in (last / "model", again.last, first / "model")]
    assert filecmp.cmp(weights[0], weights[1], shallow=False)
    assert not filecmp.cmp(weights[0], weights[2], shallow=False)  # the step that was taken again moves them


def test_a_run_on_it_can_be_asked(trained: Path, covrl: Covrl) -> None:
    found = covrl("ask", str(trained), "What is 2 plus 2?", "--answer", "4", "-n", "1")
    assert (found.code, found.err) == (0, "")
    assert found.out.count("posterior") == 2  # of base and run
    assert len(re.findall(r"(?:prior|posterior) +(?:-\d+\.?\d*|no closing tag)", found.out)) == 4  # two of each model
