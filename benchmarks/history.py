"""What each optimisation brought: our own step at several commits, measured one after the other in one run.

    python benchmarks/history.py [--repeats 3] [--models FOLDER]

Each commit's package is checked out into a temporary folder and run by today's worker, a process for each measurement,
commits in turn. Shown are CPU seconds of a step at one thread, the least of the repeats: what another process on the
machine adds can only be more. Writes ``docs/results/speed-history.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from speed.processes import machine
from speed.workloads import WORKLOADS, make_model

ROOT = Path(__file__).parent.parent
COMMITS: dict[str, str] = {
    "053968a": "before: prompts read once in training, transformers' cache in decoding",
    "ad6b980": "long prompts kept once in decoding; weights cast once; attention in bfloat16 spelt out",
    "99350a8": "no scoring pass where credit needs none",
    "437d88e": "scores read off the training forward",
    "56468d7": "weights packed for decoding, short prompts copied to their rows",
    "4881e52": "no room for tokens that cannot follow; groups shared out to several ranks",
    "HEAD": "the output layer's weight cast once a pass, its gradient added some rows at a time",
}
CASES: dict[str, tuple[str, str, str]] = {  # workload, method, dtype
    "GRPO, M-34": ("M-34", "grpo", "mixed"),
    "GRPO, M-256": ("M-256", "grpo", "mixed"),
    "GRPO, S": ("S", "grpo", "float32"),
    "GRPO, M-early": ("M-early", "grpo", "mixed"),
    "CoVRL, M-close": ("M-close", "covrl", "mixed"),
    "GRPO, M-wide": ("M-wide", "grpo", "mixed"),
}
SINCE = {"GRPO, M-wide": "4881e52"}  # a step of a minute and more: only what was done for it, and what was before


def main() -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "covrl-speed", help="where models go")
    asked = parser.parse_args()
    models = {name: str(make_model(WORKLOADS[name], asked.models)) for name in {c[0] for c in CASES.values()}}
    least: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        trees = {commit: check_out(commit, Path(scratch) / commit) for commit in COMMITS}
        for _ in range(asked.repeats):
            for commit, case in wanted():
                workload, method, dtype = CASES[case]
                found = step_seconds(trees[commit], workload, models[workload], method, dtype)
                least[commit, case] = min(found, least.get((commit, case), found))
    page = ROOT / "docs" / "results" / "speed-history.md"
    page.write_text(render(least, asked.repeats))
    print(page.read_text())
    return 0


def wanted() -> list[tuple[str, str]]:
    """Commit and case of each measurement, commits in turn."""
    order = list(COMMITS)
    return [
        (commit, case)
        for place, commit in enumerate(order)
        for case in CASES
        if case not in SINCE or place >= order.index(SINCE[case])
    ]


def check_out(commit: str, target: Path) -> Path:
    """The package of a commit, as files."""
    target.mkdir()
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "src"], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(target)], input=packed.stdout, check=True)
    return target / "src"


def step_seconds(tree: Path, workload: str, model: str, method: str, dtype: str) -> float:
    """CPU seconds of the quickest measured step of one process."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(tree)])
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    task = {"workload": workload, "model": model, "threads": 1, "dtype": dtype, "algorithm": method, "steps": 2}
    command = [sys.executable, "-m", "speed.ours", json.dumps(task)]
    done = subprocess.run(
        command, env=os.environ | limits | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True
    )
    return min(json.loads(done.stdout.strip().splitlines()[-1])["cpu"])


def render(least: dict[tuple[str, str], float], repeats: int) -> str:
    """The page."""
    rows = ["| " + " | ".join(["commit", "what came with it", *CASES]) + " |", "| --- " * (len(CASES) + 2) + "|"]
    for commit, what in COMMITS.items():
        shown = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short=7", commit], capture_output=True, text=True, check=True
        ).stdout.strip()
        figures = [f"{least[commit, case]:.2f}" if (commit, case) in least else "–" for case in CASES]
        rows.append("| " + " | ".join([shown, what, *figures]) + " |")
    facts = machine()
    about = ", ".join(f"{name} {value}" for name, value in facts.items())
    return (
        "# Our own step at several commits\n\nCPU seconds of a step at one thread, the least of "
        f"{repeats} runs: `python benchmarks/history.py --repeats {repeats}`. Machine: {about}.\n\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
