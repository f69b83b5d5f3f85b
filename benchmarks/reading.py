"""Does the answer read its trace? Forms of reward and of the answer's term, compared on several tasks.

    python benchmarks/reading.py --task digits --task animals --seeds 0,1,2 [--arms default,nll-read] [--steps 50]
    python benchmarks/reading.py --config runs/trial/trial.toml --name trial --steps 16
    python benchmarks/reading.py --table

Each run is one line of ``docs/results/reading.jsonl``: the task, the arm, the seed, and every few steps accuracy, trace
length, log p(y|x,z), and what the answer takes from its trace. A run that has a line is not run again, and one that was
cut goes on from its checkpoint under ``--out``, where it is until it has its line. ``--table`` writes
``docs/results/reading.md`` from the lines. Two runs at a time, one thread each. ``benchmarks/real/trial.py`` makes the
trial's file and model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINES, PAGE = ROOT / "docs/results/reading.jsonl", ROOT / "docs/results/reading.md"

ARMS: dict[str, tuple[str, ...]] = {
    "default": (),
    "nll-read": ("algorithm.nll=read",),
    "nll-0.3": ("algorithm.nll_weight=0.3",),
    "nll-off": ("algorithm.nll=off",),
    "mean-prob": ("algorithm.reward=mean_prob", "algorithm.beta=0.1"),
    "mean-prob nll-off": ("algorithm.reward=mean_prob", "algorithm.beta=0.1", "algorithm.nll=off"),
    "mean-prob nll-read": ("algorithm.reward=mean_prob", "algorithm.beta=0.1", "algorithm.nll=read"),
    "prob": ("algorithm.reward=prob", "algorithm.beta=0.1"),
    "gain": ("algorithm.reward=gain",),
    "gain nll-read": ("algorithm.reward=gain", "algorithm.nll=read"),
    "gain nll-off": ("algorithm.reward=gain", "algorithm.nll=off"),
    "floor-4": ("algorithm.floor=-4",),
    "floor-4 nll-read": ("algorithm.floor=-4", "algorithm.nll=read"),
    "beta-0.3": ("algorithm.beta=0.3",),
    "shuffled hints": ("problems.shuffle_hints=true",),
    "jepo": ("algorithm.name=jepo",),
    "jepo nll-read": ("algorithm.name=jepo", "algorithm.nll=read"),
    "jepo nll-0": ("algorithm.name=jepo", "algorithm.nll_weight=0"),
}
"""Settings of each arm besides the task's own; CoVRL where nothing else is named."""

KEPT = (
    *("eval/accuracy", "eval/sampled", "eval/sound", "eval/log_prob", "eval/answer_information"),
    *("answer/information", "answer/entropy", "thought/gain", "thought/read", "reward/prior", "length/prior"),
)
ASKED = {
    "digits": "--task digits --steps 40",
    "animals": "--task animals --steps 40",
    "trial": "--config runs/trial/trial.toml --name trial --steps 16",
}
"""The tasks that have to agree before a default changes, and how each is run; ``trial`` is a real model's."""

