"""The content of the report's trace browser; its layout is ``templates/report.html``.

Every trace is in the page as ordinary escaped text, so that the browser works without JavaScript (all groups
one after another) and no model text ever passes through a script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from covrl.records import StepReport, TokenView, TraceGroup, TraceView
from covrl.reporting.charts import element

MOST_GROUPS = 160  # groups of traces in one page; with the limit on a trace, a page stays under some ten megabytes
MOST_TOKENS = 1_000  # tokens of one trace
GAPS = (0.1, 1.0, 3.0)  # nats between the two prompts from which a token is tinted, more and most


def chosen(steps: Sequence[StepReport]) -> tuple[list[StepReport], int]:
    """The reports with traces that the page has room for, evenly spread, both ends included; and how many are
    omitted."""
    reports = [report for report in steps if report.groups]
    room = max(MOST_GROUPS // max((len(report.groups) for report in reports), default=1), 2)
    if len(reports) <= room:
        return reports, 0
    return [reports[round(place * (len(reports) - 1) / (room - 1))] for place in range(room)], len(reports) - room


def group_rows(step: int, group: TraceGroup) -> dict[str, Any]:
    """A group's traces by falling advantage, those without one last; each with its place where some have branched."""
    scale = max((abs(value) for trace in group.traces if (value := _advantage(trace)) is not None), default=0.0)
    branched = any(trace.parent is not None for trace in group.traces)
    rows = [_row(trace, scale, branched) for trace in sorted(group.traces, key=_worth)]
    return {"step": step, "problem": group.problem, "traces": rows}


def _row(trace: TraceView, scale: float, branched: bool) -> dict[str, Any]:
    tokens, place = list(map(_token, trace.tokens[:MOST_TOKENS])), _place(trace) if branched else ""
    more = len(trace.tokens) - MOST_TOKENS
    return {"trace": trace, "bar": _bar(trace, scale), "tokens": tokens, "more": more, "place": place}


def _place(trace: TraceView) -> str:
    """Which rollout of its group a trace is, and from which it branched."""
    own = "" if trace.index is None else f"rollout {trace.index}"
    parent = "" if trace.parent is None else f"branched from rollout {trace.parent}"
    return ", ".join(filter(None, (own, parent)))


def _advantage(trace: TraceView) -> float | None:
    return trace.advantage if trace.advantage is not None and math.isfinite(trace.advantage) else None


def _worth(trace: TraceView) -> float:
    advantage = _advantage(trace)
    return math.inf if advantage is None else -advantage


def _bar(trace: TraceView, scale: float) -> str:
    """A bar that grows right for a positive advantage and left for a negative one, to the group's scale."""
    advantage = _advantage(trace)
    if advantage is None or scale <= 0:
        return ""
    size = 30 * abs(advantage) / scale
    x, side = (32.0, "up") if advantage >= 0 else (32 - size, "down")
    drawn = [element("rect", class_=side, x=x, y=1, width=size, height=8), element("path", d="M32 0V10")]
    return element("svg", drawn, class_="bar", viewBox="0 0 64 10", aria_hidden="true")


def _token(token: TokenView) -> tuple[str, str, str]:
    """Its text, a colour class by the prompt under which it is likelier, and both log-probs as text if they are
    known."""
    if token.prior is None or token.posterior is None:
        return token.text, "", ""
    gap = token.posterior - token.prior
    strength = sum(abs(gap) > edge for edge in GAPS)
    told = f"prior {token.prior:.2f}, posterior {token.posterior:.2f} nats"
    return token.text, f"{'q' if gap > 0 else 'p'}{strength}" if strength else "", told
