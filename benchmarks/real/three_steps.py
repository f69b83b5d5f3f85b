"""Three steps of every method on a real pretrained model: that each of them runs, moves the weights and stays finite.

    python benchmarks/real/three_steps.py MODEL [--methods tempo,thr] [--threads 1]
    python benchmarks/real/three_steps.py --table

Two problems of four traces of up to 24 tokens, in float32, at the rate 1e-5. The model is loaded once; each method
begins from its weights. A method's line in ``docs/results/three-steps.jsonl`` takes the place of its old one. Three
steps teach nothing: this shows that a method works on a model that is no test's, and no more.

The reward of verified methods is 1 where the sum that is asked for is written in the response, which the model manages
now and then; likelihood methods have none. ``clip_delta`` gets scores of steps from their lengths, in the place of a
process reward model.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from covrl import api
from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.config import RunConfig, check
from covrl.models.beside import load_beside
from covrl.problems.source import ProblemSource
from covrl.records import Problem
from covrl.rewards.steps import StepsToScore
from covrl.training import loop
from covrl.training.run import Run

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
LINES, PAGE = RESULTS / "three-steps.jsonl", RESULTS / "three-steps.md"
STEPS, TOKENS = 3, 24

PROBLEMS = [
    Problem(str(i), f"What is {a} plus {b}?", str(a + b), foil=str(a + b + 1))
    for i, (a, b) in enumerate([(2, 3), (14, 5), (8, 9), (31, 6), (7, 7), (25, 12)])
]

PROMPTS = {
    "system": "Answer in one short sentence.",
    "user": "{question}",
    "prior_open": "",
    "posterior_open": "It is {hint}: ",
    "close": ".",
    "answer_prefix": " So it is",
    "answer_suffix": ".",
}
"""Words in the place of tags, and a full stop that closes a thought: the model knows both without being taught."""

SMALLER: dict[str, dict[str, Any]] = {
    "c3po": {"algorithm": {"budget": 150}},
    "rover": {"training": {"mini_batches": 2}},
    "vineppo": {"algorithm": {"continuations": 2}},
}
"""What a method needs besides, or with less of which it costs less."""


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a folder, such as benchmarks/real_model.py makes")
    parser.add_argument("--methods", default=",".join(ALGORITHMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the page from the lines, and run nothing")
    given = parser.parse_args()
    if given.table == (given.model is not None):
        parser.error("give a model's folder, or --table")
    if not given.table:
        torch.set_num_threads(given.threads)
        measure(given.model, given.methods.split(","))
    PAGE.write_text(page(read_lines()), encoding="utf-8")
    print(PAGE)
    return 0


def measure(model: Path, methods: Sequence[str]) -> None:
    """Run the methods one after the other on a model that is loaded once; keep each one's line as it comes."""
    loaded = api.build(settings(model, "covrl"), PROBLEMS)
    begun = {name: value.clone() for name, value in loaded.models["policy"].model.state_dict().items()}
    for method in methods:
        loaded.models["policy"].model.load_state_dict(begun)
        made = line(run_of(loaded, model, method))
        keep(made)
        print(f"{method:12s} loss {made['loss']}  gradient {made['gradient']}  moved {made['moved']:.2g}", flush=True)


def settings(model: Path, method: str) -> RunConfig:
    """Two problems, four traces of each, few tokens."""
    more = SMALLER.get(method, {})
    table: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
        "algorithm": {"name": method, **more.get("algorithm", {})},
        "prompts": PROMPTS,
        "training": {
            "steps": STEPS,
            "problems_per_step": 2,
            "rollouts_per_problem": 4,
            "learning_rate": 1e-5,
            "schedule": "constant",
            "warmup_steps": 0,
            "stream_norms_every": 0,
            **more.get("training", {}),
        },
        "evaluation": {"every": 0},
    }
    answers = 4 if find_algorithm(method).verified else 0  # which a whole response has besides its thought
    table["generation"] = {"max_trace_tokens": TOKENS - 2 * answers, "max_answer_tokens": 4}
    return check(RunConfig, table)


