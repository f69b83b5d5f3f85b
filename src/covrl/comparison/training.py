"""A cell's training as an ordinary run in a folder: started, continued from its checkpoint, or already finished.

cells/NAME/start.json   the model before its first step, on the held-out problems, and with how many threads
cells/NAME/end.json     written after training: why it stopped early, or null
cells/NAME/…            the files of every run: config.toml, metrics.jsonl, checkpoints/, best/
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from covrl.api import build, new_run_folder, resume, train_run
from covrl.checkpoints.run_writer import CannotSaveError
from covrl.comparison.cells import COUNTING, Budget
from covrl.config import RunConfig, typed_rewards
from covrl.errors import EngineError, OutOfMemoryError, RunInterruptedError, TrainingStoppedError
from covrl.files import write_file
from covrl.records import StepReport
from covrl.reporting.sinks import read_metrics
from covrl.training.held_out import held_out_metrics
from covrl.training.run import Run

RECENT = 10
"""Steps whose mean length is used to estimate how long a budget of tokens lasts."""

START, END = "start.json", "end.json"

UNFINISHED = (RunInterruptedError, CannotSaveError, OutOfMemoryError, EngineError)
"""Errors that end a training without a result; it can continue once the cause is removed."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A run after its training: the model before it, its reports, and why it was stopped early."""

    run: Run
    start: dict[str, Any]
    reports: Sequence[StepReport]
    stopped: str | None


def open_run(config: RunConfig, folder: Path, threads: int) -> Run:
    """The run of the folder, where its newest checkpoint was cut, or a new one; with the threads that it began with.

    Raises:
        UserError: the method, a setting or the model cannot be used, or the folder has changed.
    """
    start = _read(folder / START)
    torch.set_num_threads(start["threads"] if start else threads)  # another number would round differently
    if not (folder / "config.toml").exists():
        run = build(config)
        new_run_folder(folder)
    else:  # what a file may not name was typed on the command line of the comparison
        name, engine = config.algorithm.name, config.generation.engine
        run = resume(
            folder,
            reward=typed_rewards(config),
            algorithm=name if ":" in name else None,
            engine=engine if "://" in engine else None,
        )
    if run.models["policy"].device.type == "cpu":
        run.timer = time.process_time  # other work on the machine changes it little
    return run


def train_cell(run: Run, budget: Budget, folder: Path) -> Trained:
    """Take the remaining steps of a cell's training in its folder; none if it is finished.

    Raises:
        RunInterruptedError, CannotSaveError, OutOfMemoryError, EngineError: it can continue from its checkpoint.
    """
    start = _read(folder / START)
    if start is None:
        start = {"threads": torch.get_num_threads(), **started(run)}
        write_file(folder / START, json.dumps(start))
    end = _read(folder / END)
    if end is None:
        end = {"stopped": _train(run, budget, folder)}
        write_file(folder / END, json.dumps(end))
    return Trained(run, start, reports_of(folder, run.done), end["stopped"])


def started(run: Run) -> dict[str, Any]:
    """The version of counting, and the held-out figures of a run before its first step, where its curves begin."""
    return {"counting": COUNTING, "metrics": held_out_metrics(run)[0] if run.config.evaluation.every else {}}


def reports_of(folder: Path, done: int) -> list[StepReport]:
    """The reports of the steps up to ``done``."""
    path = folder / "metrics.jsonl"
    return [r for r in read_metrics(path) if r.step <= done] if path.exists() else []


def _train(run: Run, budget: Budget, folder: Path) -> str | None:
    """All remaining steps; if the method or a guard ended them early, the reason, which is a result too."""
    sinks: list[Planner | Said] = [Said(folder)]
    if budget.kind == "tokens":
        sinks.insert(0, Planner(run, budget.amount, reports_of(folder, run.done)))
    try:
        train_run(run, folder, sinks, _say)
    except UNFINISHED:
        raise
    except TrainingStoppedError as error:
        return str(error)
    return None


class Planner:
    """Ends a run when its budget of generated tokens is spent, whatever a method's steps cost.

    The number of steps is estimated again after each step, from the tokens of the last ones, so that the learning
    rate's schedule ends there, too.
    """

    def __init__(self, run: Run, amount: int, before: Sequence[StepReport] = ()) -> None:
        self._run, self._amount = run, amount
        self._used = [report.metrics["tokens/generated"] for report in before]
        if before:
            self._plan()

    def write(self, report: StepReport) -> None:
        """Add the tokens of a step."""
        self._used.append(report.metrics["tokens/generated"])
        self._plan()

    def close(self) -> None:
        """Nothing is held."""

    def _plan(self) -> None:
        steps = planned_steps(self._used, self._amount)
        training = self._run.config.training.model_copy(update={"steps": steps})
        self._run.config = self._run.config.model_copy(update={"training": training})


def planned_steps(used: Sequence[float], amount: float) -> int:
    """How many steps ``amount`` tokens last, when those done have ``used`` so many each; never fewer than are done."""
    recent = used[-RECENT:]
    each = sum(recent) / len(recent)
    left = amount - sum(used)
    return len(used) + (max(round(left / each), 0) if each > 0 else 0)


class Said:
    """One line per step on standard error, and the warnings."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._begun = folder, time.perf_counter()

    def write(self, report: StepReport) -> None:
        """Print the line of a step."""
        names = {"eval/accuracy": "held-out accuracy", "eval/log_prob": "held-out log p"}
        figures = [f"{name} {report.metrics[key]:.4g}" for key, name in names.items() if key in report.metrics]
        _say(", ".join([f"step {report.step}", *figures, f"{time.perf_counter() - self._begun:.0f} s"]))
        for warning in report.warnings:
            _say(f"step {report.step}: {warning}")

    def close(self) -> None:
        """Nothing is held."""


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
