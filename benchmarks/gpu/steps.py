"""Whole steps of the loop at 0.5 B, as ``run.py --part device`` measures them; then one that runs out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from speed import device
from speed.workloads import make_model

from gpu.common import Finding, Task, tried


class Case(NamedTuple):
    """A method, the fast paths that it goes without, tokens of a pass, and the share of the memory that it may take."""

    method: str
    without: tuple[str, ...] = ()
    tokens: int = 32_768
    share: float = 1.0


CASES = (
    Case("covrl"),
    Case("grpo"),
    Case("covrl", without=("flex",)),
    Case("covrl", tokens=131_072, share=0.4),  # one pass does not fit, half of it does
)


def findings(task: Task) -> Iterator[Finding]:
    """The medians of two steps for each case."""
    workload = task.workload("0.5B")
    model = str(make_model(workload, task.scratch))
    for case in CASES:
        if task.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(case.share)

        def taken(case: Case = case) -> Finding:
            found = device.main(
                {
                    "workload": workload.name,
                    "threads": torch.get_num_threads(),
                    "model": model,
                    "steps": 1 if task.tiny else 2,
                    "algorithm": case.method,
                    "paths": dict.fromkeys(case.without, False),
                    "tokens_per_pass": case.tokens,
                    "product": 256 if task.tiny else device.PRODUCT,
                }
            )
            medians = device.summary([found])
            return {k: round(v[0], 4) if isinstance(v, list) and k != "notes" else v for k, v in medians.items()}

        yield tried(case._asdict(), taken)
