"""The table of `make real`'s runs: ``python benchmarks/real/table.py [FOLDER …]``.

Takes the ``real.json`` of every run under the folders (default: runs/real) into ``docs/results/real-model.jsonl``, in
the place of an earlier one of the same method, control, settings, seed and steps, with the figures of the taught model
(``taught.json``) as a line of their own, and writes ``docs/results/real-model.md``. Runs that are asked for and that
have no line yet are named there, with their command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from run import CONTROLS, LESSONS, ROLES, helps

from covrl.statistics import bootstrap_interval

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
LINES, PAGE = RESULTS / "real-model.jsonl", RESULTS / "real-model.md"

Run = Mapping[str, Any]

TAUGHT = "taught"
"""What stands for the control in the line of the taught model."""

CHOSEN = "covrl"
"""The method whose runs and controls are asked for."""

SEEDS = (0, 1, 2)

NAMES = {
    "none": "`{method}`",
    "shuffled-hints": "`{method}`, the posterior is shown another problem's answer",
    "shuffled-answers": "`{method}`, every problem has another problem's answer",
    "format": "lessons in the format go on, no training",
}

COLUMNS = (
    ("greedy", "greedy", "{:.1%}"),
    ("sampled", "sampled", "{:.1%}"),
    ("without a thought", "without_thought", "{:.1%}"),
    ("five steps, greedy", "longer_greedy", "{:.1%}"),
    ("closed", "closed", "{:.0%}"),
    ("tokens", "tokens", "{:.1f}"),
)

COURSE = (
    ("reward, nats", "reward/prior", "{:.2f}"),
    ("trace, tokens", "length/prior", "{:.1f}"),
    ("information, nats", "answer/information", "{:.2f}"),
    ("entropy, nats", "answer/entropy", "{:.2f}"),
    ("KL, nats a token", "kl/nats_per_token", "{:.3f}"),
)
"""What is shown of a training's course, of the prior's traces."""

WINDOW = 3
"""Steps in a mean of the course: the first ones and the last ones."""


def main() -> int:
    """The command; see the module."""
    folders = [Path(name) for name in sys.argv[1:]] or [Path("runs/real")]
    runs = {key(run): run for run in read_lines()}
    found = [taught_line(folder / "taught.json") for folder in folders if (folder / "taught.json").exists()]
    found += [json.loads(file.read_text(encoding="utf-8")) for f in folders for file in sorted(f.glob("*/real.json"))]
    runs |= {key(run): without_examples(run) for run in found}
    if not runs:
        print(f"no taught.json in {', '.join(map(str, folders))}: `make real` makes it", file=sys.stderr)
        return 2
    ordered = [runs[name] for name in sorted(runs)]
    LINES.write_text("".join(json.dumps(run) + "\n" for run in ordered), encoding="utf-8")
    PAGE.write_text(page(ordered), encoding="utf-8")
    print(PAGE)
    return 0


def read_lines() -> list[Run]:
    """The runs that are kept; none where there is no file."""
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()] if LINES.exists() else []


def key(run: Run) -> tuple[Any, ...]:
    """What makes a run another one; of a table's rows, without the seed at its end."""
    order = (TAUGHT, *CONTROLS).index(run["control"])
    return order, run["method"], run["steps"], tuple(run["settings"]), run["seed"]


def taught_line(file: Path) -> dict[str, Any]:
    """The taught model's figures as a line."""
    base = json.loads(file.read_text(encoding="utf-8"))
    facts = {"method": "", "control": TAUGHT, "seed": 0, "steps": base["lessons"], "settings": [base["roles"]]}
    return {**facts, "base": base, "machine": base["machine"], "measure_cpu_s": base["measure_cpu_s"]}


def without_examples(run: Run) -> dict[str, Any]:
    """The run as it is kept; texts are in its folder."""
    kept = {
        side: {k: v for k, v in run[side].items() if k != "examples"} for side in ("base", "trained") if side in run
    }
    return {**run, **kept}


def page(lines: Sequence[Run]) -> str:
    """The page: the task and why it was chosen, a row for each method and control, the courses, what is missing."""
    taught, runs = ([line for line in lines if (line["control"] == TAUGHT) is wanted] for wanted in (True, False))
    counts = " or ".join(sorted({str(line["base"]["problems"]) for line in lines}))
    machines = "; ".join(sorted({line["machine"] for line in lines}))
    return "\n".join(
        [
            "# A real model, trained without a verifier",
            "",
            "SmolLM2-135M-Instruct on word problems of four additions and subtractions, from answers alone, without a "
            "verifier. Lessons before it teach the form of a trace, from solutions of two and three steps. Made by "
            "`python benchmarks/real/run.py [--control …] [--problems N] --seed S` and "
            "`python benchmarks/real/table.py`; "
            f"{machines}. {counts} test problems that no training has seen; every run is a line of "
            "[real-model.jsonl](real-model.jsonl).",
            "",
            "The task is to be one where this model's thoughts help, by measurement: greedy with a thought against the "
            "answer right after the question.",
            "",
            *(f"- {lessons(line)}: {helps(line['base'])}" for line in taught),
            "",
            "| | seeds | steps | CPU minutes | "
            + " | ".join(name for name, *_ in COLUMNS)
            + " | greedy, gain | sampled, gain |",
            "|---" * (len(COLUMNS) + 6) + "|",
            *(
                f"| {lessons(line)} | – | – | {minutes_of_lessons(line)} | {shown([line['base']])} | – | – |"
                for line in taught
            ),
            *rows(runs),
            "",
            "Means over seeds. Gains are in points over the model that the run began from, with a 95 % interval by "
            "bootstrap over problems: it says nothing about other seeds. Sampled: one sample a problem at temperature "
            "1. Without a thought: the greedy answer right after the question, which no lesson shows. Closed and "
            "tokens are those of sampled traces. CPU minutes are those of the training with its evaluations; measuring "
            f"a model took {fmean(line['measure_cpu_s'] for line in lines) / 60:.0f} more.",
            "",
            *courses(runs),
            *missing(taught, runs),
        ]
    )


