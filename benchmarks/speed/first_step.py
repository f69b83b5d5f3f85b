"""``covrl quickstart`` in a new process until the line of its first step is on the terminal, and where the time goes.

The line is what a person waits for. Where the seconds go is measured in another process that does the same in parts:
imports, building the run, the first step with its evaluation and its files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from speed.meter import emit
from speed.processes import Bench, WorkerError, environment, spread

GOAL = 10.0


def measure(bench: Bench) -> dict[str, Any]:
    """Wall seconds to the first step's line with the number of threads that a user has, and the parts."""
    seconds, parts = [], []
    for _ in range(bench.repeats):
        seconds.append(until_first_step(bench.prefix))
        parts.append(bench.worker("first_step"))
    names = parts[0]
    return {"wall": spread(seconds), "parts": {n: median(p[n] for p in parts) for n in names}, "goal": GOAL}


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    wall, parts = found["wall"], found["parts"]
    return [
        "wall seconds in parts: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()),
        f"covrl quickstart to its first step: {wall[0]:.2f} s ({wall[1]:.2f} to {wall[2]:.2f}; goal: at most {GOAL:g})",
    ]


def until_first_step(prefix: tuple[str, ...] = ()) -> float:
    """Wall seconds from the start of the process to the line ``step 1/…``; the process is then ended.

    Raises:
        WorkerError: it ended before that.
    """
    given = {k: v for k, v in environment(1).items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as scratch:
        command = [*prefix, sys.executable, "-c", QUICKSTART, "quickstart", "--out", str(Path(scratch) / "run")]
        begun = time.perf_counter()
        with subprocess.Popen(command, env=given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as own:
            assert own.stderr is not None
            line = process = own.stderr.readline()
            for line in own.stderr:
                if line.startswith("step"):
                    found = time.perf_counter() - begun
                    break
            else:
                raise WorkerError(f"covrl quickstart ended without a step: {line.strip()[:300]}")
            os.kill(int(process), signal.SIGTERM)  # not `own`, which may be what the prefix started
            own.communicate()
    return found


QUICKSTART = "import os, sys; print(os.getpid(), file=sys.stderr, flush=True); from covrl.cli.app import main; main()"


def main() -> dict[str, float]:
    """Wall seconds of the parts."""
    from covrl.cli.options import cpu_defaults

    cpu_defaults()
    seconds: dict[str, float] = {}
    begun = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        seconds[name] = now - begun
        begun = now

    import torch  # noqa: F401

    mark("import torch")
    from covrl.api import build, new_run_folder, train_run
    from covrl.quickstart.run import load_config

    mark("import covrl and transformers")
    run = build(load_config(["training.steps=1"]))
    mark("model and problems")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        new_run_folder(folder)
        report = train_run(run, folder).reports[0]
        seconds["first step"] = report.metrics["time/step"]
        seconds["evaluation in it"] = report.metrics["time/eval"]
        mark("first step, its evaluation, files")
    seconds["files and the rest"] = (
        seconds.pop("first step, its evaluation, files") - seconds["first step"] - seconds["evaluation in it"]
    )
    return seconds


if __name__ == "__main__":
    emit(main())
