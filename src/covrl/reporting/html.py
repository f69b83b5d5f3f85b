"""One self-contained HTML page for a run: no request leaves it, and nothing a model wrote is code in it.

The style and the script are package files that are put into the page; a content security policy names their
hashes, so that the browser runs these two and nothing else. Text goes through
:func:`covrl.reporting.text.escape` on its way in.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from covrl.files import write_file
from covrl.records import StepReport
from covrl.reporting.against import against
from covrl.reporting.browser import examples, trace_browser
from covrl.reporting.catalogue import LEARNING, SECTIONS, plan, unit_of
from covrl.reporting.charts import figure
from covrl.reporting.format import number, typeset
from covrl.reporting.scales import MOST_POINTS, curve
from covrl.reporting.summary import Remark, ResultRow, RunSummary, remarks
from covrl.reporting.text import escape
from covrl.statistics import wilson


def write_report(path: str | Path, summary: RunSummary) -> None:
    """Write the page; whoever has the old one open sees the old or the new page, never half of one.

    Example:
        >>> write_report("runs/sort/report.html", RunSummary(title="sort", steps=read_steps("metrics.jsonl")))
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, render_report(summary))


def render_report(summary: RunSummary) -> str:
    """The page as text; it always encodes as UTF-8."""
    steps = sorted(summary.steps, key=lambda report: report.step)
    parts = {
        "result": _results(summary.results),
        "curves": _curves(summary, steps),
        "traces": trace_browser(steps),
        "examples": examples(summary.examples),
        "warnings": _remarks(remarks(summary)),
        "numbers": _numbers(steps),
        "config": _config(summary.config),
    }
    present = [name for name, part in parts.items() if part]
    body = "\n".join(part for part in parts.values() if part) or "<p class='lead'>This run has reported no step.</p>"
    style, script = _asset("report.css"), _asset("report.js")
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta name='color-scheme' content='light dark'>\n<meta name='referrer' content='no-referrer'>\n"
        f"<title>{escape(summary.title or 'covrl run')}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{_header(summary, present)}\n<main>\n{body}\n</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


@cache
def _asset(name: str) -> str:
    return files("covrl.reporting").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _header(summary: RunSummary, present: Sequence[str]) -> str:
    names = {
        "result": "Result", "curves": "Curves", "traces": "Traces", "examples": "Before and after",
        "warnings": "Warnings", "numbers": "Numbers", "config": "Settings",
    }  # fmt: skip
    links = "".join(f"<a href='#{name}'>{names[name]}</a>" for name in present)
    subtitle = f"<p class='subtitle'>{escape(summary.subtitle)}</p>" if summary.subtitle else ""
    headline = f"<p class='headline'>{escape(summary.headline)}</p>" if summary.headline else ""
    menu = f"<nav aria-label='Contents'>{links}</nav>" if len(present) > 1 else ""
    return f"<header><h1>{escape(summary.title or 'covrl run')}</h1>{subtitle}{headline}{menu}</header>"


