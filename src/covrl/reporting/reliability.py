"""The page of `covrl calibrate`: its sentence, the reliability plot and its tables. No scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from covrl.reporting.charts import Frame, chart, element, grid, path
from covrl.reporting.format import number
from covrl.reporting.pages import page
from covrl.reporting.scales import Axis
from covrl.reporting.tables import TitledTable

HEIGHT = 400
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def grids(record: Mapping[str, Any]) -> list[TitledTable]:
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
        TitledTable(
            "Figures",
            f"of traces under the prior prompt, each marked by {how}; reward: {record['reward']}",
            ["", ""],
            rows,
        ),
        TitledTable(
            "Reliability",
            "p(y|x,z) of the reference answer against the share of right traces",
            ["p from", "mean p", "right", "95 %", "traces"],
            bins,
        ),
        TitledTable(
            "Tenths by log p", "parts of equal size, in nats", ["log p from", "right", "95 %", "traces"], tenths
        ),
        TitledTable(
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
    return page(
        "calibration.html",
        title="covrl calibrate",
        subtitle=f"{record['model']} on {record['problem_source']}",
        headline=record["sentence"],
        gain=record["posterior_gain"]["sentence"],
        plot=plot(record["reliability"]),
        tables=grids(record),
    )


def plot(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Share of right traces over probability; one point per bin with its interval; its area shows the number of
    traces."""
    most = max((b["count"] for b in bins), default=1)
    frame = Frame(0.0, 1.0, Axis(0.0, 1.0, TICKS), height=HEIGHT)
    parts = []
    for b in bins:
        x, (low, high) = b["p"], b["interval"]
        parts.append(path(frame, [(x, low), (x, high)], class_="line"))
        parts.append(element("circle", cx=frame.x(x), cy=frame.y(b["right"]), r=3 + 7 * (b["count"] / most) ** 0.5))
    body = grid(frame, "share", lambda p: f"{100 * p:g}", TICKS) + path(frame, [(0, 0), (1, 1)], class_="rail")
    return chart(
        "Right traces over p(y|x,z)",
        "; ".join(f"p {b['p']:.2f}: {b['right']:.2f} right of {b['count']}" for b in bins),
        body + element("g", parts, class_="s-1"),
        unit="%",
        healthy="Rising: the likelihood tells right from wrong. Flat: it pays both alike.",
        height=HEIGHT,
        kind=" reliability",
    )
