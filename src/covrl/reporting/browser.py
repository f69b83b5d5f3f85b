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
    rows = [_row(trace, share, place_of(trace, group)) for trace, share in by_advantage(group)]
    return {"step": step, "problem": group.problem, "traces": rows}


def by_advantage(group: TraceGroup) -> list[tuple[TraceView, float | None]]:
    """A group's traces by falling advantage, each with its share (-1 to 1) of the greatest; without one last."""
    scale = max((abs(value) for trace in group.traces if (value := _advantage(trace)) is not None), default=0.0)
    return [(trace, _share(trace, scale)) for trace in sorted(group.traces, key=_worth)]


def _share(trace: TraceView, scale: float) -> float | None:
    advantage = _advantage(trace)
    return None if advantage is None or scale <= 0 else advantage / scale


def _row(trace: TraceView, share: float | None, place: str) -> dict[str, Any]:
    more = len(trace.tokens) - MOST_TOKENS
    return {"trace": trace, "bar": _bar(share), "tokens": shown_tokens(trace), "more": more, "place": place}


def shown_tokens(trace: TraceView) -> list[tuple[str, str, str]]:
    """The first tokens of a trace: text, a colour class by the prompt under which it is likelier, and both log-probs as
    text if they are known."""
    return list(map(_token, trace.tokens[:MOST_TOKENS]))


def place_of(trace: TraceView, group: TraceGroup) -> str:
    """Which rollout of its group a trace is, and from which it branched; empty where none has."""
    if all(each.parent is None for each in group.traces):
        return ""
    own = "" if trace.index is None else f"rollout {trace.index}"
    parent = "" if trace.parent is None else f"branched from rollout {trace.parent}"
    return ", ".join(filter(None, (own, parent)))


def _advantage(trace: TraceView) -> float | None:
    return trace.advantage if trace.advantage is not None and math.isfinite(trace.advantage) else None


def _worth(trace: TraceView) -> float:
    advantage = _advantage(trace)
    return math.inf if advantage is None else -advantage


def _bar(share: float | None) -> str:
    """A bar that grows right for a positive advantage and left for a negative one, to the group's scale."""
    if share is None:
        return ""
    size = 30 * abs(share)
    x, side = (32.0, "up") if share >= 0 else (32 - size, "down")
    drawn = [element("rect", class_=side, x=x, y=1, width=size, height=8), element("path", d="M32 0V10")]
    return element("svg", drawn, class_="bar", viewBox="0 0 64 10", aria_hidden="true")


def _token(token: TokenView) -> tuple[str, str, str]:
    if token.prior is None or token.posterior is None:
        return token.text, "", ""
    gap = token.posterior - token.prior
    strength = sum(abs(gap) > edge for edge in GAPS)
    told = f"prior {token.prior:.2f}, posterior {token.posterior:.2f} nats"
    return token.text, f"{'q' if gap > 0 else 'p'}{strength}" if strength else "", told
