"""The GRPO step, ours against TRL's, each at its best settings.

A side's best settings are searched first: from a start, one setting after the other is changed and what is faster is
kept, one short trial each, at the first number of threads that is asked for. Then both sides are measured in turn, a
process for each measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from speed.agree import agreement
from speed.processes import Bench, WorkerError, attempts, free_mb, machine, spread
from speed.workloads import Workload

Settings = Mapping[str, Any]

CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "ours": {"dtype": ("float32", "mixed")},
    "peer": {"dtype": ("float32", "mixed"), "micro": (16, 8, 64), "attention": ("sdpa", "eager")},
}
"""What is tried on each side; the search starts from the first of each."""

SETTLED = ("REAL",)
"""Workloads whose settings are :func:`settled`, as a trial takes a minute; searched where that is asked for."""

ASKED = {"REAL": (2.3, 2.5)}
"""TRL's wall seconds over ours: at least the first is required, the second is the goal."""

LOGITS_COPIES = 6
"""Copies of a micro-batch's float32 logits that TRL holds at most: logits, scaled, log-probs, and gradients of them."""


@dataclass
class Search:
    """Settings that were tried with their cost in CPU seconds, and those that were left out, with the reason."""

    tried: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    left_out: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def best(self) -> dict[str, Any]:
        """The settings of the fastest trial.

        Raises:
            WorkerError: none of the trials went well; says why the first did not.
        """
        if not self.tried:
            raise WorkerError(self.left_out[0][1] if self.left_out else "nothing was tried")
        return min(self.tried, key=lambda one: one[1])[0]

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "tried": [{**settings, "cost": seconds} for settings, seconds in self.tried],
            "left_out": [{**settings, "why": why} for settings, why in self.left_out],
        }


def search(
    choices: Mapping[str, Sequence[Any]],
    trial: Callable[[dict[str, Any]], float],
    refuse: Callable[[dict[str, Any]], str | None],
) -> Search:
    """Coordinate descent over ``choices``: change one setting, keep it if it is faster, go on to the next setting.

    ``refuse`` says why settings are not to be tried. A trial that fails counts as left out.
    """
    found = Search()

    def attempt(settings: dict[str, Any]) -> None:
        if any(settings == old for old, _ in (*found.tried, *found.left_out)):
            return
        if why := refuse(settings):
            found.left_out.append((settings, why))
            return
        try:
            found.tried.append((settings, trial(settings)))
        except WorkerError as error:
            found.left_out.append((settings, str(error)))

    start = {name: values[0] for name, values in choices.items()}
    attempt(start)
    for name, values in choices.items():
        base = found.best() if found.tried else start
        for value in values:
            attempt({**base, name: value})
    return found


def unfit(workload: Workload, settings: Settings, free: float) -> str | None:
    """Why TRL cannot run the workload with these settings in ``free`` MiB; None where it can."""
    micro = settings.get("micro", 0)
    if micro and workload.rows % micro:
        return f"{workload.rows} rows are no multiple of {micro}"
    need = LOGITS_COPIES * micro * (workload.new + 1) * workload.vocabulary * 4 / 2**20
    return f"about {need:,.0f} MiB of logits do not fit in {free:,.0f} MiB" if need > 0.8 * free else None


