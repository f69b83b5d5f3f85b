"""Trains and evaluates one cell: ``python -m covrl.comparison.worker ORDER.json``, in a process of its own.

``ORDER.json`` is an :class:`Order`. One JSON file per cell is written into ``out`` when the cell is finished, and
nothing before. Exit code 0: written; 1: it can continue from its checkpoint; 2: the cell cannot be run. The last line
of standard error gives the reason.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from covrl.comparison.cells import Cell, present_commit, write_result
from covrl.comparison.exam import chance_of, examine, problems_of, source_of
from covrl.comparison.methods import BASE, settings_of
from covrl.comparison.training import Trained, open_run, started, train_cell
from covrl.config import RunConfig
from covrl.errors import TrainingStoppedError, UserError
from covrl.records import Problem, StepReport

PHASES = ("generate", "score", "train")
COUNTS = ("generated", "scored", "trained")
"""Tokens by what was done with them: sampled; gone forward without gradient; gone forward and backward.

A change of what a method spends, or of how it is counted, must raise ``cells.COUNTING``."""

WATCH_S = 2.0
"""Seconds between checks that the parent process still runs."""


@dataclass(frozen=True, slots=True)
class Order:
    """A worker's task: a training, what its model is measured on, and where the results are written.

    ``cells`` differ only in their exams. ``folder`` is that of the run, which is kept; None for a temporary one.
    ``about`` describes the problems in tables; with it the results have the figures of each problem.
    """

    cells: tuple[Cell, ...]
    config: RunConfig
    out: Path
    folder: Path | None = None
    threads: int = 1
    about: str | None = None


ORDER = TypeAdapter(Order)
"""An order as JSON."""


def main(arguments: Sequence[str]) -> int:
    """The command; see the module."""
    if len(arguments) != 1:
        print("usage: python -m covrl.comparison.worker ORDER.json", file=sys.stderr)
        return 2
    commit = present_commit()
    try:
        order = ORDER.validate_json(Path(arguments[0]).read_bytes())
        for cell, figures in run_order(order):
            print(write_result(order.out, cell, commit, figures))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingStoppedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run_order(order: Order) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Train, and evaluate each cell; yields the content of its JSON.

    A training that a guard or the method itself stops is a result too: ``stopped`` says why, and the model is
    evaluated as it is.

    Raises:
        UserError: the method, a setting, the base or a problem cannot be used.
        TrainingStoppedError: the training can continue from its checkpoint.
    """
    cell = order.cells[0]
    with _folder_of(order) as folder:
        run = open_run(order.config, folder, order.threads)
        problems = [problems_of(run, each, order.config.problems) for each in order.cells]  # before hours of training
        trained = Trained(run, started(run), (), None) if cell.method == BASE else train_cell(run, cell.budget, folder)
        for each, asked in zip(order.cells, problems, strict=True):
            yield each, _figures(order, each, trained, asked)


@contextmanager
def _folder_of(order: Order) -> Generator[Path]:
    """The run's folder, or a temporary one."""
    if order.folder and order.cells[0].method != BASE:
        yield order.folder
        return
    with tempfile.TemporaryDirectory(prefix="covrl-cell-") as scratch:
        yield Path(scratch)


def _figures(order: Order, cell: Cell, trained: Trained, problems: Sequence[Problem]) -> dict[str, Any]:
    exam, columns = examine(trained.run, cell, problems)
    source, course = source_of(order.config.problems, cell), Course(trained)
    own = {} if order.about is None else {"about": order.about, "source": source, "by_problem": columns}
    return {
        "settings": list(settings_of(cell.method)) if cell.method != BASE else [],
        "chance": chance_of(source),
        "steps": trained.run.done,
        "updates": course.updates,
        "stopped": trained.stopped,
        "exam": exam,
        "tokens": course.tokens(),
        "seconds": course.seconds,
        "curve": course.points,
        "counting": trained.start["counting"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **own,
    }


class Course:
    """What is kept of a training: held-out points against tokens, seconds by phase, and its optimizer steps.

    ``points`` begin with the base itself. Token counts are sums up to and with the step, ``None`` where the loop does
    not count them. Seconds are CPU seconds, on an accelerator wall seconds.
    """

    def __init__(self, trained: Trained) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.updates = 0
        self.points: list[dict[str, Any]] = []
        self._sums: dict[str, float | None] = dict.fromkeys(COUNTS, 0.0)
        if trained.start["metrics"]:
            self._point(0, trained.start["metrics"])
        for report in trained.reports:
            self._add(report)

    def tokens(self) -> dict[str, float | None]:
        """Tokens of the whole training, by what was done with them."""
        return dict(self._sums)

    def _add(self, report: StepReport) -> None:
        """Add a step, and keep its held-out figures if it has any."""
        metrics = report.metrics
        self.updates += int(metrics.get("optim/updates", 0))
        for phase in PHASES:
            self.seconds[phase] += metrics.get(f"time/{phase}", 0.0)
        for name in COUNTS:
            before, here = self._sums[name], metrics.get(f"tokens/{name}")
            self._sums[name] = None if before is None or here is None else before + here
        if "eval/log_prob" in metrics:
            self._point(report.step, metrics)

    def _point(self, step: int, metrics: Mapping[str, float | None]) -> None:
        shown = {"accuracy": "eval/accuracy", "sound": "eval/sound", "log_prob": "eval/log_prob"}
        figures = {name: _finite(metrics.get(key)) for name, key in shown.items()}
        self.points.append({"step": step, **self._sums, **figures})


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: values that are not numbers are omitted."""
    return value if value is not None and math.isfinite(value) else None


def _end_with(parent: int) -> None:
    """End as after Ctrl-C, with a checkpoint, if the parent process has ended."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.exit(main(sys.argv[1:]))
