"""The page of `covrl preflight`: the advice first, then what it is made of. No scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from covrl.reporting.charts import NOTHING, Frame, chart, element, grid, path
from covrl.reporting.format import ABSENT, duration, number
from covrl.reporting.pages import page
from covrl.reporting.scales import axis
from covrl.reporting.tables import TitledTable

Figure = Mapping[str, Any]


def headline(record: Mapping[str, Any]) -> str:
    """What is advised, in one line."""
    advice = record["advice"]
    if advice["method"] is None:
        return "Do not train yet: no method is advised on these problems with this model."
    template = advice["template"]
    shown = f", prompts.posterior_template = {template}" if template not in (None, "style") else ""
    return f"Train with {advice['method']} (algorithm.name = {advice['method']}{shown})."


def grids(record: Mapping[str, Any]) -> list[TitledTable]:
    """The checks, the templates, the methods, the forms of the reward, and the cost."""
    about = f"{record['problems']:,} problems, {record['n']} traces of each prompt for each, up to "
    about += f"{record['max_tokens']:,} tokens; in brackets 95 % intervals over problems"
    tables = [_checks(record, about), _templates(record), _traces(record), _methods(record), _forms(record)]
    return [table for table in tables if table.rows]


def _checks(record: Mapping[str, Any], about: str) -> TitledTable:
    rows = [
        [
            check["name"],
            _with(check["value"], check["interval"], check["unit"]),
            number(check["least"], check["unit"]),
            "yes" if check["met"] else "no",
            check["label"],
        ]
        for check in record["checks"]
    ]
    return TitledTable("Checks", about, ["", "found", "threshold", "met", "threshold's label"], rows)


def _templates(record: Mapping[str, Any]) -> TitledTable:
    rows = [
        [
            found["template"],
            _figure(found["utility"], "share"),
            _figure(found["margin"]),
            _pull(found, "wrong_hint"),
            _pull(found, "right_hint"),
            _with(found["posterior_gain"]["nats"], found["posterior_gain"]["interval"]),
        ]
        for found in record["templates"]
    ]
    about = (
        "how the answer is shown. Utility: right answers after its traces less those after prior ones, answered from "
        "the prior prompt; margin: what a wrong hint costs, nats; pulls: answers that are the hint, less those after "
        "prior traces; gain: log p(answer) over prior traces, nats"
    )
    heads = ["template", "utility", "margin", "wrong hint's pull", "right hint's pull", "gain"]
    return TitledTable("With the answer in sight", about, heads, rows)


def _traces(record: Mapping[str, Any]) -> TitledTable:
    names = {"posterior/ess": "", "hint/blind_share": "share", "style/length_ratio": "", "style/hedges_posterior": ""}
    rows = [
        [
            found["template"],
            number(found["closed"], "share"),
            number(found["kl"]),
            *(number(found["monitors"].get(name), unit) for name, unit in names.items()),
        ]
        for found in record["templates"]
    ]
    about = (
        "KL: log q − log p, nats a trace; ESS: effective number of a question's traces; blind: share of what the hint "
        "does that any hint would do; length: over that of prior traces; hedges: words of doubt in 100 tokens"
    )
    return TitledTable("Its traces", about, ["template", "closed", "KL", "ESS", "blind", "length", "hedges"], rows)


def _methods(record: Mapping[str, Any]) -> TitledTable:
    rows = [
        [
            found["method"],
            _figure(found["signal"]),
            _figure(found["mixed"], "share"),
            f"{found['sampled']:,.0f}",
            f"{found['read']:,.0f}",
            duration(found["seconds"]) if found["seconds"] >= 1 else f"{found['seconds']:.2g}s",
        ]
        for found in sorted(record["methods"], key=lambda m: -m["signal"]["value"])
    ]
    about = (
        "signal: how far the rewards of a group agree with the rightness of its traces, 0 to 0.5; mixed: groups with a "
        "right and a wrong trace; then of one problem in a step: tokens sampled, tokens read, and time here"
    )
    return TitledTable("First step of each method", about, ["", "signal", "mixed", "sampled", "read", "time"], rows)


def _forms(record: Mapping[str, Any]) -> TitledTable:
    rows = [
        [
            found["form"],
            _figure(found["auc_within"], "share") if found["auc_within"] else ABSENT,
            f"{found['questions']}",
        ]
        for found in record["forms"]
    ]
    about = "of a right and a wrong trace of one question, how often the right one earns more (a coin: 50 %)"
    return TitledTable("Forms of the reward", about, ["", "right earns more", "questions with both"], rows)


def _figure(found: Figure | None, unit: str = "") -> str:
    return ABSENT if found is None else _with(found["value"], found["interval"], unit)


def _pull(found: Figure, name: str) -> str:
    pulls = found["anchoring"]
    return ABSENT if pulls is None else _with(pulls[name], pulls["intervals"][name], "share")


def _with(value: float | None, ends: Sequence[float] | None, unit: str = "") -> str:
    shown = number(value, unit)
    if value is None or not ends:
        return shown
    low, high = (100 * e if unit == "share" else e for e in ends)
    return f"{shown} ({number(low)} to {number(high)})" if low < high else shown


def render_preflight(record: Mapping[str, Any]) -> str:
    """The page as text."""
    return page(
        "preflight.html",
        title="covrl preflight",
        subtitle=f"{record['model']} on {record['problem_source']}",
        headline=headline(record),
        why=record["advice"]["why"],
        notes=record["notes"],
        plot=plot(record["templates"]),
        tables=grids(record),
    )


def plot(templates: Sequence[Figure]) -> Markup:
    """Utility of each template with its interval, and the accuracy that thoughts with the answer in sight lead to."""
    drawn = [t for t in templates if t["utility"]["interval"]]
    if not drawn:
        return NOTHING
    ends = [end for t in drawn for end in (*t["utility"]["interval"], 0.0)]
    frame = Frame(-0.5, len(drawn) - 0.5, axis(ends))
    parts = []
    for place, found in enumerate(drawn):
        low, high = found["utility"]["interval"]
        if low < high:
            parts.append(path(frame, [(place, low), (place, high)], class_="line"))
        parts.append(element("circle", cx=frame.x(place), cy=frame.y(found["utility"]["value"]), r=4.0))
    names = [t["template"] for t in drawn]
    body = grid(frame, "share", lambda at: names[int(at)], list(range(len(drawn))))
    return chart(
        "Utility of the templates",
        "; ".join(f"{t['template']}: {100 * t['utility']['value']:.1f} points" for t in drawn),
        body + element("g", parts, class_="s-posterior"),
        unit="points",
        healthy="Above 0: answers are right more often after thoughts that were written with the answer in sight.",
    )
