"""Does a KL that is kept in a band widen the range of learning rates that are safe? CoVRL on the digits task.

    python benchmarks/kl_band.py [--list | --table | --most N]

The rule was fixed before anything was run. A rate is *safe* for a method if the model after the last step answers at
least 95 % of the dev problems greedily, in every seed. The range is the highest over the lowest rate of the longest
unbroken row of safe rates, on a grid of factors of two. The claim: the range with a band is at least twice that
without. A range that ends with the grid may be wider, and its factor is only known to be at least that.

The budget, fixed beforehand too, is 20 core-minutes: two seeds, β alone, and nine rates around the six that the tuning
of CoVRL has results of, the ends of the grid first. Cells that have a result in ``docs/results/raw`` are not run again,
nor those that can no longer change what is decided; so the command may be cut and started again. One single-thread
process at a time. Writes ``docs/results/kl_band.md``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
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

FIRST = (*(RATES[i] for i in (-2, 0, -1)), *RATES[1:-2])
"""The order in which rates are run: an end that is not safe closes the range."""

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
        todo = needed(cells, found(cells, read_results(given.folder / "raw")))
        print(f"{len(todo)} of {len(cells)} cells are missing and can still decide")
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


def safe(values: Sequence[float]) -> bool | None:
    """Whether a rate with these accuracies is safe; one seed says that it is not, and only all that it is."""
    if any(value < SAFE for value in values):
        return False
    return True if len(values) == len(SEEDS) else None


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


def factors(marks: Sequence[bool | None]) -> tuple[float, float]:
    """Between what the range's factor lies, as far as the marks are known; beyond the grid it may be any."""
    known, possible = widest([mark is True for mark in marks]), widest([mark is not False for mark in marks])
    most = 0.0 if possible is None else math.inf if possible.open else possible.factor
    return (0.0 if known is None else known.factor), most


def decided(ours: Sequence[bool | None], plain: Sequence[bool | None]) -> bool | None:
    """Whether the claim holds; None where what is known allows both."""
    (least, most), (plain_least, plain_most) = factors(ours), factors(plain)
    if plain_least and most < WIDER * plain_least:
        return False
    return True if least and least >= WIDER * plain_most else None


def needed(cells: Iterable[Cell], results: Mapping[Cell, Result]) -> list[Cell]:
    """The missing cells that can still decide, those at the ends of the grid first; none once it is decided."""
    marks = {m: [safe(accuracies(results, m, rate)) for rate in RATES] for m in (PLAIN, *BANDS)}
    if all(decided(marks[band], marks[PLAIN]) is not None for band in BANDS):
        return []
    open_rates = [cell for cell in missing(cells, results) if marks[cell.method][RATES.index(cell.rate)] is None]
    return sorted(open_rates, key=lambda c: (c.seed, FIRST.index(c.rate), c.method))


def page(results: Mapping[Cell, Result]) -> str:
    """What was found, as Markdown."""
    methods = (PLAIN, *BANDS)
    values = {m: [accuracies(results, m, rate) for rate in RATES] for m in methods}
    marks = {m: [safe(row) for row in values[m]] for m in methods}
    head = [
        "# A KL in a band, and safe learning rates",
        "",
        "`python benchmarks/kl_band.py`. Digits, rare setting; greedy accuracy on dev in %, the lowest of "
        f"{len(SEEDS)} seeds; `-` where none is there. Rule, fixed beforehand: a rate is safe with {percent(SAFE)} % "
        "and more in every seed (bold); the range is the highest over the lowest of the longest row of safe rates; the "
        "claim is that a band at least doubles it.",
        "",
        f"| rate | {' | '.join(methods)} |",
        f"|---:|{'---:|' * len(methods)}",
    ]
    rows = [f"| {rate:g} | {' | '.join(shown(values[m][i]) for m in methods)} |" for i, rate in enumerate(RATES)]
    return "\n".join([*head, *rows, "", *(verdict(m, marks) for m in BANDS), ""])


def shown(values: Sequence[float]) -> str:
    """The lowest of the seeds, bold where the rate is safe; with their number where one is missing."""
    if not values:
        return "-"
    lowest = percent(min(values))
    if safe(values):
        return f"**{lowest}**"
    return lowest if len(values) == len(SEEDS) else f"{lowest} ({len(values)} of {len(SEEDS)} seeds)"


def verdict(method: str, marks: Mapping[str, Sequence[bool | None]]) -> str:
    """The rule of this module in one sentence."""
    said = ", ".join(f"{name}'s factor is {_factor(*factors(marks[name]))}" for name in (PLAIN, method))
    holds = decided(marks[method], marks[PLAIN])
    if holds is None:
        return f"- {method}: not decided; {said}."
    return f"- {method}: the range {'at least doubles' if holds else 'does not double'} here; {said}."


def _factor(least: float, most: float) -> str:
    if least == most:
        return f"{least:g}"
    return f"at least {least:g}" if math.isinf(most) else f"{least:g} to {most:g}" if least else f"at most {most:g}"


if __name__ == "__main__":
    sys.exit(main())
