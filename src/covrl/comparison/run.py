"""Runs the missing cells of a comparison, a few processes at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from covrl.comparison.cells import Cell
from covrl.comparison.worker import ORDER, Order
from covrl.files import alone_in, made
from covrl.guards.signals import handled
from covrl.planning.machine import SHARED, main_memory
from covrl.reporting.format import duration

JOBS = 2
POLL_S = 0.1
STATUS_S = 30.0
"""Seconds between two progress lines about a training."""

LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class Share(NamedTuple):
    """How the machine is divided: processes at a time, and the threads of each."""

    jobs: int
    threads: int


TWO = Share(JOBS, 1)
"""Two at a time, of one thread each."""


def divide(jobs: int | None, threads: int | None, cores: int, most: int, accelerator: bool = False) -> Share:
    """Divide the machine's cores between at most ``most`` trainings; a value of None is derived from the others.

    As many jobs as there are cores for their threads (one each by default); on an accelerator one job, because its
    memory is shared. The threads of a job are the cores divided by the jobs.

    Example:
        >>> divide(None, None, cores=8, most=3)
        Share(jobs=3, threads=2)
    """
    if jobs is None:
        jobs = 1 if accelerator else max(1, min(cores // (threads or 1), most))
    return Share(jobs, threads or max(1, cores // jobs))


def cores() -> int:
    """The cores that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell without a result, and the last line that its process wrote to standard error."""

    cell: Cell
    reason: str


@dataclass(slots=True)
class _Job:
    cells: Sequence[Cell]
    process: subprocess.Popen[bytes]
    log: Path
    before: int  # bytes of the log that earlier processes wrote
    begun: float
    told: float = field(default_factory=time.monotonic)
    last: str = ""

    @property
    def title(self) -> str:
        return self.cells[0].title

    def lines(self) -> list[str]:
        """What the process has written to standard error."""
        with self.log.open("rb") as file:
            file.seek(self.before)
            text = file.read().decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]


def worker_command(order: Path) -> list[str]:
    """The command that runs the cell of the file ``order``."""
    return [sys.executable, "-m", "covrl.comparison.worker", str(order)]


def run_cells(
    orders: Sequence[Order],
    out: Path,
    say: Callable[[str], None] = lambda _: None,
    command: Callable[[Path], list[str]] = worker_command,
    share: Share = TWO,
) -> list[Failure]:
    """Run every order in a fresh process, a few at a time; returns the cells that failed. A failed one does not stop
    the others.

    Each writes its results into ``out`` when it ends, so an interruption loses only the cells in progress, and the
    next call runs what is missing. ``say`` gets a line for every order that ends, and now and then the progress of the
    others.

    Raises:
        UserError: ``out`` cannot be written, or another comparison is running in it.
    """
    failures: list[Failure] = []
    waiting, running = list(orders), []
    environment = _environment(share)
    with (
        alone_in(made(out), "a comparison", lock="."),
        handled(signal.default_int_handler, signal.SIGTERM),  # as Ctrl-C, so that no process is left running
        tempfile.TemporaryDirectory(prefix="covrl-compare-") as scratch,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < share.jobs:
                    running.append(_start(waiting.pop(0), len(waiting), Path(scratch), environment, command))
                ended = [job for job in running if job.process.poll() is not None]
                running = [job for job in running if job not in ended]
                for job in ended:
                    reason = _failed(job)
                    failures += [Failure(cell, reason) for cell in job.cells if reason]
                    left, spent = len(waiting) + len(running), duration(time.monotonic() - job.begun)
                    say(f"{job.title}: {f'failed: {reason}' if reason else f'done in {spent}'}; {left} to go")
                for job in running:
                    _tell(job, say)
                time.sleep(0 if ended else POLL_S)
        finally:
            _stop(running, say)
    return failures


def _environment(share: Share) -> dict[str, str]:
    """The environment of the processes. The memory that is free now is divided, because later ones would find less."""
    shared = {SHARED: f"{share.jobs}:{main_memory().free}"} if share.jobs > 1 else {}
    return os.environ | dict.fromkeys(LIBRARIES, str(share.threads)) | QUIET | shared


def _start(
    order: Order, number: int, scratch: Path, environment: dict[str, str], command: Callable[[Path], list[str]]
) -> _Job:
    file, log = scratch / f"{number}.json", scratch / f"{number}.log"
    file.write_bytes(ORDER.dump_json(order))
    if order.folder:
        order.folder.mkdir(parents=True, exist_ok=True)
        log = order.folder / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            command(file),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # only this process gets Ctrl-C; it signals each once to end with a checkpoint
        )
    return _Job(order.cells, process, log, before, time.monotonic())


def _failed(job: _Job) -> str:
    """Why there is no result; empty if there is one."""
    code = job.process.returncode
    if code == 0:
        return ""
    last = (job.lines() or ["nothing on standard error"])[-1]
    return f"{last} (signal {-code})" if code < 0 else last


def _tell(job: _Job, say: Callable[[str], None]) -> None:
    """Report now and then which step a training is at."""
    if time.monotonic() - job.told < STATUS_S:
        return
    job.told = time.monotonic()
    steps = [line for line in job.lines() if line.startswith("step ")]
    if steps and steps[-1] != job.last:
        job.last = steps[-1]
        say(f"{job.title}: {job.last}")


def _stop(running: Sequence[_Job], say: Callable[[str], None]) -> None:
    if running:
        say(f"stopping {len(running)} process{'es' if len(running) > 1 else ''} …")
    for job in running:
        job.process.terminate()
    for job in running:
        job.process.wait()
