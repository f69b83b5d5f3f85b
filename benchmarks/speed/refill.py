"""More prompts than are decoded side by side: places of finished rows given to waiting prompts, against waves.

512 requests, 64 prompts x 8 responses, 64 rows at a time. Responses of M-early end with chance 1/16 at each token, and
at 64; those of M-34 all have 64 tokens, so that no place becomes free before the others, which must cost nothing. A
wave is what the engine did before: 64 rows are decoded to their ends, finished ones removed, then the next 64. Both
are measured in one process, in turn, on the same model and the same random numbers, in float32.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from speed.meter import asked, begin, emit
from speed.processes import Bench, spread
from speed.workloads import WORKLOADS, workload_of

LENGTHS = {"M-early": "mean 16 of at most 64", "M-34": "64 each"}
PROBLEMS, ROWS = 64, 64
FIRST = 10
"""Problems of the call that is not measured."""
GOAL = 1.3
WAYS = ("refilled", "waves")


def measure(bench: Bench) -> dict[str, Any]:
    """Useful tokens a CPU second of both ways, and their ratio, by workload."""
    found: dict[str, Any] = {}
    for name in LENGTHS:
        task: dict[str, Any] = {"workload": name, "model": bench.model(WORKLOADS[name])}
        runs = [bench.worker("refill", **task) for _ in range(bench.repeats)]
        rates = {way: spread([run[way] for run in runs]) for way in WAYS}
        ratio = spread([run["refilled"] / run["waves"] for run in runs])
        found[name] = {**rates, "ratio": ratio, "tokens": runs[0]["tokens"], "same": min(run["same"] for run in runs)}
    return {"requests": PROBLEMS * 8, "rows": ROWS, "workloads": found, "goal": GOAL}


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for name, one in found["workloads"].items():
        rates = ", ".join(f"{way} {one[way][0]:.0f} ({one[way][1]:.0f} to {one[way][2]:.0f})" for way in WAYS)
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*one["ratio"])
        rows.append(
            f"{name}, {LENGTHS[name]}: useful tokens a CPU second {rates}; ratio {ratio}; {one['tokens']} tokens, "
            f"{one['same']:.1%} of the responses the same"
        )
    return [*rows, f"goal where lengths differ: at least {found['goal']}"]


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Useful tokens a CPU second of both ways, and the share of equal responses."""
    begin(asked["threads"], asked.get("memory_mb"))
    from covrl.generation.base import Draw
    from covrl.training.rollouts import sampling_of
    from speed.ours import build_run

    workload = workload_of(asked)
    run = build_run(workload, asked["model"], "float32", problems=FIRST + PROBLEMS)
    engine, sampling, rates = run.generator, sampling_of(run), {}
    assert engine.paths.refilled, "the proof at load has switched it off"
    engine.rows_per_pass = ROWS
    traces: dict[str, list[Any]] = {}
    for number, problems in enumerate((FIRST, PROBLEMS)):  # the first call is not measured
        requests = [r for p in run.source.take(problems) for r in run.algorithm.plan(p, [], Draw(0, number))]
        for way in WAYS:
            engine.paths = engine.paths._replace(refilled=way == "refilled")
            cpu = time.process_time()
            rollouts = engine.generate(requests, sampling, Draw(0, number))
            rates[way] = sum(len(r.trace_ids) for r in rollouts) / (time.process_time() - cpu)
            traces[way] = [r.trace_ids for r in rollouts]
    same = sum(a == b for a, b in zip(traces["refilled"], traces["waves"], strict=True)) / len(traces["waves"])
    return rates | {"tokens": sum(map(len, traces["waves"])), "same": same}


if __name__ == "__main__":
    emit(main(asked()))
