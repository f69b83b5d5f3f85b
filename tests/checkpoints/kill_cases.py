"""Tiny runs to be killed, and the comparison of what they leave; for test_kills.py and benchmarks/kill_sweep.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models import save_tiny
from projects import write_rows

DRIVER = Path(__file__).with_name("kill_driver.py")

COMMON = """
[model]
path = "MODEL"
device = "cpu"
[problems]
train = "train.jsonl"
held_out = "train.jsonl"
question_field = "q"
answer_field = "a"
[prompts]
user = "{question}"
prior_open = " "
posterior_open = "({hint}) "
close = "e"
answer_prefix = ""
answer_suffix = "t"
[generation]
max_trace_tokens = 16
max_answer_tokens = 8
[training]
steps = STEPS
problems_per_step = 3
rollouts_per_problem = 4
learning_rate = 1e-2
warmup_steps = 1
MORE
[evaluation]
every = 1
problems = 4
[checkpoint]
every = 2
keep = 2
[report]
traces_every = 1
groups_shown = 3
[rewards]
verifier = "text"
[algorithm]
"""

SMALL = "tokens_per_pass = 128\nstream_norms_every = 2"

CASES: dict[str, tuple[str, int, str, str]] = {  # model family, steps, [training], [algorithm]
    "covrl": ("gpt2", 4, "tokens_per_pass = 200\nstream_norms_every = 0", 'name = "covrl"'),
    "rlpr": ("llama", 5, f"{SMALL}\nmini_batches = 2", 'name = "rlpr"'),
    "nover": ("gpt2", 5, SMALL, 'name = "nover"\nsync_every = 2'),
    "grpo": ("llama", 4, f"{SMALL}\nmini_batches = 2\nepochs = 2", 'name = "grpo"\nkl = "k3"\nkl_weight = 0.1'),
}
"""What carries state: covrl none but weights, rlpr a running mean, nover a following copy, grpo a frozen reference and
several updates a batch. The groups of covrl are scored in their training forward where a pass holds them, as some of
them are; the others are scored before."""


class Driver:
    """The process that forks the jobs; ``prefix`` is a command that starts it in an environment of its own."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "TOKENIZERS_PARALLELISM": "false"}
        command = [*prefix, sys.executable, str(DRIVER)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(
        self, cwd: Path, *argv: str, point: str | None = None, at: int = 1, number: int = signal.SIGKILL
    ) -> dict[str, Any]:
        """Run ``covrl ARGV`` in ``cwd``, struck at the ``at``-th pass of ``point``."""
        kill = {"point": point, "at": at, "signal": int(number)} if point else None
        return self._ask({"argv": argv, "cwd": str(cwd), "kill": kill})

    def shell(self, *command: str) -> None:
        """Run a command where the driver is, which may be a mount namespace of its own."""
        answer = self._ask({"shell": command})
        assert answer["exit"] == 0, answer["said"]

    def _ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def write_project(folder: Path) -> None:
    """Models, problems and a config for each case."""
    for family in {case[0] for case in CASES.values()}:
        save_tiny(family, folder / family, max_position_embeddings=128)
    rows = [{"q": f"{i}+{i * 7}=?", "a": str(i * 8)} for i in range(7)]
    write_rows(folder / "train.jsonl", rows)
    for name, (family, steps, training, algorithm) in CASES.items():
        text = COMMON.replace("MODEL", family).replace("STEPS", str(steps)).replace("MORE", training)
        (folder / f"{name}.toml").write_text(text + algorithm + "\n")


def contents(run: Path) -> dict[str, Any]:
    """Everything in a run's folder that must not depend on interruptions: all but times, lock and report."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = str(path.relative_to(run))
        if name in (".lock", "report.html"):
            continue
        found[name] = _steps(path) if name == "metrics.jsonl" else path.read_bytes()
    return found


def _steps(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**row, "metrics": {k: v for k, v in row["metrics"].items() if not timed(k)}} for row in rows]


def timed(name: str) -> bool:
    """Whether a metric may differ between two runs of the same settings."""
    return name.startswith(("time/", "system/"))


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first thing in which two runs' contents differ, or None."""
    if one.keys() != other.keys():
        return f"files: {sorted(one.keys() ^ other.keys())}"
    return next((name for name in one if one[name] != other[name]), None)
