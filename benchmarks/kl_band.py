"""Does a KL that is kept in a band widen the range of learning rates that are safe? CoVRL on the digits task.

    python benchmarks/kl_band.py [--list | --table | --most N]

The rule was fixed before anything was run. A rate is *safe* for a method if the model after the last step answers at
least 95 % of the dev problems greedily, in every seed. The range is the highest over the lowest rate of the longest
unbroken row of safe rates, on a grid of factors of two. The claim: the range with a band is at least twice that
without. A range whose end is the grid's is not known, and the grid has to grow.

The budget, fixed beforehand too, is 20 core-minutes: two seeds, β alone, and nine rates around the six that the tuning
of CoVRL has results of. Cells that have a result in ``docs/results/raw`` are not run again, so the command may be cut
and started again; one single-thread process at a time. Writes ``docs/results/kl_band.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from own_tasks import orders

from covrl.comparison.cells import Budget, Cell, Exam, Result, found, grid, missing, read_results
from covrl.comparison.run import Share, run_cells
from covrl.comparison.table import percent
from covrl.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
PLAIN, BANDS = "covrl", ("covrl-band",)
RATES = tuple(7.5e-5 * 2**k for k in range(9))
SEEDS, BUDGET, EXAM = (100, 101), Budget("steps", 50), Exam("dev", 4, 1000)

SAFE = 0.95
"""Least greedy accuracy on dev, in every seed."""

WIDER = 2.0
"""By how much the range has to grow for the claim to hold."""


class Range(NamedTuple):
    """The longest unbroken row of safe rates; ``open`` where it ends with the grid, so that it may be wider."""

    lowest: float
    highest: float
    open: bool

    @property
    def factor(self) -> float:
        return self.highest / self.lowest


def main() -> int:
    """Run what is missing, then write the page; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what is missing and run nothing")
    parser.add_argument("--table", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--most", type=int, metavar="N", help="run at most so many of the missing cells")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results are and go")
    given = parser.parse_args()
    cells = grid((PLAIN, *BANDS), ("rare",), SEEDS, BUDGET, EXAM, RATES)[1:]  # without the base
    try:
        todo = missing(cells, found(cells, read_results(given.folder / "raw")))
        print(f"{len(todo)} of {len(cells)} cells are missing")
        if given.list:
            return 0
        work = orders([] if given.table else todo[: given.most], given.folder / "raw")
        failures = run_cells(work, given.folder / "raw", say=print, share=Share(1, 1))
        results = found(cells, read_results(given.folder / "raw"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    (given.folder / "kl_band.md").write_text(page(results), encoding="utf-8")
    return 1 if failures else 0


def accuracies(results: Mapping[Cell, Result], method: str, rate: float) -> list[float]:
    """Greedy accuracy after the last step, a seed each; a run that was stopped counts with what it had."""
    wanted = [Cell(method, "rare", rate, seed, BUDGET, EXAM) for seed in SEEDS]
    return [results[cell].figures["exam"]["greedy"] for cell in wanted if cell in results]


def safe(values: Sequence[float]) -> bool:
    """Whether a rate with these accuracies is safe; not while a seed is missing."""
    return len(values) == len(SEEDS) and min(values) >= SAFE


def widest(marks: Sequence[bool]) -> Range | None:
    """The range of the rates whose marks are true; None where none is.

    Example:
        >>> widest([False, True, True, False, True] + [False] * 4).factor
        2.0
    """
    best: tuple[int, int] | None = None
    start = None
    for place, mark in enumerate([*marks, False]):
        if mark and start is None:
            start = place
        elif not mark and start is not None:
            if best is None or place - start > best[1] - best[0]:
                best = (start, place)
            start = None
    if best is None:
        return None
    first, last = best[0], best[1] - 1
    return Range(RATES[first], RATES[last], first == 0 or last == len(RATES) - 1)


def page(results: Mapping[Cell, Result]) -> str:
    """What was found, as Markdown."""
    methods = (PLAIN, *BANDS)
    values = {m: [accuracies(results, m, rate) for rate in RATES] for m in methods}
    ranges = {m: widest([safe(row) for row in values[m]]) for m in methods}
    head = [
        "# A KL in a band, and safe learning rates",
        "",
        "`python benchmarks/kl_band.py`. Digits, rare setting; greedy accuracy on dev in %, the lowest of "
        f"{len(SEEDS)} seeds; `-` where one is missing. Rule, fixed beforehand: safe is {percent(SAFE)} % and more.",
        "",
        f"| rate | {' | '.join(methods)} |",
        f"|---:|{'---:|' * len(methods)}",
    ]
    rows = [f"| {rate:g} | {' | '.join(shown(values[m][i]) for m in methods)} |" for i, rate in enumerate(RATES)]
    return "\n".join([*head, *rows, "", *(verdict(m, ranges) for m in BANDS), ""])


def shown(values: Sequence[float]) -> str:
    """The lowest of the seeds, bold where the rate is safe."""
    if len(values) < len(SEEDS):
        return "-"
    return f"**{percent(min(values))}**" if safe(values) else percent(min(values))


def verdict(method: str, ranges: Mapping[str, Range | None]) -> str:
    """The rule of this module in one sentence."""
    ours, plain = ranges[method], ranges[PLAIN]
    if ours is None or plain is None:
        return f"- {method}: not decided, as {PLAIN if plain is None else method} has no safe rate yet."
    said = f"- {method}: safe from {ours.lowest:g} to {ours.highest:g} (factor {ours.factor:g}), {PLAIN} from "
    said += f"{plain.lowest:g} to {plain.highest:g} (factor {plain.factor:g}): "
    if ours.open or plain.open:
        return f"{said}not decided, as a range ends with the grid."
    holds = ours.factor >= WIDER * plain.factor
    return f"{said}the claim {'holds' if holds else 'does not hold'} here."


if __name__ == "__main__":
    sys.exit(main())
