"""The page of `covrl calibrate`: its sentence, the reliability plot, and the tables behind it. No scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from covrl.reporting.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH
from covrl.reporting.exams import page, section
from covrl.reporting.format import number
from covrl.reporting.text import escape

HEIGHT = 400

STYLE = (
    "<style>.reliability { max-width: 36rem; margin-top: 1.8rem; } "
    ".rail { stroke: var(--soft); stroke-dasharray: 5 4; }</style>"
)


class Grid(NamedTuple):
    """A titled table."""

    title: str
    about: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def grids(record: Mapping[str, Any]) -> list[Grid]:
    """The figures, the reliability table and the tenths."""
    shares = ("closed", "unknown", "right", "mean_p", "auc", "auc_within", "auc_within_log_prob")
    rows = [[name.replace("_", " "), number(record[name], "share")] for name in shares]
    rows += [[n.replace("_", " "), f"{record[n]:,}"] for n in ("traces", "questions", "questions_with_both")]
    names = ("right", "unknown", "auc_within", "ece", "brier")
    units = {"brier": ""}
    sampled = [[n.replace("_", " "), number(record["sampled"][n], units.get(n, "share"))] for n in names]
    how = "the task's check of the derivation" if record["marked_by"] == "sound" else "its own stated conclusion"
    bins = [[f"{b['from']:.1f} to {b['to']:.1f}", number(b["p"], "share"), *_share(b)] for b in record["reliability"]]
    tenths = [[f"{b['from']:.2f} to {b['to']:.2f}", *_share(b)] for b in record["by_log_prob"]]
    return [
        Grid(
            "Figures",
            f"of traces under the prior prompt, each marked by {how}; reward: {record['reward']}",
            ["", ""],
            rows,
        ),
        Grid(
            "Reliability",
            "p(y|x,z) of the reference answer against the share of right traces",
            ["p from", "mean p", "right", "95 %", "traces"],
            bins,
        ),
        Grid("Tenths by log p", "parts of equal size, in nats", ["log p from", "right", "95 %", "traces"], tenths),
        Grid(
            "Against the model's own sampled answers",
            "circular: the answer is drawn from the p(.|x,z) that is scored; says whether the reference's wording is "
            "the model's, and nothing of traces",
            ["", ""],
            sampled,
        ),
    ]


def _share(found: Mapping[str, Any]) -> list[str]:
    low, high = found["interval"]
    return [number(found["right"], "share"), f"{100 * low:.0f} to {100 * high:.0f}", f"{found['count']:,}"]


def render_reliability(record: Mapping[str, Any]) -> str:
    """The page as text."""
    title = f"{record['model']} on {record['problem_source']}"
    body = (
        f"{STYLE}<p class='headline'>{escape(record['sentence'])}</p>"
        f"<p>{escape(record['posterior_gain']['sentence'])}</p>{plot(record['reliability'])}"
        f"{''.join(map(section, grids(record)))}"
    )
    return page("covrl calibrate", title, body)


def plot(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share of right traces over probability; a point a bin, its area by the number of traces, with its interval."""
    most = max((b["count"] for b in bins), default=1)
    parts = ["<g class='grid'>"]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{_y(tick):.1f}' y2='{_y(tick):.1f}'/>")
        parts.append(f"<text x='{LEFT - 16}' y='{_y(tick) + 4:.1f}' text-anchor='end'>{100 * tick:g}</text>")
        parts.append(f"<text x='{_x(tick):.1f}' y='{HEIGHT - BOTTOM + 22}' text-anchor='middle'>{100 * tick:g}</text>")
    parts.append(f"</g><path class='rail' d='M{_x(0):.1f} {_y(0):.1f}L{_x(1):.1f} {_y(1):.1f}'/><g class='s-1'>")
    for b in bins:
        x, (low, high) = _x(b["p"]), b["interval"]
        parts.append(f"<path class='line' d='M{x:.1f} {_y(low):.1f}V{_y(high):.1f}'/>")
        parts.append(f"<circle cx='{x:.1f}' cy='{_y(b['right']):.1f}' r='{3 + 7 * (b['count'] / most) ** 0.5:.1f}'/>")
    told = "; ".join(f"p {b['p']:.2f}: {b['right']:.2f} right of {b['count']}" for b in bins)
    return (
        "<figure class='chart reliability'><figcaption>"
        "<h3>Right traces <span class='unit'>%</span> over p(y|x,z) <span class='unit'>%</span></h3>"
        "<p class='healthy'>Rising: the likelihood tells right from wrong. Flat: it pays both alike.</p>"
        f"</figcaption><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(told)}'>"
        f"{''.join(parts)}</g></svg></figure>"
    )


def _x(p: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * p


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
