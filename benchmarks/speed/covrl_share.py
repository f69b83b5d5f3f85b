"""CoVRL's training part over GRPO's: scoring and training, both contexts, the answer and the exact KL.

Both sample from the same model (that of M-34 but for one token) on the workload M-close: a token closes a thought with
chance 1/64 at each position, and at 128, so that traces have about 60 tokens (M-34's have 64) and four of five are
valid, with an answer of two tokens and its tag to be read behind the closing one. GRPO's responses end at the same
token. The same random numbers are drawn for both and the closing token's chance does not depend on the prompt, so both
have nearly the same lengths; the figures say how many tokens each has sampled. Every group has signal: GRPO's rewards
differ in every group, as answers' log-probs do. Training part: the phases ``score`` and ``train`` of the loop, which
hold everything between sampling and the new weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from speed.processes import Bench, spread
from speed.step import CHOICES, search
from speed.workloads import WORKLOADS

WORKLOAD = "M-close"
METHODS = ("grpo", "covrl")
GOAL = 2.2


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds of both methods by phase, in turn, at the dtype that is best for GRPO; ratios of the medians."""
    model = bench.model(WORKLOADS[WORKLOAD])

    def once(method: str, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
        task: dict[str, Any] = {"workload": WORKLOAD, "model": model, "steps": steps, "algorithm": method}
        return bench.worker("ours", **task, **settings)

    best = search(CHOICES["ours"], lambda s: median(once("grpo", s, 1)["cpu"]), lambda _: None).best()
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for _ in range(bench.repeats):
        for method in METHODS:
            runs[method].append(once(method, best, WORKLOADS[WORKLOAD].steps))
    return {"workload": WORKLOAD, "settings": best, **summary(runs)}


def summary(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median, least and most of each phase's CPU seconds, and the ratios."""
    shown: dict[str, Any] = {}
    for method, found in runs.items():
        steps = [
            {"step": cpu} | {name: values[i] for name, values in run["phases"].items()}
            for run in found
            for i, cpu in enumerate(run["cpu"])
        ]
        phases = {name: spread([one[name] for one in steps]) for name in steps[0]}
        phases["training_part"] = spread([one["score"] + one["train"] for one in steps])
        tokens = {name: median(v for run in found for v in run["tokens"][name]) for name in found[0]["tokens"]}
        invalid = median(v for run in found for v in run["metrics"]["trace/invalid_share"])
        shown[method] = {"cpu": phases, "tokens": tokens, "invalid_share": invalid}
    ratio = {n: shown["covrl"]["cpu"][n][0] / shown["grpo"]["cpu"][n][0] for n in ("training_part", "step")}
    return shown | {"ratio": ratio["training_part"], "step_ratio": ratio["step"], "goal": GOAL}


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for method in METHODS:
        shown = found[method]
        cells = [f"{n} {v[0]:.2f} ({v[1]:.2f} to {v[2]:.2f})" for n, v in shown["cpu"].items()]
        tokens = ", ".join(f"{n} {v:.0f}" for n, v in shown["tokens"].items())
        invalid = f", invalid traces {shown['invalid_share']:.0%}" if method == "covrl" else ""
        rows.append(f"{method}, CPU seconds: {'; '.join(cells)}; tokens: {tokens}{invalid}")
    return [
        *rows,
        f"training part covrl / grpo {found['ratio']:.2f} (goal: at most {found['goal']}), "
        f"whole step {found['step_ratio']:.2f}",
    ]
