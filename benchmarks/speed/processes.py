"""Measurements in processes of their own, and what is said of the machine that they ran on."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent.parent


class WorkerError(Exception):
    """A measuring process failed; says how."""


@dataclass(frozen=True)
class Bench:
    """How measurements are made: interpreters of the two sides, and where models go.

    ``real`` is the folder of a pretrained model, for workloads that want one. ``search``: settings are searched for
    every workload. ``prefix`` is put before every measuring command (``taskset -c 0``, ``nice -n -5``).
    """

    models: Path
    peer_python: str = sys.executable
    threads: int = 1
    repeats: int = 5
    prefix: tuple[str, ...] = ()
    real: Path | None = None
    search: bool = False
    log: Any = None

    def worker(self, module: str, peer: bool = False, **asked: Any) -> dict[str, Any]:
        """What ``python -m speed.MODULE`` prints last, run with the threads and a bound on its memory.

        Raises:
            WorkerError: it failed; with the last line that it wrote.
        """
        asked = {"threads": self.threads, "memory_mb": free_mb() - 1024, **asked}
        command = [*self.prefix, self.peer_python if peer else sys.executable, "-m", f"speed.{module}"]
        if self.log:
            shown = {k: v for k, v in asked.items() if k not in ("model", "memory_mb")}
            print(f"  {module} {json.dumps(shown)}", file=self.log, flush=True)
        try:
            done = subprocess.run(
                [*command, json.dumps(asked)],
                env=environment(asked["threads"]),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise WorkerError(f"{command[0]}: {error.strerror}") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise WorkerError(f"speed.{module} ended with {done.returncode}: {last[:300]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def model(self, workload: Any) -> str:
        """The folder of the workload's model, made if it is not there; of a pretrained one, the folder that was given.

        Raises:
            WorkerError: no pretrained one was given.
        """
        if workload.real:
            if self.real is None:
                raise WorkerError(f"{workload.name}: no model was given")
            return str(self.real)
        from speed.workloads import make_model

        return str(make_model(workload, self.models))

    @cached_property
    def peer_versions(self) -> dict[str, str]:
        """Versions of what the peer runs on; empty where it cannot be run or lacks some of it."""
        code = (
            "import json; from importlib.metadata import version as v; "
            "print(json.dumps({n: v(n) for n in ('torch', 'transformers', 'trl')}))"
        )
        try:
            done = subprocess.run([self.peer_python, "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            return {}
        return json.loads(done.stdout) if done.returncode == 0 else {}


def attempts(repeats: int, runs: Mapping[str, Callable[[], dict[str, Any]]]) -> tuple[dict[str, Any], list[str]]:
    """What each of ``runs`` gave, in turn and ``repeats`` times, and what was said of those that failed.

    A measurement of minutes that fails costs itself alone: the others stay, and the failure is in the record.

    Raises:
        WorkerError: one of them gave nothing; with its first failure.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    failed: dict[str, list[str]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            try:
                found[name].append(run())
            except WorkerError as error:
                failed[name].append(f"{name}, repeat {number + 1}: {error}")
    for name, every in found.items():
        if not every:
            raise WorkerError(failed[name][0])
    return found, [said for every in failed.values() for said in every]


def environment(threads: int) -> dict[str, str]:
    """The variables of a measuring process: its threads, which do not spin when idle, on both sides."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    quiet = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    return os.environ | dict.fromkeys(names, str(threads)) | quiet | {"PYTHONPATH": path}


def free_mb() -> float:
    """MiB of memory that can be had now; where the system does not say, 16 GiB."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return 16384.0
    line = next(line for line in table.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) / 1024


def machine() -> dict[str, Any]:
    """The processor, its cores and memory, and the versions of what runs on it."""
    table = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in table.read_text().splitlines() if "model name" in line]
        if (table.exists())
        else []
    )
    flags = table.read_text() if table.exists() else ""
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bfloat16": [name for name in ("avx512_bf16", "amx_bf16") if name in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def commit() -> str:
    """The commit that is measured, with a + where tracked files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", "../benchmarks")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [median(values), min(values), max(values)]


def split_prefix(text: str) -> tuple[str, ...]:
    """A command line as words."""
    return tuple(shlex.split(text))
