"""Trains and evaluates one cell: ``python -m covrl.comparison.worker CELL.json``, in a process of its own.

``CELL.json`` holds ``{"cell": …, "out": FOLDER}``. The process uses one thread. It writes one JSON into the folder
when everything is done, and nothing before. Exit code 0: written; 2: the cell cannot be run, with one line why.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from covrl.api import build
from covrl.comparison.cells import Budget, Cell, present_commit, write_result
from covrl.comparison.methods import BASE, SETTINGS, recipe_config, settings_of
from covrl.config import RunConfig
from covrl.errors import TrainingStoppedError, UserError
from covrl.evaluation.evaluate import evaluate
from covrl.generation.base import Draw
from covrl.problems.tasks import find_task
from covrl.records import StepReport
from covrl.training.loop import Run

TASK = "digits"
PHASES = ("generate", "score", "train")
COUNTS = ("generated", "scored", "trained")
"""Tokens by what was done with them: sampled; gone forward without gradient; gone forward and backward.

Whoever changes what a method spends, or how it is counted, raises ``cells.COUNTING``."""

RECENT = 10
"""Steps whose mean length says how many more a budget of tokens lasts."""


def main(arguments: Sequence[str]) -> int:
    """The command; see the module."""
    torch.set_num_threads(1)
    if len(arguments) != 1:
        print("usage: python -m covrl.comparison.worker CELL.json", file=sys.stderr)
        return 2
    order = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    cell, out = Cell.read(order["cell"]), Path(order["out"])
    commit = present_commit()
    try:
        figures = run_cell(cell)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(write_result(out, cell, commit, figures))
    return 0


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and evaluate; returns what stands in the cell's JSON.

    A training that a guard or the method itself stops is a result too: ``stopped`` says why, and the model is
    evaluated as it is.

    Raises:
        UserError: the method, a setting or the base cannot be used.
    """
    run = build(cell_config(cell))
    run.timer = time.process_time  # on one thread, what else the machine does changes it little
    task = find_task(TASK)
    assert run.evaluator is not None
    course = Course(run)
    stopped: str | None = None
    try:
        for report in () if cell.method == BASE else steps(run, cell.budget):
            course.add(report)
    except TrainingStoppedError as error:
        stopped = str(error)
    problems = task.problems(cell.exam.split)[: cell.exam.problems]
    exam = evaluate(run.evaluator, problems, cell.exam.samples, run.config.generation.temperature, cell.seed)
    return {
        "settings": list(settings_of(cell.method)) if cell.method != BASE else [],
        "chance": task.chance(),
        "steps": run.done,
        "stopped": stopped,
        "exam": exam.record(),
        "tokens": course.tokens(),
        "seconds": course.seconds,
        "curve": course.points,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cell_config(cell: Cell) -> RunConfig:
    """The settings of the cell's run: the shipped recipe, the method's settings, then what the cell says."""
    first = cell.budget.amount if cell.budget.kind == "steps" else 1  # a budget of tokens is planned anew each step
    own = (
        f'model.path="{SETTINGS[cell.setting].model}"',
        f"training.seed={cell.seed}",
        f"training.steps={max(first, 1)}",
    )
    if cell.method == BASE:
        return recipe_config(own)
    return recipe_config((*settings_of(cell.method), *own, f"training.learning_rate={cell.rate!r}"))


def steps(run: Run, budget: Budget) -> Iterator[StepReport]:
    """The run's steps until the budget is spent.

    With a budget of tokens the number of steps is estimated anew after each, from the tokens of the last ones, so
    that the learning rate's schedule ends where the budget does, whatever a method's steps cost.
    """
    if budget.kind == "steps":
        yield from run.steps()
        return
    used: list[float] = []
    for report in run.steps():
        if "tokens/generated" not in report.metrics:
            raise UserError("--budget tokens: the loop does not report tokens/generated")
        used.append(report.metrics["tokens/generated"])
        training = run.config.training.model_copy(update={"steps": planned_steps(used, budget.amount)})
        run.config = run.config.model_copy(update={"training": training})
        yield report


def planned_steps(used: Sequence[float], amount: float) -> int:
    """How many steps ``amount`` tokens last, when those done have ``used`` so many each; never fewer than are done."""
    recent = used[-RECENT:]
    each = sum(recent) / len(recent)
    left = amount - sum(used)
    return len(used) + (max(round(left / each), 0) if each > 0 else 0)


class Course:
    """What is kept of a training: held-out points against tokens, and CPU seconds by phase.

    ``points`` begin with the base itself. Token counts are sums up to and with the step, ``None`` where the loop does
    not count them.
    """

    def __init__(self, run: Run) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.points: list[dict[str, Any]] = []
        self._sums: dict[str, float | None] = dict.fromkeys(COUNTS, 0.0)
        self._begun = time.perf_counter()
        assert run.evaluator is not None
        problems = run.held_out[: run.config.evaluation.problems]
        found = run.evaluator(problems, 0.0, Draw(run.config.training.seed, 0))
        self._point(0, {"eval/accuracy": found.accuracy, "eval/sound": found.sound})

    def add(self, report: StepReport) -> None:
        """Count a step in, and keep its held-out figures where it has some."""
        metrics = report.metrics
        for phase in PHASES:
            self.seconds[phase] += metrics.get(f"time/{phase}", 0.0)
        for name in COUNTS:
            before, here = self._sums[name], metrics.get(f"tokens/{name}")
            self._sums[name] = None if before is None or here is None else before + here
        if "eval/accuracy" in metrics:
            self._point(report.step, metrics)
            accuracy = metrics["eval/accuracy"]
            spent = time.perf_counter() - self._begun
            print(f"step {report.step}: held-out accuracy {accuracy:.1%}, {spent:.0f} s", file=sys.stderr, flush=True)

    def tokens(self) -> dict[str, float | None]:
        """Tokens of the whole training, by what was done with them."""
        return dict(self._sums)

    def _point(self, step: int, metrics: Mapping[str, float | None]) -> None:
        shown = {"accuracy": "eval/accuracy", "sound": "eval/sound", "log_prob": "eval/log_prob"}
        figures = {name: _finite(metrics.get(key)) for name, key in shown.items()}
        self.points.append({"step": step, **self._sums, **figures})


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: what is not a number is left out."""
    return value if value is not None and math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
