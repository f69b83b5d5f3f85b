"""The command line on the device: methods, dtypes, references, small passes, the same bytes twice, a resume."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from covrl.models.model import SHIPPED
from gpu.common import Finding, Task, tried

SHARED = ("training.steps=4", "evaluation.every=2", "checkpoint.every=2", "training.stream_norms_every=2")
RUNS: Mapping[str, tuple[str, ...]] = {
    "mixed": ("model.dtype=mixed",),
    "mixed again": ("model.dtype=mixed",),
    "bfloat16": ("model.dtype=bfloat16",),
    "float32": (),
    "grpo": ("algorithm.name=grpo",),
    "ppo": ("algorithm.name=ppo",),
    "offload": ("algorithm.name=rlpr", "model.offload_reference=true"),
    "recompute": ("training.recompute=true", "model.dtype=mixed"),
    "lora": ("lora.rank=4",),
    "small passes": ("training.tokens_per_pass=256",),
    "compile": ("model.compile=true",),
}
TINY = ("training.steps=1", "evaluation.every=0", "training.problems_per_step=1", "training.rollouts_per_problem=2")
PROBLEM = '{"question": "12507", "answer": "125"}\n'
"""Instead of the shipped task's thousands, where all is to be tiny."""

AT_ONCE = 5
LONGEST_S = 110


def findings(task: Task) -> Iterator[Finding]:
    """Runs of the quickstart's settings, a few side by side; then two comparisons."""
    chosen = dict(list(RUNS.items())[:2]) if task.tiny else dict(RUNS)
    if find_spec("peft") is None and chosen.pop("lora", None):
        yield {"run": "lora", "left_out": "peft is not installed"}
    with ThreadPoolExecutor(1 if task.tiny else AT_ONCE) as pool:
        yield from pool.map(lambda name: tried({"run": name}, lambda: train(task, name, chosen[name])), chosen)
    one, other = task.scratch / "mixed", task.scratch / "mixed again"
    yield tried({}, lambda: {"same_bytes_twice": weights(one) == weights(other)})
    yield tried({"run": "mixed, one step more"}, lambda: resume(task))


def train(task: Task, name: str, settings: Sequence[str]) -> Finding:
    """One run."""
    every = [f"model.device={task.device.type}", *SHARED, *settings]
    if task.tiny:
        file = task.scratch / "problems.jsonl"
        file.write_text(PROBLEM, encoding="utf-8")
        every += [*TINY, f"problems.train={file}", "problems.held_out="]
    typed = [word for setting in every for word in ("--set", setting)]
    source = str(SHIPPED / "quickstart.toml")
    return covrl("train", "--config", source, "--out", str(task.scratch / name), *typed)


def resume(task: Task) -> Finding:
    """A finished run whose file asks for a step more."""
    file = task.scratch / "mixed" / "config.toml"
    count = 1 if task.tiny else 4
    file.write_text(file.read_text().replace(f"\nsteps = {count}\n", f"\nsteps = {count + 1}\n"))
    return covrl("train", "--resume", str(file.parent))


def covrl(*words: str) -> Finding:
    """Run a command in a process of its own: its seconds, and what it noted.

    Raises:
        RuntimeError: it ended with an error; says its last line.
    """
    begun = time.perf_counter()
    command = [sys.executable, "-m", "covrl", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {(lines or ['no message'])[-1][:250]}")
    noted = [line[:220] for line in lines if "covrl:" in line or "slower" in line or "warning" in line.lower()]
    return {"seconds": round(time.perf_counter() - begun, 1), "noted": noted[-4:]}


def weights(run: Path) -> bytes:
    """The file of a run's newest weights."""
    return max(run.glob("checkpoints/step-*/model/model.safetensors")).read_bytes()