def lessons(line: Run) -> str:
    """What the row of a taught model is called."""
    return f"after {line['base']['lessons']} lessons ({line['base']['roles'].replace(',', ' and ')} prompt)"


def minutes_of_lessons(line: Run) -> str:
    """CPU minutes of the lessons."""
    return f"{line['base']['lessons_cpu_s'] / 60:.0f}"


def kinds(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs that differ in their seed alone, together."""
    for kind in dict.fromkeys(key(run)[:-1] for run in runs):
        yield [run for run in runs if key(run)[:-1] == kind]


def named(run: Run) -> str:
    """What a row is called."""
    name = NAMES[run["control"]].format(method=run["method"])
    return f"{name} ({', '.join(f'`{s}`' for s in run['settings'])})" if run["settings"] else name


def rows(runs: Sequence[Run]) -> Iterator[str]:
    """A row for each method, control, number of steps and settings."""
    for mine in kinds(runs):
        seeds = ", ".join(str(run["seed"]) for run in mine)
        minutes = fmean(run["train_cpu_s"] for run in mine) / 60
        figures = shown([run["trained"] for run in mine])
        gains = f"{gain(mine, 'marks')} | {gain(mine, 'sampled_marks')}"
        yield f"| {named(mine[0])} | {seeds} | {mine[0]['steps']} | {minutes:.0f} | {figures} | {gains} |"


def shown(found: Sequence[Mapping[str, Any]]) -> str:
    """The columns' figures, means over seeds."""
    return " | ".join(form.format(fmean(one[name] for one in found)) for _, name, form in COLUMNS)


def gain(runs: Sequence[Run], name: str) -> str:
    """Accuracy after less before in points, problem by problem, with its interval over problems.

    Before is the taught model that the run began from: another machine's is not the same to the last bit.
    """
    each = [zip(run["trained"][name], run["base"][name], strict=True) for run in runs]
    gains = [100 * fmean(int(after) - int(before) for after, before in marks) for marks in zip(*each, strict=True)]
    low, high = bootstrap_interval(gains)
    return f"{fmean(gains):+.1f} ({low:+.1f} to {high:+.1f})"


def courses(runs: Sequence[Run]) -> Iterator[str]:
    """A table of the trainings' courses: first steps → last steps, and the warnings that they gave."""
    trained = [mine for mine in kinds(runs) if all("course" in run for run in mine)]
    if not trained:
        return
    yield "## What the trainings saw"
    yield ""
    yield "| | " + " | ".join(name for name, *_ in COURSE) + " | warnings (first step) |"
    yield "|---" * (len(COURSE) + 2) + "|"
    for mine in trained:
        figures = " | ".join(first_and_last([run["course"] for run in mine], name, form) for _, name, form in COURSE)
        said: dict[str, int] = {}
        for name, step in (item for run in mine for item in run["warnings"].items()):
            said[name] = min(step, said.get(name, step))
        yield f"| {named(mine[0])} | {figures} | {', '.join(f'{n} ({s})' for n, s in said.items()) or '–'} |"
    yield ""
    yield (
        f"Means of the first {WINDOW} steps → of the last {WINDOW}, and over seeds. Information and entropy are of the "
        "answer's first token ([what they are](../evaluation.md#does-the-answer-read-the-trace))."
    )
    yield ""


def first_and_last(found: Sequence[Sequence[Mapping[str, float]]], name: str, form: str) -> str:
    """First → last of a figure; a dash where the method does not have it."""
    series = [[step[name] for step in course if name in step] for course in found]
    if not all(series):
        return "–"
    first, last = (fmean(fmean(values[part]) for values in series) for part in (slice(WINDOW), slice(-WINDOW, None)))
    return f"{form.format(first)} → {form.format(last)}"


def is_current(base: Mapping[str, Any]) -> bool:
    """Whether a taught model is the one that the command makes now."""
    return (base["lessons"], base["roles"]) == (LESSONS, ROLES)


def missing(taught: Sequence[Run], runs: Sequence[Run]) -> Iterator[str]:
    """The runs that are asked for and are not there, with the command of each."""
    mine = [run for run in runs if run["method"] == CHOSEN and not run["settings"] and is_current(run["base"])]
    there = {(run["control"], run["seed"]) for run in mine}
    absent = [(control, seed) for seed in SEEDS for control in CONTROLS if (control, seed) not in there]
    if not absent:
        return
    yield "## What is missing"
    yield ""
    if not any(is_current(line["base"]) for line in taught):
        yield (
            f"The command now gives {LESSONS} lessons ({ROLES.replace(',', ' and ')} prompt). That model is not "
            "measured yet, so that nothing says whether its thoughts help."
        )
        yield ""
    yield (
        f"Asked for are {len(SEEDS)} seeds of `{CHOSEN}` and of each control. Not run yet, so that nothing above says "
        "what they would show:"
    )
    yield ""
    yield "```"
    for control, seed in absent:
        words = "" if control == "none" else f" --control {control}"
        yield f"python benchmarks/real/run.py{words} --seed {seed}"
    yield "python benchmarks/real/table.py"
    yield "```"
    yield ""


if __name__ == "__main__":
    sys.exit(main())
