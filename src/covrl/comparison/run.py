"""Runs the missing cells of a comparison, two single-thread processes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from covrl.comparison.cells import Cell
from covrl.files import alone_in, made
from covrl.reporting.format import duration

JOBS = 2
POLL_S = 0.1

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell that gave no result, and the last line that its process wrote to standard error."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True)
class _Job:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    begun: float


def worker_command(order: Path) -> list[str]:
    """The command that runs the cell of the file ``order``."""
    return [sys.executable, "-m", "covrl.comparison.worker", str(order)]


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    say: Callable[[str], None] = lambda _: None,
    command: Callable[[Path], list[str]] = worker_command,
    jobs: int = JOBS,
) -> list[Failure]:
    """Run every cell in a fresh process, ``jobs`` at a time; returns those that failed, which stop no other.

    Each writes its result into ``out`` as it ends, so whoever interrupts this loses the cells in progress alone and
    the next call runs what is missing. ``say`` is told of every cell that ends.

    Raises:
        UserError: ``out`` cannot be written, or another comparison is running in it.
    """
    failures: list[Failure] = []
    waiting, running = list(cells), []
    with alone_in(made(out), "a comparison", lock="."), tempfile.TemporaryDirectory(prefix="covrl-compare-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0), len(waiting), Path(scratch), out, command))
                ended = [job for job in running if job.process.poll() is not None]
                running = [job for job in running if job not in ended]
                for job in ended:
                    failure = _outcome(job)
                    failures += [failure] if failure else []
                    left = len(waiting) + len(running)
                    spent = duration(time.monotonic() - job.begun)
                    how = f"failed: {failure.reason}" if failure else f"done in {spent}"
                    say(f"{job.cell.title}: {how}; {left} to go")
                time.sleep(0 if ended else POLL_S)
        finally:
            for job in running:
                job.process.terminate()
            for job in running:
                job.process.wait()
    return failures


def _start(cell: Cell, number: int, scratch: Path, out: Path, command: Callable[[Path], list[str]]) -> _Job:
    order, log = scratch / f"{number}.json", scratch / f"{number}.log"
    order.write_text(json.dumps({"cell": cell.record(), "out": str(out.resolve())}), encoding="utf-8")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command(order),
            env=os.environ | THREADS | QUIET,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    return _Job(cell, process, log, time.monotonic())


def _outcome(job: _Job) -> Failure | None:
    code = job.process.returncode
    if code == 0:
        return None
    lines = [line.strip() for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "nothing on standard error")
    return Failure(job.cell, f"{last} (signal {-code})" if code < 0 else last)