def run_of(loaded: Run, model: Path, method: str) -> Run:
    """A run of the method on the model that is loaded; models beside it are copies of what it is now."""
    config = settings(model, method)
    verified = find_algorithm(method).verified
    made = api.build_algorithm(config, loaded.prompts, None, verified)
    policy = loaded.models["policy"]
    models = {"policy": policy} | load_beside(policy, made.models, config, resumed=False)
    return replace(
        loaded,
        config=config,
        algorithm=made,
        models=models,
        source=ProblemSource(PROBLEMS, config.training.seed),
        reward=said if verified else None,
        step_scorer=by_length if made.wants_step_scores else None,
        remarks=[],
    )


def said(problem: Problem, text: str) -> float:
    """Whether the right sum is written somewhere in the response."""
    words = "".join(c if c.isdigit() else " " for c in text).split()
    return float(problem.answer in words)


def by_length(asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
    """A made-up score of each step, from its length."""
    return [tuple(len(step) % 5 / 5 for step in one.steps) for one in asked]


def line(run: Run) -> dict[str, Any]:
    """Take the steps; what the method's line holds."""
    before = [p.detach().clone() for p in run.parameters]
    began = time.process_time()
    reports = list(loop.steps(run))
    seconds = time.process_time() - began
    moved = max(float((p.detach() - old).abs().max()) for p, old in zip(run.parameters, before, strict=True))
    metrics = [report.metrics for report in reports]
    return {
        "method": run.algorithm.name,
        "steps": len(reports),
        "loss": [round(sum(v for k, v in m.items() if k.startswith("loss/")), 5) for m in metrics],
        "gradient": [round(m.get("grad_norm/total", 0.0), 4) for m in metrics],
        "reward": [round(m["reward/prior"], 4) if "reward/prior" in m else None for m in metrics],
        "tokens_trained": [int(m["tokens/trained"]) for m in metrics],
        "finite": all(bool(torch.isfinite(p).all()) for p in run.parameters),
        "moved": moved,
        "cpu_seconds": round(seconds, 1),
        "warnings": sorted({w.partition(":")[0] for report in reports for w in report.warnings}),
        "own": {k: round(v, 5) for k, v in metrics[-1].items() if k.startswith(f"{run.algorithm.name}/")},
        "settings": SMALLER.get(run.algorithm.name, {}),
        "machine": f"{processor()}, {torch.get_num_threads()} thread, torch {torch.__version__}",
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    named = (row.partition(":")[2].strip() for row in lines if row.startswith("model name"))
    return next(named, platform.machine())


def read_lines() -> list[dict[str, Any]]:
    """The lines that there are, in the order of the methods."""
    rows = [json.loads(row) for row in LINES.read_text(encoding="utf-8").splitlines()] if LINES.exists() else []
    order = {name: i for i, name in enumerate(ALGORITHMS)}
    return sorted(rows, key=lambda row: order.get(row["method"], len(order)))


def keep(made: dict[str, Any]) -> None:
    """Put a method's line in the place of its old one."""
    rows = [row for row in read_lines() if row["method"] != made["method"]]
    LINES.write_text("".join(json.dumps(row) + "\n" for row in [*rows, made]), encoding="utf-8")
    LINES.write_text("".join(json.dumps(row) + "\n" for row in read_lines()), encoding="utf-8")


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page, from the lines."""
    head = (
        "# Three steps of each method on a real model\n\n"
        "Written by `python benchmarks/real/three_steps.py MODEL` from [three-steps.jsonl](three-steps.jsonl), on "
        "SmolLM2-135M-Instruct (`python benchmarks/real_model.py FOLDER`) in float32: two problems of four traces of "
        "up to 24 tokens, rate 1e-5. It shows that a method runs there, moves the weights and stays finite. Three "
        "steps teach nothing, and figures of different methods are not to be compared.\n\n"
        "| method | loss | gradient norm | tokens trained | largest change | finite | CPU seconds | warnings |\n"
        "|---|---|---|---|---:|---|---:|---|\n"
    )

    def row(made: dict[str, Any]) -> str:
        parts = [" ".join(f"{v:g}" for v in made[name]) for name in ("loss", "gradient", "tokens_trained")]
        told = ", ".join(made["warnings"]) or "–"
        finite = "yes" if made["finite"] else "no"
        cells = (f"`{made['method']}`", *parts, f"{made['moved']:.1e}", finite, f"{made['cpu_seconds']:.0f}", told)
        return "| " + " | ".join(cells) + " |\n"

    machines = sorted({made["machine"] for made in rows})
    return head + "".join(map(row, rows)) + f"\nMachine: {'; '.join(machines)}.\n"


if __name__ == "__main__":
    raise SystemExit(main())
