"""DASH against its micro-batched baseline, and what its filter saves.

*Batching.* DASH samples a window of 8 problems x 8 responses in one call and takes one update; the baseline is what
the paper compares with, a call of the generator and an update for each problem (``training.problems_per_step = 1``). On
an accelerator small batches cost as much as large ones, here much less is to be gained. How much is predicted from
rates that are measured in the same process: the seconds that sampling 8 and 64 rows takes, and the seconds of the rest
of a step as a line through steps of 1, 2, 4 and 8 problems (so much an update, so much a response). Both go without KL
(with it the filter has nothing to drop) and with signal in every group.

*Filter.* ``filter = "exact"`` drops rows before any training pass where all their rewards are equal. Rewards make a
given share of the groups so. Where it is none, every row is trained, which is what a step without a filter costs: what
a pass costs does not depend on its weights. A line through seconds against dropped rows shows whether what is saved is
proportional to them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from speed.fit import Line, batching_gain, line
from speed.meter import asked, begin, emit
from speed.processes import Bench, spread
from speed.workloads import WORKLOADS, reward, workload_of

WORKLOAD = "M-34"
WINDOW = 8
"""Problems of a window, and steps of the baseline that it stands for."""

SHARES = (0.0, 0.25, 0.5, 0.75, 0.875)
"""Shares of the groups without signal."""

GOAL = 0.9


def measure(bench: Bench) -> dict[str, Any]:
    """Measured and predicted gain of batching over repeats, and the filter's line."""
    model = bench.model(WORKLOADS[WORKLOAD])
    task: dict[str, Any] = {"workload": WORKLOAD, "model": model, "dtype": "mixed"}
    batching, filtering = [], []
    for _ in range(bench.repeats):
        batching.append(bench.worker("dash", what="batching", **task))
        filtering.append(bench.worker("dash", what="filter", **task))
    names = ("measured", "predicted", "share")
    found: dict[str, Any] = {name: spread([run[name] for run in batching]) for name in names}
    found["rates"] = {k: batching[0][k] for k in ("generate_s", "per_update_s", "per_response_s", "line_r2")}
    found["generation_gain"] = spread([run["generation_gain"] for run in batching])
    return {"workload": WORKLOAD, "window": WINDOW, **found, "filter": filter_figures(filtering), "goal": GOAL}


