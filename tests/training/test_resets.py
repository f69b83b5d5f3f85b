"""What begins anew after a step, and what is asked before the first: in checkpoints, taken back, interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from training.test_loop import PROBLEMS, make_run, table, weights

from covrl.algorithms.base import Reset
from covrl.api import build
from covrl.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from covrl.config import RunConfig
from covrl.errors import RunInterruptedError, UserError
from covrl.models.spec import ModelSpec
from covrl.records import Problem
from covrl.rewards.named import as_named
from covrl.training import step as steps
from covrl.training.publish import begin_anew
from covrl.training.run import Run
from covrl.training.step import take_step


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny("gpt2", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_letters(problem: Problem, text: str) -> float:
    return float(sum(map(ord, text)) % 2)


def tensors(run: Run) -> dict[str, torch.Tensor]:
    """Weights of all models, and the optimizer's moments."""
    found = {f"policy {i}": p.detach().clone() for i, p in enumerate(run.parameters)}
    for name, model in run.models.items():
        found |= {f"{name} {i}": p.detach().clone() for i, p in enumerate(model.own_weights())}
    for i, p in enumerate(run.parameters):
        found |= {f"{k} {i}": v.clone() for k, v in run.optimizers["policy"].state.get(p, {}).items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


EVERY: dict[str, Any] = {"reset": "every", "every": 2, "kl_weight": 0.1, "resample": False}
RESUMED: dict[str, dict[str, Any]] = {
    "prorl": EVERY,
    "a_star_po": {"samples": 2},
    "train_long_think_short": {"instruction": "{budget}", "start": 30, "end": 10, "change_every": 1},
    "recap": {},
    "grpo_lambda": {},
    "rlsp": {"exploration": 5.0},
}


def rewarded(run: Run) -> Run:
    run.reward = by_letters
    if run.algorithm.name == "recap":
        run.reward = as_named({"right": by_letters, "length": lambda problem, text: len(text) / 50})
    return run


@pytest.mark.parametrize(("name", "at"), [*((name, 1) for name in RESUMED), ("prorl", 2)])
def test_a_resumed_run_has_the_methods_memory_and_goes_on_bit_for_bit(folder: Path, name: str, at: int) -> None:
    """Of a checkpoint right after a reset, whose optimizer has no moments, too."""
    whole, parts = (rewarded(make_run(name, **RESUMED[name])) for _ in range(2))
    for _ in range(3):
        take_step(whole)
    for _ in range(at):
        take_step(parts)
    saved = save_checkpoint(parts, folder / "checkpoints", keep=1)
    config = RunConfig.model_validate(table(name, **RESUMED[name]))
    resumed = rewarded(build(config, PROBLEMS, policy_path=saved / "model"))
    load_checkpoint(resumed, saved)
    assert resumed.algorithm.state_dict() == parts.algorithm.state_dict()
    assert same(tensors(resumed), tensors(parts))
    for _ in range(3 - at):
        take_step(resumed)
    assert same(tensors(whole), tensors(resumed))
    assert whole.algorithm.state_dict() == resumed.algorithm.state_dict()


def test_a_reset_makes_the_reference_the_policy_and_empties_the_optimizer(folder: Path) -> None:
    run = rewarded(make_run("prorl", **EVERY))
    first = take_step(run)
    assert not any("reset" in line for line in first.warnings)
    reference = run.models["reference"].own_weights()
    assert any(not torch.equal(a, b) for a, b in zip(reference, run.parameters, strict=True))
    second = take_step(run)
    said = "reset after step 2: reference is the policy of now, and the optimizer's moments begin at 0"
    assert said in second.warnings
    assert all(torch.equal(a, b) for a, b in zip(reference, run.parameters, strict=True))
    assert not run.optimizers["policy"].state
    assert take_step(run).metrics["prorl/since_reset"] == 0
    assert {int(s["step"]) for s in run.optimizers["policy"].state.values()} == {1}
    kept = rewarded(make_run("prorl", **EVERY, restart_optimizer=False))
    for _ in range(2):
        take_step(kept)
    assert {int(s["step"]) for s in kept.optimizers["policy"].state.values()} == {2}


def test_a_step_that_fails_after_its_reset_is_taken_back_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two updates a batch, of which weights are copied: reference, moments and the trigger are as before."""
    run = rewarded(make_run("prorl", {"mini_batches": 2}, **EVERY))
    take_step(run)
    before, memory = tensors(run), run.algorithm.state_dict()

    def then_stop(run: Run, wanted: Reset) -> str:
        begin_anew(run, wanted)
        raise RunInterruptedError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(steps, "begin_anew", then_stop)
        with pytest.raises(RunInterruptedError):
            take_step(run)
    assert same(tensors(run), before)
    assert run.algorithm.state_dict() == memory
    assert run.done == 1
    other = rewarded(make_run("prorl", {"mini_batches": 2}, **EVERY))
    for _ in range(2):
        take_step(other)
    take_step(run)
    assert same(tensors(run), tensors(other))


@pytest.mark.parametrize("follows", ["frozen", "copy", "average"])
def test_a_model_that_follows_in_another_way_cannot_be_reset(folder: Path, follows: Any) -> None:
    run = make_run("prorl", **EVERY)
    run.algorithm.models = (ModelSpec("reference", follows),)
    said = f"algorithm prorl: reset_after names the model 'reference', which has follows = '{follows}'; a model that is"
    with pytest.raises(UserError, match=said):
        begin_anew(run, Reset(("reference",)))


def test_values_come_from_one_pass_of_all_problems_before_the_first_update(folder: Path) -> None:
    run = rewarded(make_run("a_star_po", samples=3))
    first = take_step(run)
    values = run.algorithm.state_dict()["values"]
    assert set(values) == {p.id for p in PROBLEMS}
    assert any(line.startswith("surveyed 6 problems before the first update: ") for line in first.warnings)
    assert any(0 < v < 1 for v in values.values())
    second = take_step(run)
    assert run.algorithm.state_dict()["values"] == values
    assert not any("surveyed" in line for line in second.warnings)
    other = rewarded(make_run("a_star_po", {"problems_per_step": 1}, samples=3))
    take_step(other)
    assert other.algorithm.state_dict()["values"] == values  # however many are sampled at once


def test_the_steps_samples_are_not_those_of_the_survey(folder: Path) -> None:
    runs = [rewarded(make_run("a_star_po", **more)) for more in ({"samples": 4}, {"estimate": "zero"})]
    lengths = [take_step(run).metrics["length/prior"] for run in runs]
    assert lengths[0] == lengths[1]


def test_an_interrupted_survey_is_made_again_with_the_same_values(folder: Path) -> None:
    whole, run = (rewarded(make_run("a_star_po", samples=2)) for _ in range(2))
    take_step(whole)
    asked = [0]

    def at_second() -> bool:
        asked[0] += 1
        return bool(run.algorithm.state_dict()["values"])

    run.stopping = at_second
    with pytest.raises(RunInterruptedError):
        take_step(run)
    assert asked[0]
    assert (run.done, run.algorithm.state_dict()) == (0, {"values": {}})
    run.stopping = None
    take_step(run)
    assert torch.equal(weights(run), weights(whole))
    assert run.algorithm.state_dict() == whole.algorithm.state_dict()


def test_a_first_step_that_is_left_out_leaves_the_survey_to_the_second(folder: Path) -> None:
    """Its memory is taken back with it, and the policy is still what it was."""
    whole, run = (rewarded(make_run("a_star_po", samples=2)) for _ in range(2))
    take_step(whole)
    plain: Callable[..., Any] = run.algorithm.credit
    run.algorithm.credit = lambda groups: [  # ty: ignore[invalid-assignment]
        [c.__class__({k: w * float("nan") for k, w in c.weights.items()}, c.constants) for c in row]
        for row in plain(groups)
    ]
    run.config.guards.__dict__["non_finite"] = "skip"
    assert "guard/skipped" in take_step(run).metrics
    assert run.algorithm.state_dict() == {"values": {}}
    run.algorithm.credit = plain  # ty: ignore[invalid-assignment]
    take_step(run)
    assert run.algorithm.state_dict() == whole.algorithm.state_dict()
