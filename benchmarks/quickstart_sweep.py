"""How sure is the quickstart? Runs `covrl quickstart --json` over seeds, rates, bases and the shuffled control.

    python benchmarks/quickstart_sweep.py [--workers 2] [--out docs/results/quickstart.jsonl]

Each cell is a process of one thread; results are appended as they finish and cells that are there are not run again.
Prints the table of docs/results/quickstart.md. `--base NAME=FOLDER` adds bases made with other seeds
(`python benchmarks/make_base.py --seed 1 --out FOLDER`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RATES = ("7.5e-5", "1.5e-4", "3e-4")
SEEDS = range(5)


def cells(bases: dict[str, str]) -> list[dict[str, Any]]:
    """All seeds at the recipe's rate; three at the other rates and with shuffled answers; two with each other base."""
    plain = {"base": "shipped", "rate": RATES[1], "shuffled": False}
    wanted = [plain | {"seed": seed} for seed in SEEDS]
    wanted += [plain | {"seed": seed, "rate": rate} for rate in (RATES[0], RATES[2]) for seed in range(3)]
    wanted += [plain | {"seed": seed, "shuffled": True} for seed in range(3)]
    return wanted + [plain | {"seed": seed, "base": base} for base in bases for seed in range(2)]


def run(cell: dict[str, Any], bases: dict[str, str]) -> dict[str, Any]:
    """One quickstart in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "covrl", "quickstart", "--json", "--seed", str(cell["seed"])]
        command += ["--out", f"{folder}/run", "--set", f"training.learning_rate={cell['rate']}"]
        command += ["--shuffle-answers"] if cell["shuffled"] else []
        command += ["--set", f"model.path={bases[cell['base']]}"] if cell["base"] in bases else []
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        return cell | {"failed": done.stderr.strip().splitlines()[-1]}
    return cell | {"result": json.loads(done.stdout.splitlines()[-1])}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row per cell, in a fixed order."""
    lines = [
        "| base | rate | hint | seed | base greedy / sampled | greedy | sampled | sound | six digits | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in sorted(
        results, key=lambda c: (c["shuffled"], c["base"] != "shipped", c["base"], float(c["rate"]), c["seed"])
    ):
        hint = "another problem's answer" if cell["shuffled"] else "the answer"
        start = f"| {cell['base']} | {cell['rate']} | {hint} | {cell['seed']} |"
        if "failed" in cell:
            lines.append(f"{start} failed: {cell['failed']} ||||||")
            continue
        base, trained = cell["result"]["base"], cell["result"]["trained"]
        figures = [trained[k] for k in ("greedy", "sampled", "sound", "longer_greedy")]
        shown = " | ".join(f"{value:.3f}" for value in figures)
        lines.append(
            f"{start} {base['greedy']:.3f} / {base['sampled']:.3f} | {shown} | {cell['result']['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _place(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["shuffled"], cell["base"] != "shipped", cell["base"], float(cell["rate"]), cell["seed"]


def main() -> None:
    """Run the missing cells and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/results/quickstart.jsonl"))
    parser.add_argument("--base", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args()
    bases = dict(pair.split("=", 1) for pair in options.base)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    results = [json.loads(line) for line in lines]
    keys = ("base", "rate", "shuffled", "seed")
    there = {tuple(r[k] for k in keys) for r in results}
    missing = [cell for cell in cells(bases) if tuple(cell[k] for k in keys) not in there]
    with ThreadPoolExecutor(options.workers) as pool, options.out.open("a") as file:
        for result in pool.map(lambda cell: run(cell, bases), missing):
            result.get("result", {}).pop("report", None)
            results.append(result | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"})
            file.write(json.dumps(results[-1]) + "\n")
            file.flush()
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