def filter_figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of step and training phase against dropped rows: medians over runs, and the lines through them."""
    dropped = runs[0]["dropped"]
    found: dict[str, Any] = {"dropped_rows": dropped, "rows": runs[0]["rows"]}
    for name in ("step", "train"):
        seconds = [median(run[name][i] for run in runs) for i in range(len(dropped))]
        through = line(dropped, seconds)
        share = -through.slope * found["rows"] / through.start
        found[name] = {"seconds": seconds, **through._asdict(), "saved_if_all_dropped": share}
    return found


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rates, share = found["rates"], found["filter"]
    rows = [
        f"rates: sampling {', '.join(f'{n} rows {s:.2f} s' for n, s in rates['generate_s'].items())}; the rest "
        f"{rates['per_update_s']:.3f} s an update + {rates['per_response_s']:.4f} s a response",
        *(
            f"{name}: {v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})"
            for name in ("measured", "predicted", "generation_gain")
            for v in [found[name]]
        ),
    ]
    for name in ("step", "train"):
        one = share[name]
        seconds = ", ".join(f"{d:.0f}: {s:.2f}" for d, s in zip(share["dropped_rows"], one["seconds"], strict=True))
        rows.append(
            f"filter, CPU seconds of {name} by dropped rows of {share['rows']}: {seconds}; "
            f"{one['slope'] * 1000:.1f} ms a dropped row, R² {one['r2']:.4f}"
        )
    return [
        *rows,
        f"measured / predicted gain {found['share'][0]:.2f} (goal: at least {found['goal']}), all medians",
    ]


def seconds_of(run: Any, count: int) -> list[float]:
    """CPU seconds of each step after a first."""
    from covrl.training import loop

    found, steps = [], loop.steps(run)
    for _ in range(count + 1):
        begun = time.process_time()
        next(steps)
        found.append(time.process_time() - begun)
    return found[1:]


def batching(asked: dict[str, Any]) -> dict[str, Any]:
    """Rates, the gain that they predict, and the gain as measured."""
    from covrl.generation.base import Draw
    from covrl.training.rollouts import sampling_of
    from speed.ours import build_run

    window = asked.get("window", WINDOW)
    workload = replace(workload_of(asked), problems=window)
    settings = {"algorithm": {"kl": "none", "kl_weight": 0.0}}

    def build(problems: int, steps: int) -> Any:
        given = replace(workload, problems=problems), asked["model"], asked["dtype"], "dash", steps + 1, settings
        run = build_run(*given, problems=max(window, problems * (steps + 1)))
        run.timer = time.process_time
        return run

    def sampling(problems: int, repeats: int) -> float:
        run = build(problems, repeats)
        found = []
        for number in range(repeats + 1):
            draw = Draw(0, number)
            requests = [r for p in run.source.take(problems) for r in run.algorithm.plan(p, [], draw)]
            begun = time.process_time()
            run.generator.generate(requests, sampling_of(run), draw)
            found.append(time.process_time() - begun)
        return median(found[1:])

    rows = workload.rollouts
    generate = {rows: sampling(1, 5), window * rows: sampling(window, 2)}
    sizes, rest = (1, 2, window // 2, window), []
    for problems in sizes:
        steps = 2 + window // problems
        rest.append(median(rest_of_steps(build(problems, steps), steps)))
    through: Line = line([problems * rows for problems in sizes], rest)
    baseline = sum(seconds_of(build(1, window), window))
    together = median(seconds_of(build(window, 3), 3))
    measured, predicted = baseline / together, batching_gain(window, rows, generate, through)
    return {
        "generate_s": generate,
        "per_update_s": through.start,
        "per_response_s": through.slope,
        "line_r2": through.r2,
        "baseline_s": baseline,
        "together_s": together,
        "measured": measured,
        "predicted": predicted,
        "share": measured / predicted,
        "generation_gain": window * generate[rows] / generate[window * rows],
    }


def rest_of_steps(run: Any, count: int) -> list[float]:
    """CPU seconds of steps without their sampling, after a first, of a run whose timer counts those."""
    from covrl.training import loop

    found, steps = [], loop.steps(run)
    for _ in range(count + 1):
        begun = time.process_time()
        metrics = next(steps).metrics
        found.append(time.process_time() - begun - metrics["time/generate"])
    return found[1:]


def filtering(asked: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of the step and of its training phase where a share of the groups has no signal."""
    from covrl.training import loop
    from speed.ours import build_run

    workload = workload_of(asked)
    flat = 0

    def judge(problem: Any, text: str) -> float:
        return 0.5 if int(problem.id) < flat else reward(text)

    settings = {"algorithm": {"kl": "none", "kl_weight": 0.0, "filter": "exact"}}
    shares = asked.get("shares", SHARES)
    given = workload, asked["model"], asked["dtype"], "dash", len(shares) + 1, settings, judge
    run = build_run(*given, problems=workload.problems)  # the same problems in every step
    run.timer = time.process_time
    steps = loop.steps(run)
    found: dict[str, list[float]] = {"dropped": [], "step": [], "train": []}
    for share in (0.0, *shares):
        flat = round(share * workload.problems)
        begun = time.process_time()
        metrics = next(steps).metrics
        found["step"].append(time.process_time() - begun)
        found["train"].append(metrics["time/train"])
        found["dropped"].append(metrics["train/dropped_traces"])
    return {name: values[1:] for name, values in found.items()} | {"rows": workload.rows}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """One of the two measurements."""
    begin(asked["threads"], asked.get("memory_mb"))
    return {"batching": batching, "filter": filtering}[asked["what"]](asked)


if __name__ == "__main__":
    emit(main(asked()))
