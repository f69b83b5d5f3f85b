"""CPU seconds of a step's phases with all weights, with adapters, and with a compiled trunk, on the shipped base.

    python benchmarks/lora_and_compile.py [SETTINGS …]

Each argument is one variant, settings with blanks between them; CPU seconds, as a shared machine's clock says little.
"""

from __future__ import annotations

import os
import sys
import time

import torch

from covrl import api
from covrl.quickstart.run import load_config
from covrl.training import loop

VARIANTS = ("", "lora.rank=8", "model.compile=true")
STEPS = 5
QUIET = [
    "evaluation.every=0",
    "guards.publish_check_every=0",
    "training.stream_norms_every=0",
    "training.warmup_steps=0",
    f"training.steps={STEPS + 1}",
]


def cpu_seconds() -> float:
    """User time of this process and of the compilers that it started."""
    spent = os.times()
    return spent.user + spent.children_user


def measure(settings: list[str]) -> tuple[float, dict[str, float]]:
    """CPU seconds of assembly and first step, and the median of each phase over the steps behind it."""
    start = cpu_seconds()
    run = api.build(load_config([*QUIET, *settings]))
    steps = loop.steps(run)
    next(steps)
    first = cpu_seconds() - start
    found = [report.metrics for report in steps]
    median = {
        phase: sorted(metrics[f"time/{phase}"] for metrics in found)[len(found) // 2]
        for phase in ("generate", "score", "train")
    }
    return first, median


def main() -> None:
    """Print a line for each variant."""
    torch.set_num_threads(1)
    loop.time.perf_counter = time.process_time  # ty: ignore  # the loop's clock counts CPU seconds here
    for variant in sys.argv[1:] or VARIANTS:
        first, phases = measure(variant.split())
        said = "  ".join(f"{phase} {seconds:.2f}" for phase, seconds in phases.items())
        print(f"{variant or 'all weights':30} first step {first:6.1f}  then {said}", flush=True)


if __name__ == "__main__":
    main()