def find_settings(bench: Bench, workload: Workload) -> dict[str, Search]:
    """A short trial of each side's settings; where a step takes long, the first one counts.

    Those of the workloads in :data:`SETTLED` are taken as they are, unless the bench is to search.
    """
    if workload.name in SETTLED and not bench.search:
        return {side: Search([(settings, 0.0)]) for side, settings in settled().items()}
    task: dict[str, Any] = {"workload": workload.name, "model": bench.model(workload)}
    task |= {"steps": max(1, workload.steps // 4), "warm": int(workload.steps > 1)}
    return {
        side: search(
            choices,
            lambda settings, side=side: median(bench.worker(side, side == "peer", **task, **settings)[workload.clock]),
            lambda settings: unfit(workload, settings, free_mb()),
        )
        for side, choices in CHOICES.items()
    }


def settled() -> dict[str, dict[str, Any]]:
    """Each side's settings on a real model: bfloat16 products where the processor has units for them, else float32.

    Without such units a product in bfloat16 takes several times as long. TRL's micro-batch is the one that was its best
    when such a step was first measured, with bfloat16 units; ``--search`` tries the others.
    """
    dtype = "mixed" if machine()["bfloat16"] else "float32"
    return {"ours": {"dtype": dtype}, "peer": {"dtype": dtype, "micro": 8, "attention": "sdpa"}}


def measure(bench: Bench, workload: Workload, searches: Mapping[str, Search]) -> dict[str, Any]:
    """Both sides at their best settings, in turn; the figures of one workload at the bench's threads."""
    model = bench.model(workload)

    def once(side: str, settings: Settings, steps: int) -> dict[str, Any]:
        task: dict[str, Any] = {"workload": workload.name, "model": model, "steps": steps}
        return bench.worker(side, peer=side == "peer", **task, **settings)

    best = {side: found.best() for side, found in searches.items()}
    runs, failed = attempts(
        bench.repeats, {side: partial(once, side, settings, workload.steps) for side, settings in best.items()}
    )
    shown = {side: figures(found) | {"settings": best[side]} for side, found in runs.items()}
    cpu = {side: shown[side]["cpu"][0] for side in best}
    floor = bench.worker("floor", workload=workload.name)["seconds"]
    return {
        "workload": workload.name,
        "clock": workload.clock,
        **shown,
        "runs": {side: len(found) for side, found in runs.items()},
        "failed": failed,
        "search": {side: found.record() for side, found in searches.items()},
        "log_probs": agreement(bench, workload, model),
        "ratio": cpu["peer"] / cpu["ours"],
        "wall_ratio": shown["peer"]["wall"][0] / shown["ours"]["wall"][0],
        "floor_s": floor,
        "floor_share": floor / cpu["ours"],
    }


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, least and most over runs of each run's median step, and of the step's memory."""
    each = {
        "cpu": [median(run["cpu"]) for run in runs],
        "wall": [median(run["wall"]) for run in runs],
        "step_mb": [run["step_mb"] for run in runs],
        "peak_mb": [run["peak_mb"] for run in runs],
    }
    found: dict[str, Any] = {name: spread(values) for name, values in each.items()}
    if "phases" in runs[0]:
        found["phases"] = {k: median(median(run["phases"][k]) for run in runs) for k in runs[0]["phases"]}
    return found


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures of a workload for a person, the ratio and the floor's share last."""
    rows = []
    for side in ("ours", "peer"):
        shown = found[side]
        cells = [f"{n} {v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" for n, v in shown.items() if isinstance(v, list)]
        rows.append(f"{side} {named(shown['settings'])}: {'; '.join(cells)}")
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["ours"]["phases"].items())
    rows.append(f"ours by phase, {found['clock']} seconds: {phases}")
    for side in ("ours", "peer"):
        for one in found["search"][side]["left_out"]:
            rows.append(f"{side} left out {named({k: v for k, v in one.items() if k != 'why'})}: {one['why']}")
    rows += [f"FAILED: {said}" for said in found["failed"]]
    apart = "; ".join(
        f"{dtype} at most {v['largest']:.1e}, mean {v['mean']:.1e}"
        for dtype, v in found["log_probs"].items()
        if isinstance(v, dict)
    )
    rows.append(f"log-probs of the same tokens {'equal' if found['log_probs']['equal'] else 'DIFFER'}: {apart}")
    rows.append(
        f"ratio peer / ours {found['ratio']:.2f} (wall {found['wall_ratio']:.2f}); matrix products alone "
        f"{found['floor_s']:.2f} s, {found['floor_share']:.0%} of our step"
    )
    if found["workload"] in ASKED:
        required, goal = ASKED[found["workload"]]
        rows.append(f"wall seconds, TRL / ours: {found['wall_ratio']:.2f} (required: {required}, goal: {goal})")
    return rows


def named(settings: Settings) -> str:
    """Settings in words."""
    flat = {k: v for k, v in settings.items() if not isinstance(v, Mapping)}
    deep = {f"{s}.{k}": v for s, table in settings.get("settings", {}).items() for k, v in table.items()}
    return "[" + ", ".join(f"{k} {v}" for k, v in (flat | deep).items()) + "]"
