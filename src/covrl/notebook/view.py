"""What a cell of a notebook shows of a run, as HTML that is whole without a script.

Every text of a model or a data set passes the templates of :mod:`covrl.reporting.pages`, which escape it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from markupsafe import Markup

from covrl.errors import UserError
from covrl.records import StepReport
from covrl.reporting.browser import group_rows
from covrl.reporting.catalogue import plan
from covrl.reporting.charts import figure
from covrl.reporting.format import number, typeset
from covrl.reporting.pages import fragment
from covrl.reporting.summary import RunSummary, remarks
from covrl.reporting.text import one_line

COLUMNS = (
    ("held-out accuracy", "", "eval/accuracy", "share"),
    ("right", "", "verdict/right_share", "share"),
    ("prior reward", "", "reward/prior", ""),
    ("posterior reward", "", "reward/posterior", ""),
    ("KL", "nats", "kl/nats_per_trace", ""),
    ("length", "tokens", "length/prior", ""),
    ("time", "s", "time/step", ""),
)
"""The table: name and unit at its head, metric, and how its numbers are written."""

HEADLINE = (
    "eval/accuracy", "eval/log_prob", "verdict/right_share", "reward/prior", "reward/posterior", "kl/nats_per_trace",
    "length/prior", "length/posterior",
)  # fmt: skip
"""The metrics whose charts are shown where none is named."""

MOST_ROWS = 8
MOST_CHARTS = 4
MOST_TRACES = 4
MOST_CHARACTERS = 600
MOST_NOTES = 5


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands over the figures of a run; ``share`` is the part that is done, None where nobody knows."""

    title: str
    about: str = ""
    state: str = ""
    share: float | None = None
    end: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Shown:
    """Something that a notebook shows as HTML, and a terminal as one line."""

    html: Markup
    line: str

    def __repr__(self) -> str:
        return one_line(self.line)

    def _repr_html_(self) -> str:
        return str(self.html)


def overview(heading: Heading, steps: Sequence[StepReport], notes: Sequence[str] = ()) -> Markup:
    """A run at a glance: how far it is, its table, its charts, remarks, and the last traces that it showed."""
    names = [name for name in HEADLINE if any(name in report.metrics for report in steps)]
    return _filled(
        heading,
        notes=[*(("", one_line(text)) for text in notes), *_warnings(steps)],
        columns=[(name, unit) for name, unit, metric, _ in COLUMNS if metric in names or metric == "time/step"],
        rows=[(report.step, list(_cells(report, names))) for report in _chosen(steps)],
        charts=_figures(steps, names, healthy=False)[:MOST_CHARTS],
        group=_last_group(steps),
    )


def charts(steps: Sequence[StepReport], wanted: Sequence[str]) -> Shown:
    """The charts of the metrics that are ``wanted`` (``*`` stands for anything), or of the most telling ones.

    Raises:
        UserError: no metric is called so.
    """
    there = list(dict.fromkeys(name for report in steps for name in report.metrics))
    names = [name for name in there if any(fnmatchcase(name, each) for each in wanted or HEADLINE)]
    for each in wanted:
        if not any(fnmatchcase(name, each) for name in there):
            near = difflib.get_close_matches(each, there, 3, 0.3)
            raise UserError(f"no metric {each!r}: " + (f"near are {', '.join(near)}" if near else "none is there yet"))
    drawn = _figures(steps, names, healthy=True)
    named = one_line(", ".join(names), 100) or "no metric yet"
    return Shown(_filled(None, charts=drawn), f"<charts of {named}>")


def _filled(heading: Heading | None, **parts: Any) -> Markup:
    empty: dict[str, Any] = {"notes": (), "columns": (), "rows": (), "charts": (), "group": None}
    return fragment("notebook.html", heading=heading, most=MOST_CHARACTERS, **empty | parts)


def _figures(steps: Sequence[StepReport], names: Sequence[str], healthy: bool) -> list[Markup]:
    specs = [spec if healthy else replace(spec, healthy="") for spec in plan(names)]
    return [drawn for spec in specs if (drawn := figure(spec, steps, scripted=False))]


def _chosen(steps: Sequence[StepReport]) -> list[StepReport]:
    """The steps of the table: evaluated ones, evenly spread, and the last."""
    evaluated = [report for report in steps if any(name.startswith("eval/") for name in report.metrics)]
    every = evaluated if len(evaluated) > 1 else list(steps)
    last = [] if not steps or every[-1] is steps[-1] else [steps[-1]]
    room = MOST_ROWS - len(last)
    if len(every) > room:
        every = [every[round(place * (len(every) - 1) / (room - 1))] for place in range(room)]
    return every + last


def _cells(report: StepReport, names: Sequence[str]) -> list[str]:
    shown = [(metric, unit) for _, _, metric, unit in COLUMNS if metric in names or metric == "time/step"]
    return [typeset(number(report.metrics.get(metric), unit)) for metric, unit in shown]


def _warnings(steps: Sequence[StepReport]) -> list[tuple[str, str]]:
    """The last different warnings, each with the step at which it came first."""
    found = remarks(RunSummary("", steps=steps))[-MOST_NOTES:]
    return [
        (f"step {each.first}" + (f", {each.times} times" if each.times > 1 else ""), one_line(each.text, 400))
        for each in found
    ]


def _last_group(steps: Sequence[StepReport]) -> dict[str, Any] | None:
    """A group of the last step that showed some: its best traces, best advantage first, equal ones once."""
    report = next((report for report in reversed(steps) if report.groups), None)
    if report is None:
        return None
    found = group_rows(report.step, report.groups[0])
    different: dict[tuple[str, str], Any] = {}
    for row in found["traces"]:
        different.setdefault((row["trace"].source, row["trace"].text), row)
    return found | {"traces": list(different.values())[:MOST_TRACES]}
