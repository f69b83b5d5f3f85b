"""Runs ``covrl`` in processes that end themselves at a chosen moment; used by tests/checkpoints/test_kills.py.

    python kill_driver.py < JOBS

Each line of JOBS is ``{"argv": [...], "cwd": FOLDER, "kill": {"point": NAME, "at": N, "signal": NUMBER} | null}``. A
job is a process of its own, forked after the imports and before any work (a start of Python costs more than a tiny
run), in which the command line's ``main`` runs. At the N-th pass of the named point it sends itself the signal. Each
answer is one line: ``{"exit": CODE or -SIGNAL, "passes": {POINT: COUNT}, "said": WHAT IT PRINTED}``. A line
``{"shell": [...]}`` runs a command where this process is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

passes: Counter[str] = Counter()
kill: dict[str, Any] = {}


def here(point: str) -> bool:
    """Whether the process is to be struck at this pass of the point."""
    passes[point] += 1
    return kill.get("point") == point and kill.get("at") == passes[point]


def strike() -> None:
    """Send the signal; SIGKILL does not return."""
    os.kill(os.getpid(), kill["signal"])
    if kill["signal"] == signal.SIGKILL:
        time.sleep(60)


def around(owner: Any, name: str, before: str | None = None, after: str | None = None) -> None:
    """Wrap a function so that it passes the points before and after it."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before and here(before):
            strike()
        result = original(*arguments, **named)
        if after and here(after):
            strike()
        return result

    setattr(owner, name, wrapped)


def half_written_line(sinks: Any) -> None:
    """Half a line of metrics.jsonl or traces.jsonl, then the signal."""
    original = sinks._LineFile._write

    def write(self: Any, file: Any, line: bytes) -> None:
        if here("inside a line"):
            file.write(line[: len(line) // 2])
            strike()
            line = line[len(line) // 2 :]
        original(self, file, line)

    sinks._LineFile._write = write


def half_written_optimizer(checkpoint: Any) -> None:
    """A checkpoint whose optimizer file is cut short, then the signal."""
    original = checkpoint.save_file

    def save(tensors: Any, path: Path) -> None:
        original(tensors, path)
        if here("inside a checkpoint's files"):
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            strike()
            path.write_bytes(content)

    checkpoint.save_file = save


def half_deleted(durable: Any) -> None:
    """A folder of which some files are gone, then the signal."""
    original = durable.discard

    def discard(folder: Path) -> None:
        files = [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []
        if files and here("inside a deletion"):
            for path in files[: len(files) // 2]:
                path.unlink()
            strike()
        original(folder)

    durable.discard = discard


def install() -> None:
    """Put all points in their places."""
    import torch

    from covrl import files
    from covrl.checkpoints import checkpoint, run_writer
    from covrl.evaluation.accuracy import Evaluator
    from covrl.generation.engine import TorchGenerator
    from covrl.reporting import sinks
    from covrl.training import collect, gradient, publish, step

    around(TorchGenerator, "generate", before="before sampling", after="after sampling")
    around(collect, "score_groups", after="after scoring")
    around(step, "set_rate", before="between rollout and update")
    around(step, "update_metrics", before="after the update")
    around(step, "add_gradient", before="before a gradient", after="after a gradient")
    around(gradient, "token_losses", before="inside an accumulation")
    around(torch.optim.AdamW, "step", after="between two updates")
    around(publish, "follow", before="before the copies follow", after="after the copies followed")
    around(Evaluator, "__call__", before="before an evaluation", after="inside an evaluation")
    around(run_writer.RunWriter, "write", before="step done, nothing written", after="step boundary")
    around(run_writer, "boundary_of", before="after the lines and the best model")
    around(files, "seal", before="before a manifest", after="before a rename")
    around(files, "write_file", before="before config.toml", after="after config.toml")
    around(Path, "rename", before="before a move", after="after a move")
    for room in (checkpoint, run_writer):
        around(room, "save_trained", before="before a model is written", after="after a model is written")
    half_written_line(sinks)
    half_written_optimizer(checkpoint)
    half_deleted(files)


def child(job: dict[str, Any], said: Path, counted: Path) -> None:
    """The forked process: the command line with the points in place; never returns."""
    os.chdir(job["cwd"])
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    kill.update(job.get("kill") or {})
    sys.argv = ["covrl", *job["argv"]]
    code = 0
    try:
        install()
        from covrl.cli.app import main

        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    counted.write_text(json.dumps(passes))
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer jobs from standard input, one line each."""
    import tempfile

    import torch
    import transformers  # noqa: F401
    from proved import PROOFS, prove_once

    import covrl.assembly
    import covrl.cli.app
    import covrl.reporting.html
    import covrl.reporting.terminal

    covrl.assembly.prove = prove_once
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[PROOFS] = scratch
        said, counted = Path(scratch) / "said", Path(scratch) / "counted"
        for line in sys.stdin:
            job = json.loads(line)
            if "shell" in job:
                done = subprocess.run(job["shell"], capture_output=True, text=True, check=False)
                print(json.dumps({"exit": done.returncode, "said": done.stderr}), flush=True)
                continue
            counted.unlink(missing_ok=True)
            process = os.fork()
            if not process:
                child(job, said, counted)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            counts = json.loads(counted.read_text()) if counted.exists() else {}
            answer = {"exit": code, "passes": counts, "said": said.read_text(errors="replace")}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    serve()