def _results(rows: Sequence[ResultRow]) -> str:
    if not rows:
        return ""
    body = "".join(map(_result, rows))
    heads = ("Measure", "Base", "Trained", "Change", "")
    head = "".join(f"<th scope='col'>{name or '<span class=hush>Drawn</span>'}</th>" for name in heads)
    return (
        f"<section id='result'><h2>Result</h2><table class='results'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def _result(row: ResultRow) -> str:
    base, trained = typeset(number(row.base, row.unit)), typeset(number(row.trained, row.unit))
    chance = f"chance {number(row.chance, row.unit)}" if row.chance is not None else ""
    count = f"{row.count:,} problems" if row.count else ""
    notes = " · ".join(filter(None, (chance, count, row.note)))
    return (
        f"<tr><th scope='row'>{escape(row.label)}<small>{typeset(escape(notes))}</small></th>"
        f"<td class='base'>{base}</td><td class='trained'>{trained}</td>"
        f"<td class='change'>{_change(row)}</td><td class='drawn'>{_strip(row)}</td></tr>"
    )


def _change(row: ResultRow) -> str:
    if row.base is None or row.trained is None:
        return ""
    change = row.trained - row.base
    if row.unit == "share":
        return typeset(number(change * 100, sign=True)) + "<small>points</small>"
    return typeset(number(change, sign=True))


def _strip(row: ResultRow) -> str:
    """A share's base, trained value and 95 % interval on a line from 0 to 100 %, with chance marked."""
    base, trained = row.base, row.trained
    if row.unit != "share" or base is None or trained is None or not (0 <= base <= 1 and 0 <= trained <= 1):
        return ""
    place = lambda share: 6 + 228 * share  # noqa: E731
    spread = [wilson(value, row.count or 0) for value in (base, trained)] if (row.count or 0) > 0 else []
    whiskers = "".join(f"<path class='whisker' d='M{place(a):.1f} 14H{place(b):.1f}'/>" for a, b in spread)
    chance = f"<path class='chance' d='M{place(row.chance):.1f} 3V25'/>" if row.chance is not None else ""
    return (
        "<svg class='strip' viewBox='0 0 240 28' aria-hidden='true'><path class='rail' d='M6 14H234'/>"
        f"{whiskers}{chance}<path class='move' d='M{place(base):.1f} 14H{place(trained):.1f}'/>"
        f"<circle class='from' cx='{place(base):.1f}' cy='14' r='4'/>"
        f"<circle class='to' cx='{place(trained):.1f}' cy='14' r='5.5'/></svg>"
    )


def _curves(summary: RunSummary, steps: Sequence[StepReport]) -> str:
    both = against(steps)
    drawn: dict[str, list[str]] = {LEARNING: [both]} if both else {}
    for spec in plan(name for report in steps for name in report.metrics):
        if chart := figure(spec, steps, summary.chance_line()):
            drawn.setdefault(spec.section, []).append(chart)
    sections = "".join(
        f"<section class='family'><h2>{escape(name)}</h2><p class='lead'>{escape(about)}</p>"
        f"<div class='charts'>{''.join(drawn[name])}</div></section>"
        for name, about in SECTIONS.items()
        if name in drawn
    )
    return f"<div id='curves'>{_key(len(steps))}{sections}</div>" if sections else ""


def _key(count: int) -> str:
    """How to read the curves, said once for all of them."""
    thin = "Thin lines are single steps, bold lines their trend."
    if count > MOST_POINTS:
        size = -(-count // MOST_POINTS)
        thin = f"Each point is the mean of up to {size} steps, the band their range, the bold line the trend."
    hover = "Point at a chart, or focus it and press the arrow keys, to read every chart at one step."
    return f"<p class='key'>{thin} <span class='scripted' hidden>{hover}</span></p>"


def _remarks(found: Sequence[Remark]) -> str:
    if not found:
        return ""
    rows = "".join(f"<li><span class='when'>{_when(each)}</span> {escape(each.text)}</li>" for each in found)
    return f"<section id='warnings'><h2>Notes and warnings</h2><ul class='remarks'>{rows}</ul></section>"


def _when(remark: Remark) -> str:
    if remark.first is None:
        return "run"
    if remark.times == 1:
        return f"step {remark.first}"
    return f"step {remark.first} to {remark.last}, {remark.times} times"


def _numbers(steps: Sequence[StepReport]) -> str:
    """Every metric as a row of figures: the curves for those who cannot or would rather not look at them."""
    names = sorted({name for report in steps for name in report.metrics})
    if not names:
        return ""
    heads = ("Metric", "First", "Last", "Least", "Greatest", "Steps", "Not finite")
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    body = "".join(_numbers_row(steps, name) for name in names)
    return (
        "<section id='numbers'><h2>Numbers</h2><details><summary>All metrics as a table</summary>"
        f"<div class='scroll'><table class='numbers'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        "</details></section>"
    )


def _numbers_row(steps: Sequence[StepReport], name: str) -> str:
    line = curve(steps, name, limit=max(len(steps), 1))
    values, unit = line.values(), unit_of(name)
    shown = (values[0], values[-1], min(values), max(values)) if values else (None,) * 4
    cells = [typeset(number(value, unit)) for value in shown]
    cells += [f"{len(values) + len(line.broken)}", f"{len(line.broken) or ''}"]
    return f"<tr><th scope='row'>{escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _config(config: Mapping[str, object]) -> str:
    if not config:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td><code>{escape(value)}</code></td></tr>"
        for key, value in _flat(config)
    )
    return (
        "<section id='config'><h2>Settings</h2><details><summary>Every setting of this run</summary>"
        f"<div class='scroll'><table class='config'><tbody>{rows}</tbody></table></div></details></section>"
    )


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat({str(inner): each for inner, each in value.items()}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
