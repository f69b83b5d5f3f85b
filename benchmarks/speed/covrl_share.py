"""CoVRL's training part over GRPO's: scoring and training, both contexts, the answer and the exact KL.

Both sample from the same model (that of M-34 but for one token) on the workload M-close: a token closes a thought with
chance 1/64 at each position, and at 128, so that traces have about 60 tokens (M-34's have 64) and four of five are
valid, with an answer of two tokens and its tag to be read behind the closing one. GRPO's responses end at the same
token. The same random numbers are drawn for both and the closing token's chance does not depend on the prompt, so both
have nearly the same lengths; the figures say how many tokens each has sampled. Every group has signal: GRPO's rewards
differ in every group, as answers' log-probs do. Training part: the phases ``score`` and ``train`` of the loop, which
hold everything between sampling and the new weights.

The same of a real model on the workload REAL: every trace and response has exactly 80 tokens there, all traces are
closed, and seconds are those on the wall. The most that a process has resident in these steps, all in all, is in the
figures too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import fmean, median
from typing import Any

from speed.processes import Bench, attempts, spread
from speed.step import CHOICES, SETTLED, search, settled
from speed.workloads import WORKLOADS

ASKED = {"M-close": (2.2, 2.2), "REAL": (2.4, 2.2)}
"""The workloads, and what the ratio of the training parts may be at most: what is required, and the goal."""

METHODS = ("grpo", "covrl")

LOOKS = 5
"""CoVRL looks at empty thoughts, other traces and wrong hints in every fifth step (``report.thoughts_every``).
So as many steps in a row are measured, of which one looks, and a run counts with their mean."""


def measure(bench: Bench, name: str = "M-close") -> dict[str, Any]:
    """Seconds of both methods by phase, in turn, at the dtype that is best for GRPO; ratios of the medians."""
    workload = WORKLOADS[name]
    model = bench.model(workload)

    def once(method: str, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
        steps = max(steps, LOOKS) if method == "covrl" else steps
        task: dict[str, Any] = {"workload": name, "model": model, "steps": steps, "algorithm": method}
        return bench.worker("ours", **task, **settings)

    if name in SETTLED and not bench.search:
        best = settled()["ours"]
    else:
        best = search(CHOICES["ours"], lambda s: median(once("grpo", s, 1)[workload.clock]), lambda _: None).best()
    runs, failed = attempts(bench.repeats, {m: partial(once, m, best, workload.steps) for m in METHODS})
    required, goal = ASKED[name]
    asked = {"required": required, "goal": goal, "failed": failed}
    return {"workload": name, "settings": best, **summary(runs, workload.clock), **asked}


def summary(runs: Mapping[str, list[dict[str, Any]]], clock: str = "cpu") -> dict[str, Any]:
    """Median, least and most over runs of a step's mean seconds by phase, on this clock, and the ratios."""
    shown: dict[str, Any] = {}
    for method, found in runs.items():
        steps = [
            {"step": fmean(run[clock])} | {name: fmean(values) for name, values in run["phases"].items()}
            for run in found
        ]
        phases = {name: spread([one[name] for one in steps]) for name in steps[0]}
        phases["training_part"] = spread([one["score"] + one["train"] for one in steps])
        tokens = {name: median(v for run in found for v in run["tokens"][name]) for name in found[0]["tokens"]}
        invalid = median(v for run in found for v in run["metrics"]["trace/invalid_share"])
        resident = max(run["peak_mb"] for run in found)
        shown[method] = {clock: phases, "tokens": tokens, "invalid_share": invalid, "peak_mb": resident}
    ratio = {n: shown["covrl"][clock][n][0] / shown["grpo"][clock][n][0] for n in ("training_part", "step")}
    return shown | {"clock": clock, "ratio": ratio["training_part"], "step_ratio": ratio["step"]}


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for method in METHODS:
        shown, clock = found[method], found["clock"]
        cells = [f"{n} {v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" for n, v in shown[clock].items()]
        tokens = ", ".join(f"{n} {v:.0f}" for n, v in shown["tokens"].items())
        invalid = f", invalid traces {shown['invalid_share']:.0%}" if method == "covrl" else ""
        most = f"; at most {shown['peak_mb']:,.0f} MiB resident"
        rows.append(f"{method}, {clock} seconds: {'; '.join(cells)}; tokens: {tokens}{invalid}{most}")
    return [
        *rows,
        *(f"FAILED: {said}" for said in found["failed"]),
        f"training part covrl / grpo {found['ratio']:.2f} (required: at most {found['required']}, goal: "
        f"{found['goal']}), whole step {found['step_ratio']:.2f}",
    ]
