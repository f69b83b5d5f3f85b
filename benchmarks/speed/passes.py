"""From how many tokens a training pass, and from how many rows sampling, is within 5 % of the fastest.

``training.tokens_per_pass`` and ``generation.rows_per_pass`` that are left to the library are chosen by arithmetic,
with no clock (:mod:`covrl.training.fit`). The two numbers that it needs of a kind of device are measured here: CPU
seconds for a token of a forward and backward pass of each size, whose gradient is added to one that is there, and for a
token that is decoded with so many rows. A size is timed in turn with the others and its least counts, as what else runs
on the machine only adds. The larger sizes of a workload are left out where its step has fewer tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from speed.meter import asked, begin, emit
from speed.processes import Bench
from speed.workloads import WORKLOADS, workload_of

CHOSEN = ("S", "M-34", "REAL")
TOKENS = (256, 512, 1024, 2048, 4096, 8192)
ROWS = (16, 32, 64, 128, 256)
SLACK = 1.05


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds of each size, and the smallest that is within 5 % of the best, for each workload that is there."""
    found = {}
    for name in (name for name in CHOSEN if name in WORKLOADS):
        model = bench.model(WORKLOADS[name])
        task = {"workload": name, "model": model, "dtype": "mixed", "repeats": bench.repeats}
        found[name] = {
            part: {"seconds": seconds, "enough": enough(seconds)}
            for part, seconds in bench.worker("passes", **task).items()
        }
    return {"workloads": found}


def enough(seconds: Mapping[str, float]) -> int:
    """The smallest size whose seconds are within 5 % of the least.

    Example:
        >>> enough({"256": 1.2, "512": 1.04, "1024": 1.0})
        512
    """
    best = min(seconds.values())
    return min(int(size) for size, one in seconds.items() if one <= SLACK * best)


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for name, parts in found["workloads"].items():
        for part, one in parts.items():
            cells = ", ".join(f"{size}: {1e6 * s:,.1f}" for size, s in one["seconds"].items())
            rows.append(f"{name}, CPU microseconds a token by {part}: {cells}; enough: {one['enough']}")
    return rows


def least(sizes: Sequence[int], repeats: int, work: Callable[[int], int]) -> dict[str, float]:
    """Least seconds a token of ``work(size)``, which says how many tokens it did; sizes in turn, once before."""
    best: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for size in sizes:
            start = time.process_time()
            tokens = work(size)
            spent = (time.process_time() - start) / tokens
            if repeat:
                best[str(size)] = min(best.get(str(size), spent), spent)
    return best


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Seconds a token, by size of a pass and by rows, of the production loop's own parts."""
    from covrl.generation.base import Draw
    from covrl.scoring.pack import PassLimits
    from covrl.training.gradient import add_gradient
    from covrl.training.reading_plan import plan_of_step
    from covrl.training.rollouts import sample
    from covrl.training.scores import score_groups
    from covrl.training.step import credit
    from speed.ours import build_run

    begin(asked["threads"], asked.get("memory_mb"))
    workload = replace(workload_of(asked), problems=asked.get("problems", 32))
    run = build_run(workload, asked["model"], asked["dtype"])
    problems = run.source.take(workload.problems)
    plan = plan_of_step(run, 1)
    groups = score_groups(run, sample(run, problems, Draw(0, 0)), plan.before)
    row = workload.prompt + workload.new

    def train(tokens: int) -> int:
        count = max(1, round(tokens / row / workload.rollouts))
        part = groups[:count]
        limits = PassLimits(1 << 30, run.limits.logits_bytes)
        credits = (lambda some: credit(run, list(some))) if plan.in_pass else credit(run, part)
        return add_gradient(run.algorithm, run.models, part, credits, limits, plan).tokens

    def draw(rows: int) -> int:
        run.generator.rows_per_pass = rows
        found = sample(run, problems[: rows // workload.rollouts], Draw(0, 1))
        return sum(len(r.trace_ids) for g in found for r in g.rollouts)

    sizes = [size for size in TOKENS if row * workload.rollouts // 2 < size <= row * workload.rows]
    rows = [size for size in ROWS if workload.rollouts <= size <= workload.rows]
    return {
        "tokens": least(sizes, asked["repeats"], train),
        "rows": least(rows, asked["repeats"], draw),
    }


if __name__ == "__main__":
    emit(main(asked()))
