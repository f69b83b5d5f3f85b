"""The table of `make real`'s runs: ``python benchmarks/real/table.py [FOLDER …]``.

Takes the ``real.json`` of every run under the folders (default: runs/real) into ``docs/results/real-model.jsonl``, in
the place of an earlier one of the same method, control, seed and steps, and writes ``docs/results/real-model.md``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from covrl.statistics import bootstrap_interval

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
LINES, PAGE = RESULTS / "real-model.jsonl", RESULTS / "real-model.md"

Run = Mapping[str, Any]

NAMES = {
    "none": "{method}",
    "shuffled-hints": "{method}, the posterior is shown another problem's answer",
    "shuffled-answers": "{method}, every problem has another problem's answer",
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


def main() -> int:
    """The command; see the module."""
    folders = [Path(name) for name in sys.argv[1:]] or [Path("runs/real")]
    runs = {key(run): run for run in read_lines()}
    found = [json.loads(file.read_text(encoding="utf-8")) for f in folders for file in sorted(f.glob("*/real.json"))]
    runs |= {key(run): without_examples(run) for run in found}
    ordered = [runs[name] for name in sorted(runs)]
    LINES.write_text("".join(json.dumps(run) + "\n" for run in ordered), encoding="utf-8")
    PAGE.write_text(page(ordered), encoding="utf-8")
    print(PAGE)
    return 0


def read_lines() -> list[Run]:
    """The runs that are kept; none where there is no file."""
    return [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()] if LINES.exists() else []


def key(run: Run) -> tuple[Any, ...]:
    """What makes a run another one."""
    return run["control"] != "none", run["method"], run["control"], run["steps"], tuple(run["settings"]), run["seed"]


def without_examples(run: Run) -> dict[str, Any]:
    """The run as it is kept; texts are in its folder."""
    kept = {side: {k: v for k, v in run[side].items() if k != "examples"} for side in ("base", "trained")}
    return {**run, **kept}


def page(runs: Sequence[Run]) -> str:
    """The page: the task, the base, a row for each method and control."""
    base = runs[0]["base"]
    machines = sorted({run["machine"] for run in runs})
    return "\n".join(
        [
            "# A real model learns without a verifier",
            "",
            "SmolLM2-135M-Instruct, word problems of four additions and subtractions, answers alone, no verifier. The "
            "model was taught the form of a trace from solutions of two and three steps. "
            f"`python benchmarks/real/run.py [--control …] --seed S`, then `python benchmarks/real/table.py`; "
            f"{', '.join(machines)}. {base['problems']} test problems; all runs: [real-model.jsonl](real-model.jsonl).",
            "",
            "| | seeds | steps | minutes | " + " | ".join(name for name, *_ in COLUMNS) + " | greedy, gain and 95 % |",
            "|---" * (len(COLUMNS) + 5) + "|",
            "| the taught model | – | – | – | " + " | ".join(cells([base])) + " | – |",
            *rows(runs),
            "",
            "Means over seeds. The gain is over the taught model on the same problems, its interval a bootstrap over "
            "problems. Sampled is at temperature 1. Without a thought: the greedy answer right after the question.",
            "",
        ]
    )


def rows(runs: Sequence[Run]) -> Iterator[str]:
    """A row for each method, control and number of steps."""
    kinds = dict.fromkeys(key(run)[:-1] for run in runs)
    for kind in kinds:
        mine = [run for run in runs if key(run)[:-1] == kind]
        first = mine[0]
        name = NAMES[first["control"]].format(method=first["method"])
        name += f" ({', '.join(first['settings'])})" if first["settings"] else ""
        minutes = fmean(run["train_s"] for run in mine) / 60
        steps = "–" if first["control"] == "format" else str(first["steps"])
        shown = " | ".join(cells([run["trained"] for run in mine]))
        yield f"| {name} | {len(mine)} | {steps} | {minutes:.0f} | {shown} | {gain(mine)} |"


def cells(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """The columns' figures, means over seeds."""
    return (form.format(fmean(one[name] for one in found)) for _, name, form in COLUMNS)


def gain(runs: Sequence[Run]) -> str:
    """Greedy accuracy after less before, problem by problem, with its interval over problems."""
    before = [int(mark) for mark in runs[0]["base"]["marks"]]
    after = [fmean(int(run["trained"]["marks"][i]) for run in runs) for i in range(len(before))]
    gains = [a - b for a, b in zip(after, before, strict=True)]
    low, high = bootstrap_interval(gains)
    return f"{fmean(gains):+.1%} ({low:+.1%} to {high:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
