"""One self-contained HTML page for a run: no request leaves it, and nothing a model wrote is code in it.

This module chooses the content; ``templates/report.html`` is the layout, and :mod:`covrl.reporting.pages` escapes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from covrl.files import write_file
from covrl.records import StepReport
from covrl.reporting.against import against
from covrl.reporting.browser import chosen, group_rows
from covrl.reporting.catalogue import LEARNING, SECTIONS, ChartSpec, plan, unit_of
from covrl.reporting.charts import element, figure
from covrl.reporting.format import number
from covrl.reporting.pages import page
from covrl.reporting.scales import MOST_POINTS, curve
from covrl.reporting.summary import Remark, ResultRow, RunSummary, remarks
from covrl.statistics import wilson

MENU = {
    "result": "Result", "curves": "Curves", "traces": "Traces", "examples": "Before and after",
    "warnings": "Warnings", "numbers": "Numbers", "config": "Settings",
}  # fmt: skip


def write_report(path: str | Path, summary: RunSummary) -> None:
    """Write the page atomically: a reader sees the old or the new page, never half of one.

    Example:
        >>> write_report("runs/sort/report.html", RunSummary(title="sort", steps=read_steps("metrics.jsonl")))
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, render_report(summary))


def render_report(summary: RunSummary) -> str:
    """The page as text; it always encodes as UTF-8."""
    steps = sorted(summary.steps, key=lambda report: report.step)
    reports, left = chosen(steps)
    parts = {**run_parts(summary), "examples": summary.examples}
    parts["traces"] = [group_rows(report.step, group) for report in reports for group in report.groups]
    return page(
        "report.html",
        summary.title or "covrl run",
        summary.subtitle,
        summary.headline,
        menu=menu_of(parts),
        scripts=("charts.js", "report.js"),
        per_point=per_point(steps),
        left=left,
        parts=parts,
    )


def run_parts(summary: RunSummary) -> dict[str, Sequence[Any]]:
    """What the page shows of a run besides traces, by the id of its part."""
    steps = sorted(summary.steps, key=lambda report: report.step)
    drawn = figures(steps, lambda spec: figure(spec, steps, summary.chance_line()))
    both = against(steps)
    return {
        "result": results(summary.results),
        "curves": sections({LEARNING: [both]} if both else {}, drawn),
        "warnings": warnings(summary),
        "numbers": numbers(steps),
        "config": list(flat(summary.config)),
    }


def menu_of(parts: Mapping[str, Sequence[Any]]) -> list[tuple[str, str]]:
    """The parts that are not empty, with their headings, in the page's order."""
    return [(name, heading) for name, heading in MENU.items() if parts.get(name)]


def per_point(steps: Sequence[StepReport]) -> int:
    """How many steps are one point of a curve."""
    return -(-len(steps) // MOST_POINTS)


def results(rows: Iterable[ResultRow]) -> list[tuple[Any, ...]]:
    """Each measure with its notes, its change and its drawing."""
    return [(row, _notes(row), _change(row), _strip(row)) for row in rows]


def warnings(summary: RunSummary) -> list[tuple[str, str]]:
    """Notes and warnings, each with its steps."""
    return [(_when(remark), remark.text) for remark in remarks(summary)]


def numbers(steps: Sequence[StepReport]) -> list[tuple[Any, ...]]:
    """All metrics as rows of figures."""
    return [_figures(steps, name) for name in sorted({name for report in steps for name in report.metrics})]


def _notes(row: ResultRow) -> str:
    chance = f"chance {number(row.chance, row.unit)}" if row.chance is not None else ""
    count = f"{row.count:,} problems" if row.count else ""
    return " · ".join(filter(None, (chance, count, row.note)))


def _change(row: ResultRow) -> float | None:
    """Trained less base; of shares in points."""
    if row.base is None or row.trained is None:
        return None
    return (row.trained - row.base) * (100 if row.unit == "share" else 1)


def _strip(row: ResultRow) -> str:
    """A share's base, trained value and 95 % interval on a line from 0 to 100 %, with chance marked."""
    base, trained = row.base, row.trained
    if row.unit != "share" or base is None or trained is None or not (0 <= base <= 1 and 0 <= trained <= 1):
        return ""
    place = lambda share: 6 + 228 * share  # noqa: E731
    spread = [wilson(value, row.count or 0) for value in (base, trained)] if (row.count or 0) > 0 else []
    parts = [element("path", class_="rail", d="M6 14H234")]
    parts += [element("path", class_="whisker", d=f"M{place(a):.1f} 14H{place(b):.1f}") for a, b in spread]
    if row.chance is not None:
        parts.append(element("path", class_="chance", d=f"M{place(row.chance):.1f} 3V25"))
    parts.append(element("path", class_="move", d=f"M{place(base):.1f} 14H{place(trained):.1f}"))
    parts.append(element("circle", class_="from", cx=place(base), cy=14, r=4))
    parts.append(element("circle", class_="to", cx=place(trained), cy=14, r=5.5))
    return element("svg", parts, class_="strip", viewBox="0 0 240 28", aria_hidden="true")


def figures(steps: Sequence[StepReport], draw: Callable[[ChartSpec], Markup]) -> Iterator[tuple[str, Markup]]:
    """The charts of what the steps report, each with its section; those that would be empty are left out."""
    for spec in plan(name for report in steps for name in report.metrics):
        if chart := draw(spec):
            yield spec.section, chart


def sections(
    first: Mapping[str, list[Markup]], charts: Iterable[tuple[str, Markup]]
) -> list[tuple[str, str, list[Markup]]]:
    """Charts by section, each section with its sentence; ``first`` are charts that stand at a section's beginning."""
    drawn = {name: list(some) for name, some in first.items()}
    for name, chart in charts:
        drawn.setdefault(name, []).append(chart)
    return [(name, about, drawn[name]) for name, about in SECTIONS.items() if name in drawn]


def _when(remark: Remark) -> str:
    if remark.first is None:
        return "run"
    if remark.times == 1:
        return f"step {remark.first}"
    return f"step {remark.first} to {remark.last}, {remark.times} times"


def _figures(steps: Sequence[StepReport], name: str) -> tuple[Any, ...]:
    """A metric as a row of figures: the curves for readers who cannot use the drawings."""
    line = curve(steps, name, limit=max(len(steps), 1))
    values = line.values()
    shown = (values[0], values[-1], min(values), max(values)) if values else (None,) * 4
    return name, shown, unit_of(name), len(values) + len(line.broken), len(line.broken)


def flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings as names with dots and texts."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat({str(inner): each for inner, each in value.items()}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
