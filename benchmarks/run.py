"""Our GRPO step against TRL's on the same work: ``python benchmarks/run.py [--workload NAME] [--json]``.

Same weights, prompts, number of new tokens and optimizer; a process for every measurement, ours and the peer's in turn.
Before that each side is tried once with each of its settings, and goes on with its best. Shown are medians with the
least and the most, of process CPU seconds a step, wall seconds a step, and MiB of memory above the loaded model.

TRL has to be installed in the environment of ``--peer-python``: pip install trl datasets. The last line of a workload
is the ratio of the medians, peer / ours, and the share of our step that the matrix products alone would take at rates
that are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from speed.floor import floor_seconds
from speed.workloads import WORKLOADS, Workload, make_model

HERE = Path(__file__).parent
OURS = (("float32",), ("mixed",))
PEERS = tuple(
    (dtype, str(micro), attention)
    for dtype in ("float32", "mixed")
    for micro in (8, 16, 64)
    for attention in ("sdpa", "eager")
)


def main() -> int:
    """Measure the workloads that are asked for; 1 where a side could not be run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workload", choices=list(WORKLOADS), action="append", help="may be repeated; default: all")
    options.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--peer-python", default=sys.executable, help="interpreter of the environment that has TRL")
    options.add_argument("--models", type=Path, default=Path.home() / ".cache" / "covrl-speed", help="where models go")
    options.add_argument("--json", action="store_true", help="one JSON line a workload instead of text")
    asked = options.parse_args()
    failed = False
    for name in asked.workload or WORKLOADS:
        try:
            found = measure(WORKLOADS[name], asked)
        except subprocess.CalledProcessError as error:
            print(
                f"{name}: {error.cmd[1:4]} failed: {(error.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr
            )
            failed = True
            continue
        print(json.dumps(found) if asked.json else text(found), flush=True)
    return int(failed)


def measure(workload: Workload, asked: argparse.Namespace) -> dict[str, Any]:
    """Both sides at their best settings, in turn; the figures of one workload."""
    model = str(make_model(workload, asked.models))
    sides = {"ours": (sys.executable, OURS), "peer": (asked.peer_python, PEERS)}
    best: dict[str, tuple[str, ...]] = {}
    tried: dict[str, dict[str, float]] = {}
    for side, (python, settings) in sides.items():
        costs = {}
        for one in settings:
            if side == "peer" and workload.rows % int(one[1]):
                continue
            costs[one] = median(once(python, side, workload, model, asked.threads, one)["cpu"])
        best[side] = min(costs, key=lambda one: costs[one])
        tried[side] = {", ".join(one): cost for one, cost in costs.items()}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(asked.repeats):
        for side, (python, _) in sides.items():
            runs[side].append(once(python, side, workload, model, asked.threads, best[side]))
    shown = {side: figures(found) | {"settings": ", ".join(best[side])} for side, found in runs.items()}
    cpu = {side: shown[side]["cpu"][0] for side in sides}
    floor = floor_seconds(workload, asked.threads)
    return {
        "workload": workload.name,
        "threads": asked.threads,
        "repeats": asked.repeats,
        **shown,
        "tried": tried,
        "ratio": cpu["peer"] / cpu["ours"],
        "floor_s": floor,
        "floor_share": floor / cpu["ours"],
    }


def once(
    python: str, side: str, workload: Workload, model: str, threads: int, settings: tuple[str, ...]
) -> dict[str, Any]:
    """One process; what it printed last."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment = os.environ | limits | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [python, "-m", f"speed.{side}", workload.name, model, str(threads), *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and most over runs of each run's median step, and of its memory above the loaded model."""
    each = {
        "cpu": [median(run["cpu"]) for run in runs],
        "wall": [median(run["wall"]) for run in runs],
        "memory_mb": [run["rss_mb"] - run["loaded_mb"] for run in runs],
    }
    found: dict[str, Any] = {name: [median(v), min(v), max(v)] for name, v in each.items()}
    if "phases" in runs[0]:
        found["phases"] = {k: median(median(run["phases"][k]) for run in runs) for k in runs[0]["phases"]}
    return found


def text(found: dict[str, Any]) -> str:
    """The figures of a workload for a person."""
    rows = [f"{found['workload']}, {found['threads']} thread(s), {found['repeats']} repeats: median (least to most)"]
    for side in ("ours", "peer"):
        shown = found[side]
        cells = [f"{n} {v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" for n, v in shown.items() if isinstance(v, list)]
        rows.append(f"  {side} [{shown['settings']}]: {'; '.join(cells)}")
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["ours"]["phases"].items())
    rows.append(f"  ours by phase, wall seconds: {phases}")
    rows.append(
        f"  ratio peer / ours {found['ratio']:.2f}; matrix products alone {found['floor_s']:.2f} s, "
        f"{found['floor_share']:.0%} of our step"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
