"""A run that was interrupted and resumed against one that was not; damaged and foreign checkpoints."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from covrl import api
from covrl.config import RunConfig, check, read_toml
from covrl.errors import RunInterruptedError, UserError
from covrl.quickstart.run import load_config
from covrl.records import StepReport
from covrl.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from covrl.training.loop import Run

SMALL = [
    "training.steps=5",
    "training.problems_per_step=3",
    "training.stream_norms_every=2",
    "evaluation.every=2",
    "evaluation.problems=8",
    "checkpoint.every=2",
    "training.learning_rate=1e-3",
]


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.parameters])


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what may differ between two runs: the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.get("metrics", row).items() if not k.startswith("time/")} for row in lines]


class InterruptAt:
    """A sink that sends the process Ctrl-C while a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, report: StepReport) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None: ...


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupted_run_ends_with_the_same_bytes_as_one_that_was_not(tmp_path: Path, at: int) -> None:
    whole = api.build(load_config(SMALL))
    api.new_run_folder(tmp_path / "whole")
    api.train_run(whole, tmp_path / "whole")
    api.new_run_folder(tmp_path / "parts")
    with pytest.raises(RunInterruptedError):
        api.train_run(api.build(load_config(SMALL)), tmp_path / "parts", [InterruptAt(at)])
    resumed = api.resume(tmp_path / "parts")
    assert resumed.done == at
    api.train_run(resumed, tmp_path / "parts")
    assert torch.equal(weights(whole), weights(resumed))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    for file in ("optimizer.safetensors", "model/model.safetensors", "state.json"):
        last = "checkpoints/step-000005"
        assert (tmp_path / "whole" / last / file).read_bytes() == (tmp_path / "parts" / last / file).read_bytes()


def test_only_the_newest_checkpoints_are_kept_and_the_best_model_beside_them(tmp_path: Path) -> None:
    run = api.build(load_config(SMALL))
    api.new_run_folder(tmp_path / "run")
    trained = api.train_run(run, tmp_path / "run")
    kept = [p.name for p in checkpoints(tmp_path / "run/checkpoints")]
    assert kept == ["step-000004", "step-000005"]
    assert trained.last == tmp_path / "run/checkpoints/step-000005/model"
    assert trained.best == tmp_path / "run/best"
    seen = [(row["eval/accuracy"], row["eval/log_prob"]) for row in rows(tmp_path / "run") if "eval/accuracy" in row]
    assert run.best == max(seen)


def test_the_settings_survive_a_resume(tmp_path: Path) -> None:
    config = load_config(SMALL)
    api.new_run_folder(tmp_path / "run")
    with pytest.raises(RunInterruptedError):
        api.train_run(api.build(config), tmp_path / "run", [InterruptAt(1)])
    assert api.resume(tmp_path / "run").config == config
    assert check(RunConfig, read_toml(tmp_path / "run/config.toml")) == config


def test_a_torn_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    run = api.build(load_config(SMALL))
    save_checkpoint(run, tmp_path, keep=3)
    (tmp_path / "step-000009").mkdir()
    (tmp_path / ".writing-000010").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000000"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "state.json").write_text("{"), "the checkpoint is damaged"),
        (lambda p: (p / "optimizer.safetensors").write_bytes(b"xx"), "the checkpoint is damaged"),
        (lambda p: (p / "state.json").write_text('{"format": 99}'), "checkpoint format 99, this version reads 1 and 2"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage, said: str) -> None:
    run = api.build(load_config(SMALL))
    folder = save_checkpoint(run, tmp_path, keep=1)
    damage(folder)
    with pytest.raises(UserError, match=said):
        load_checkpoint(run, folder)


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.toml: no such file"):
        api.resume(tmp_path)
