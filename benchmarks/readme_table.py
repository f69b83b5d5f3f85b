"""The short table of the comparison in README.md, between its two marks; `benchmarks/comparison.py` writes it.

One row for each method that was measured with five seeds, one pair of columns a setting: mean and range over seeds of
the sampled accuracy, and of the share of sound traces; then what the trainings cost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from covrl.comparison.methods import BASE
from covrl.comparison.summary import Line, measures
from covrl.comparison.table import count_text, percent

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- compared:begin -->", "<!-- compared:end -->"


def short_table(settings: Mapping[str, Mapping[str, Line]]) -> str:
    """Markdown for the lines of each setting by the name of their row; rows that a setting lacks are left out."""
    head = ["", *(f"{name}, {what}" for name in settings for what in ("sampled", "sound")), "forward + backward tokens"]
    table = [head, ["---", *["---:"] * (len(head) - 1)]]
    guess = next(r.figures["chance"] for lines in settings.values() for line in lines.values() for r in line.results)
    table.append(["chance", *(cell for _ in settings for cell in (percent(guess), "")), ""])
    for row in next(iter(settings.values())):
        found = [lines[row] for lines in settings.values() if row in lines and lines[row].results]
        if len(found) == len(settings):
            cells = [_range(line, measure) for line in found for measure in (_sampled(line), "sound")]
            table.append([row if row == BASE else f"`{row}`", *cells, "" if row == BASE else _tokens(found)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _sampled(line: Line) -> str:
    return "avg@n" if "avg@n" in measures(line.results) else "greedy"


def _range(line: Line, measure: str) -> str:
    """``99.4 (98.9–99.8)``: mean and range over seeds."""
    figure = line.figure(measure)
    if figure is None:
        return "–"
    low, high = percent(min(figure.points)), percent(max(figure.points))
    return percent(figure.mean) + (f" ({low}–{high})" if low != high else "")


def _tokens(found: Sequence[Line]) -> str:
    """Mean over settings of the tokens that went forward once and forward and backward twice."""
    spent = [(line.cost("tokens", "scored"), line.cost("tokens", "trained")) for line in found]
    counted = [scored + 2 * trained for scored, trained in spent if scored is not None and trained is not None]
    return count_text(fmean(counted)) if counted else "–"


def write_readme(table: str, readme: Path = README) -> None:
    """Put the table between its marks."""
    text = readme.read_text(encoding="utf-8")
    new = re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)
    if new != text:
        readme.write_text(new, encoding="utf-8")
