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
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from covrl.comparison.cells import Cell, present_commit, write_result
from covrl.comparison.exam import chance_of, examine, problems_of, source_of
from covrl.comparison.methods import BASE, settings_of
from covrl.comparison.training import Trained, open_run, started, train_cell
from covrl.config import RunConfig
from covrl.errors import TrainingStoppedError, UserError
from covrl.records import Problem

PHASES = ("generate", "score", "train")
COUNTS = ("generated", "scored", "trained")
"""Tokens by what was done with them: sampled; gone forward without gradient; gone forward and backward.

A change of what a method spends, or of how it is counted, must raise ``cells.COUNTING``."""

HELD_OUT = ("accuracy", "sound", "log_prob")
"""Figures of the evaluations in training."""

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
    source = source_of(order.config.problems, cell)
    own = {} if order.about is None else {"about": order.about, "source": source, "by_problem": columns}
    return {
        "settings": list(settings_of(cell.method)) if cell.method != BASE else [],
        "chance": chance_of(source),
        "steps": trained.run.done,
        "stopped": trained.stopped,
        "exam": exam,
        **_course(trained),
        "counting": trained.start["counting"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **own,
    }


def _course(trained: Trained) -> dict[str, Any]:
    """What is kept of a training: optimizer steps, tokens, seconds by phase, and held-out figures against tokens.

    The curve begins with the base itself. Token counts are sums up to and with the step, None where the loop does not
    count them. Seconds are CPU seconds, on an accelerator wall seconds.
    """
    reports = trained.reports
    tokens = {n: list(accumulate((r.metrics.get(f"tokens/{n}") for r in reports), _plus, initial=0.0)) for n in COUNTS}
    measured = [(i, r.step, r.metrics) for i, r in enumerate(reports, 1) if "eval/log_prob" in r.metrics]
    if trained.start["metrics"]:
        measured.insert(0, (0, 0, trained.start["metrics"]))
    return {
        "updates": sum(int(r.metrics.get("optim/updates", 0)) for r in reports),
        "tokens": {name: sums[-1] for name, sums in tokens.items()},
        "seconds": {phase: sum((r.metrics.get(f"time/{phase}", 0.0) for r in reports), 0.0) for phase in PHASES},
        "curve": [
            {"step": step}
            | {name: sums[i] for name, sums in tokens.items()}
            | {name: _finite(metrics.get(f"eval/{name}")) for name in HELD_OUT}
            for i, step, metrics in measured
        ],
    }


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


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
