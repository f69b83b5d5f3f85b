"""Worlds of several processes, forked from one in which torch and covrl are loaded already.

A start of ``torchrun`` imports torch in the launcher and in each process, which costs more than most of these tests
do. Here the launcher is torchrun's own (its agent, store, signals and error reports), in a fork of a server that has
imported everything, and it forks the processes. A model's paths are proved once for each process that is forked
(:mod:`proved`). Two tests start the command itself (``test_parallel.torchrun``).

    python worlds.py < JOBS

Each line of JOBS is ``{"argv": [...], "cwd": FOLDER, "path": FOLDER, "processes": N, "limit": SECONDS}``, with ``argv``
as torchrun takes it: ``-m covrl WORDS``, or the name of a module in ``path`` whose ``main`` gets a folder and the words
after it. Each answer is one line: ``{"exit": CODE, "out": TEXT, "err": TEXT}``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any


class Worlds:
    """The server, from the test's side."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(
        self, *argv: str, path: Path | None = None, limit: int = 240, processes: int = 2
    ) -> subprocess.CompletedProcess[str]:
        """As :func:`test_parallel.torchrun`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"argv": argv, "path": str(path or ""), "processes": processes, "limit": limit, "cwd": os.getcwd()}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(argv, answer["exit"], answer["out"], answer["err"])

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Answer jobs from standard input, one line each."""
    import torch
    import transformers  # noqa: F401
    from proved import PROVING, prove_once
    from torch.distributed.launcher.api import elastic_launch  # noqa: F401

    import covrl.cli.app
    import covrl.cli.train
    import covrl.distributed.processes
    import covrl.reporting.html  # noqa: F401

    for name in PROVING:
        import_module(name).prove = prove_once  # ty: ignore[unresolved-attribute]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch) / "out", Path(scratch) / "err"
        for line in sys.stdin:
            job = json.loads(line)
            process = os.fork()
            if not process:
                launcher(job, out, err)
            answer = {"exit": ended(process, job["limit"])}
            print(json.dumps(answer | {"out": _read(out), "err": _read(err)}), flush=True)


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


def ended(process: int, limit: float) -> int:
    """The exit code of a launcher, which is killed with all that it started when it takes too long."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGKILL


def launcher(job: dict[str, Any], out: Path, err: Path) -> None:
    """The forked process: torchrun's agent, as ``torchrun --standalone`` sets it up; never returns."""
    os.setsid()
    os.chdir(job["cwd"])
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    if job["path"]:
        sys.path.insert(0, job["path"])
    code = 0
    try:
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=job["processes"],
            max_restarts=0,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=f"{os.getpid()}-{time.time()}",
            start_method="fork",
        )
        elastic_launch(config, rank)(job["argv"])
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank(argv: list[str]) -> None:
    """One of the processes: the command, or a module's ``main``. What ends it otherwise is its exit code."""
    import torch

    # A fork cannot use its parent's pool of threads, and makes one of its own when it is first asked for one. Two
    # threads that ask at once, as transformers' loaders do, may find none, so it is made here.
    torch.set_num_threads(torch.get_num_threads())
    code = 0
    try:
        if argv[:2] == ["-m", "covrl"]:
            from covrl.cli.app import main

            sys.argv = ["covrl", *argv[2:]]
            main()
        else:
            import_module(argv[0]).main(Path(argv[1]), *argv[2:])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
