"""The evaluations that tests/evaluation/test_engines.py compares: in one process, and in two by worlds.py."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from covrl.cli.eval_run import Order
from covrl.cli.evaluate import TraceRequest, run_calibrate, run_eval, run_leak
from covrl.distributed.processes import Processes


def told(command: Callable[[], object]) -> Any:
    """What a command prints as JSON; None where another rank prints it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command()
    return json.loads(out.getvalue()) if out.getvalue() else None


def figures(folder: Path, out: Path, *settings: str) -> dict[str, Any]:
    """The figures of ``eval``, ``leak`` and ``calibrate`` for the model and the problems of ``folder``, by command."""
    model, problems, config = str(folder / "model"), str(folder / "problems.jsonl"), folder / "run.toml"
    order = Order([model], [problems], n=3, config=config, settings=settings)
    asked = TraceRequest(model, problems, config, settings, 3, 200, True)
    return {
        "eval": told(lambda: run_eval(order, out, True, None)),
        "leak": told(lambda: run_leak(asked, None)),
        "calibrate": told(lambda: run_calibrate(asked, None)),
    }


def main(folder: Path) -> None:
    close, Processes.close = Processes.close, lambda self: None  # the three commands share one group of processes
    found = figures(folder, folder / "by-two")
    rank = int(os.environ["RANK"])
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    close(Processes(rank, 2))