EVERY = 5
"""Steps from one evaluation, and one kept point, to the next."""


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", default=[], choices=["digits", "animals"])
    parser.add_argument("--config", type=Path, help="a configuration file of `covrl train`, as another task")
    parser.add_argument("--name", default="own", help="what the task of --config is called in the table")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/reading"), help="where runs are while they train")
    parser.add_argument("--table", action="store_true", help="write the page from the lines, and run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return say_one(json.loads(given.one))
    whole = given.table or run_missing(given)
    PAGE.write_text(page(read_lines()), encoding="utf-8")
    print(PAGE)
    return 0 if whole else 1


def run_missing(given: argparse.Namespace) -> bool:
    """Run what is asked for and has no line yet, a process each; whether all of them came to their line."""
    tasks = [*((task, None) for task in given.task), *([(given.name, str(given.config))] if given.config else [])]
    there = {(r["task"], r["arm"], r["seed"], r["steps"]) for r in read_lines()}
    orders = [
        {"task": task, "config": config, "arm": arm, "seed": int(seed), "steps": given.steps, "out": str(given.out)}
        for seed, (task, config), arm in product(given.seeds.split(","), tasks, given.arms.split(","))
        if (task, arm, int(seed), given.steps) not in there
    ]
    whole = True
    with ThreadPoolExecutor(given.jobs) as pool:
        for made in as_completed([pool.submit(in_process, order) for order in orders]):
            line, order = made.result()
            whole = whole and line is not None
            if line is not None:
                with LINES.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                shutil.rmtree(folder_of(order))
    return whole


def in_process(order: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The line of one run, made by a process with one thread, and what was asked; no line where it failed."""
    command = [sys.executable, __file__, "--one", json.dumps(order)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=False
    )
    ended = f"ended with code {done.returncode}" if done.returncode else "done"
    print(order["task"], order["arm"], order["seed"], ended, file=sys.stderr, flush=True)
    return None if done.returncode else done.stdout.strip().splitlines()[-1], order


def folder_of(order: Mapping[str, Any]) -> Path:
    """Where a run is while it trains."""
    name = "-".join(str(order[part]) for part in ("task", "arm", "steps", "seed"))
    return Path(order["out"]) / name.replace(" ", "_")


def say_one(order: Mapping[str, Any]) -> int:
    """Print the line of one run; 2 where it cannot be made, or was interrupted."""
    from covrl.errors import RunInterruptedError, UserError

    try:
        print(json.dumps(run_one(order)))
    except (UserError, RunInterruptedError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run_one(order: Mapping[str, Any]) -> dict[str, Any]:
    """Train one arm, from its checkpoint where it was cut; what its line holds.

    Raises:
        RunInterruptedError: a signal ended it, with a checkpoint.
    """
    import torch

    from covrl import api
    from covrl.errors import RunInterruptedError, TrainingStoppedError
    from covrl.reporting.sinks import read_metrics

    torch.set_num_threads(1)
    folder, stopped = folder_of(order), None
    begun = (folder / "config.toml").exists()
    run = api.resume(folder) if begun else api.build(config_of(order))
    if not begun:
        api.new_run_folder(folder)
    try:
        api.train_run(run, folder)
    except RunInterruptedError:
        raise
    except TrainingStoppedError as error:
        stopped = str(error)
    points: list[dict[str, float]] = []
    warnings: dict[str, int] = {}
    for report in read_metrics(folder / "metrics.jsonl"):
        for warning in report.warnings:
            warnings.setdefault(warning.partition(":")[0], report.step)
        if report.step == 1 or report.step % EVERY == 0:
            shown = {name: round(report.metrics[name], 4) for name in KEPT if name in report.metrics}
            points.append({"step": report.step} | {name: v for name, v in shown.items() if math.isfinite(v)})
    facts = {name: order[name] for name in ("task", "arm", "seed", "steps")}
    facts["machine"] = f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return {**facts, "settings": list(ARMS[order["arm"]]), "stopped": stopped, "warnings": warnings, "points": points}


def processor() -> str:
    """The processor's name, where the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def config_of(order: Mapping[str, Any]) -> Any:
    """The task's settings, then the arm's, then those of every run here."""
    from covrl.config import RunConfig, check, override, read_toml
    from covrl.quickstart.run import find_recipe

    file = Path(order["config"]) if order["config"] else find_recipe(order["task"]).file
    shared = (
        *(f"training.seed={order['seed']}", f"training.steps={order['steps']}", "training.stream_norms_every=0"),
        *(f"evaluation.every={EVERY}", "report.traces_every=1000000", "checkpoint.every=4", "checkpoint.keep=1"),
    )
    return check(RunConfig, override(read_toml(file), (*ARMS[order["arm"]], *shared)))


def read_lines() -> list[dict[str, Any]]:
    """All runs that have a line; none where there is no file."""
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]


COLUMNS = (
    ("greedy", "eval/accuracy", "{:.1%}"),
    ("sampled", "eval/sampled", "{:.1%}"),
    ("sound", "eval/sound", "{:.1%}"),
    ("log p", "eval/log_prob", "{:.1f}"),
    ("length", "length/prior", "{:.0f}"),
    ("information", "answer/information", "{:.2f}"),
    ("entropy", "answer/entropy", "{:.2f}"),
)


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The tables, a task each: means over seeds at the first step and at the last one."""
    machines = "; ".join(sorted({line["machine"] for line in lines}))
    parts = [
        "# Does the answer read its trace?",
        "Written by `python benchmarks/reading.py --table` from [reading.jsonl](reading.jsonl), which "
        "`python benchmarks/reading.py --task TASK --steps N --seeds …` or `--config FILE --name NAME` extend; one "
        f"thread a run, {machines}. Means over seeds, held-out problems, first → last step; information and entropy of "
        "the answer's first token in nats ([what they are](../evaluation.md#does-the-answer-read-the-trace)). The last "
        "column names the warnings of any seed with the step of the first one.",
    ]
    for task, steps in sorted({(r["task"], r["steps"]) for r in lines}):
        parts.append(f"## {task}, {steps} steps")
        parts.append("\n".join(table([r for r in lines if (r["task"], r["steps"]) == (task, steps)])))
    return "\n\n".join((*parts, *missing(lines))) + "\n"


def missing(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The arms that a task has no run of, with the command that goes on."""
    there = {(r["task"], r["arm"]) for r in lines}
    absent = {task: [arm for arm in ARMS if (task, arm) not in there] for task in ASKED}
    if not any(absent.values()):
        return
    yield "## What is missing"
    yield (
        "A default of covrl or jepo changes where all three tasks agree. These arms have no run yet, so that nothing "
        "here changes one:"
    )
    commands = [
        f'python benchmarks/reading.py {ASKED[task]} --arms "{",".join(arms)}"' for task, arms in absent.items() if arms
    ]
    yield "\n".join(("```", *commands, "```"))


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table, a row an arm."""
    yield "| arm | seeds | " + " | ".join(name for name, *_ in COLUMNS) + " | warnings |"
    yield "|---" * (len(COLUMNS) + 3) + "|"
    for arm in (arm for arm in ARMS if any(r["arm"] == arm for r in lines)):
        mine = [r for r in lines if r["arm"] == arm]
        cells = [shown([r["points"] for r in mine], key, form) for _, key, form in COLUMNS]
        said = {
            name: min(r["warnings"][name] for r in mine if name in r["warnings"])
            for r in mine
            for name in r["warnings"]
        }
        named = ", ".join(f"{name} ({step})" for name, step in said.items()) or "–"
        yield f"| {arm} | {len(mine)} | " + " | ".join(cells) + f" | {named} |"


def shown(courses: Sequence[Sequence[Mapping[str, float]]], key: str, form: str) -> str:
    """First → last value of a figure, the mean over courses; a dash where none has it."""
    each = [[point[key] for point in course if key in point] for course in courses]
    each = [values for values in each if values]
    if not each:
        return "–"
    return f"{form.format(fmean(v[0] for v in each))} → {form.format(fmean(v[-1] for v in each))}"


if __name__ == "__main__":
    sys.exit(main())
