"""The report's trace browser and its before-and-after examples, as HTML text.

Every trace is in the page as ordinary escaped text, so that the browser works without JavaScript (all groups
one after another) and no model text ever passes through a script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from covrl.records import StepReport, TokenView, TraceGroup, TraceView, Verdict
from covrl.reporting.format import ABSENT, number, typeset
from covrl.reporting.summary import Attempt, Example
from covrl.reporting.text import clip, escape, one_line

MOST_GROUPS = 160  # groups of traces in one page; with the limit below, a page stays under some ten megabytes
MOST_CHARS = 8_000  # characters of one trace
MOST_TOKENS = 1_000  # tokens of one trace
GAPS = (0.1, 1.0, 3.0)  # nats between the two prompts from which a token is tinted, more and most
FINISH = {"closed": "closed", "length": "cut off", "eos": "no closing tag"}
VERDICT = {"right": "✓ right", "wrong": "✗ wrong", "unknown": "? unknown"}


def trace_browser(steps: Sequence[StepReport]) -> str:
    """All trace groups with the selectors that ``report.js`` brings to life; empty where there are none."""
    shown = [report for report in steps if report.groups]
    chosen = _spread(shown)
    if not chosen:
        return ""
    groups = "".join(_group(report.step, group) for report in chosen for group in report.groups)
    left = len(shown) - len(chosen)
    rest = f" {left} more steps with traces are in traces.jsonl." if left else ""
    return (
        "<section id='traces'><h2>Trace browser</h2>"
        "<p class='lead'>All traces of a group, best advantage first. The advantage says how much better a trace did "
        "than the others of its group; the bars share one scale within a group. A tinted token is likelier under the "
        "<span class='p2'>prior</span> or the <span class='q2'>posterior</span> prompt; point at it to see by how "
        f"much.{rest}</p>"
        f"{_selectors()}{groups}</section>"
    )


def examples(pairs: Sequence[Example]) -> str:
    """Questions answered by the model before and after training; empty where there are none."""
    if not pairs:
        return ""
    blocks = "".join(
        f"<article class='example'><h3>{escape(one_line(pair.question, 300))}</h3>"
        f"<p class='answer'>Answer <code>{escape(one_line(pair.answer, 300))}</code></p>"
        f"<div class='pair'>{attempt('Before', pair.before)}{attempt('After', pair.after)}</div></article>"
        for pair in pairs
    )
    return f"<section id='examples'><h2>Before and after</h2>{blocks}</section>"


def _spread(reports: Sequence[StepReport]) -> list[StepReport]:
    """As many reports as the page holds, the first and last among them and the others evenly between."""
    most = max(len(report.groups) for report in reports) if reports else 1
    room = max(MOST_GROUPS // most, 2)
    if len(reports) <= room:
        return list(reports)
    return [reports[round(place * (len(reports) - 1) / (room - 1))] for place in range(room)]


def _selectors() -> str:
    return (
        "<form class='pick' aria-label='Choose the traces to show' hidden>"
        "<label>Step <select name='step'></select></label>"
        "<span class='turn'><button type='button' value='-1' aria-label='Earlier step'>‹</button>"
        "<button type='button' value='1' aria-label='Later step'>›</button></span>"
        "<label class='wide'>Problem <select name='problem'></select></label>"
        "<label>Source <select name='source'><option value=''>all</option></select></label></form>"
    )


def _group(step: int, group: TraceGroup) -> str:
    problem = group.problem
    known = [abs(t.advantage) for t in group.traces if t.advantage is not None and math.isfinite(t.advantage)]
    scale = max(known, default=0.0)
    rows = "".join(_row(trace, scale) for trace in sorted(group.traces, key=_worth))
    hint = f" · shown to the posterior: <code>{escape(problem.hint)}</code>" if problem.hint is not None else ""
    heads = ("Source", "Reward", "Advantage", "KL", "End", "Verdict", "Trace")
    head = "".join(f"<th scope='col' role='columnheader'>{name}</th>" for name in heads)
    name = escape(f"{one_line(problem.question, 70)} ({one_line(problem.id, 40)})")
    return (
        f"<section class='group' data-step='{step}' data-problem='{escape(problem.id)}' data-name='{name}'>"
        f"<h3><span class='at'>Step {step}</span> <span class='question'>{escape(problem.question)}</span></h3>"
        f"<p class='answer'>Answer <code>{escape(problem.answer)}</code>{hint}</p>"
        f"<table class='traces' role='table'><thead role='rowgroup'><tr role='row'>{head}</tr></thead>"
        f"<tbody role='rowgroup'>{rows}</tbody></table></section>"
    )


def _worth(trace: TraceView) -> float:
    """Sorts by falling advantage; traces without one come last."""
    return -trace.advantage if trace.advantage is not None and math.isfinite(trace.advantage) else math.inf


def _row(trace: TraceView, scale: float) -> str:
    cells = (
        ("source", f"<span class='source {source_class(trace.source)}'>{escape(trace.source)}</span>"),
        ("number", f"<i>reward</i> {_number(trace.reward)}"),
        (
            "number advantage",
            f"<i>advantage</i> <span>{_number(trace.advantage, sign=True)}</span> {_bar(trace.advantage, scale)}",
        ),
        ("number", f"<i>KL</i> {_number(trace.kl)}"),
        ("finish" if trace.finish == "closed" else "finish bad", FINISH.get(trace.finish, escape(str(trace.finish)))),
        ("verdict", verdict(trace.correct)),
        ("text", _tokens(trace.tokens) if trace.tokens else _text(trace.text)),
    )
    body = "".join(f"<td role='cell' class='{name}'>{content}</td>" for name, content in cells)
    return f"<tr role='row' data-source='{escape(trace.source)}'>{body}</tr>"


def source_class(source: str) -> str:
    """The colour class of a source of traces."""
    return f"s-{source}" if source in ("prior", "posterior") else "s-0"


def verdict(value: Verdict | None) -> str:
    """A verdict as a coloured word, never as a colour alone."""
    if value is None:
        return f"<span class='unknown'>{ABSENT}</span>"
    word = VERDICT.get(value, escape(str(value)))
    return f"<span class='{value if value in VERDICT else 'unknown'}'>{word}</span>"


def _number(value: float | None, *, sign: bool = False) -> str:
    return typeset(number(value, sign=sign))


def _bar(advantage: float | None, scale: float) -> str:
    """A bar that grows right for a positive advantage and left for a negative one, to the group's scale."""
    if advantage is None or not math.isfinite(advantage) or scale <= 0:
        return ""
    size = 30 * abs(advantage) / scale
    x, side = (32, "up") if advantage >= 0 else (32 - size, "down")
    return (
        "<svg class='bar' viewBox='0 0 64 10' aria-hidden='true'>"
        f"<rect class='{side}' x='{x:.1f}' y='1' width='{size:.1f}' height='8'/><path d='M32 0V10'/></svg>"
    )


def _text(text: str) -> str:
    shown, left = clip(text, MOST_CHARS)
    more = f"<p class='remark'>{left:,} more characters</p>" if left else ""
    if not text:
        return "<em>empty</em>"
    return f"<pre tabindex='0'>{escape(shown)}</pre>{more}" if len(shown) > 600 else f"<pre>{escape(shown)}</pre>{more}"


def _tokens(tokens: Sequence[TokenView]) -> str:
    """The trace token by token, tinted by which prompt finds a token likelier, with both log-probs to point at."""
    shown = "".join(_token(token) for token in tokens[:MOST_TOKENS])
    left = len(tokens) - MOST_TOKENS
    return f"<pre>{shown}</pre>" + (f"<p class='remark'>{left:,} more tokens</p>" if left > 0 else "")


def _token(token: TokenView) -> str:
    if token.prior is None or token.posterior is None:
        return escape(token.text)
    gap = token.posterior - token.prior
    strength = sum(abs(gap) > edge for edge in GAPS)
    tint = f" class='{'q' if gap > 0 else 'p'}{strength}'" if strength else ""
    told = f"prior {token.prior:.2f}, posterior {token.posterior:.2f} nats"
    return f"<span{tint} title='{told}'>{escape(token.text)}</span>"


def attempt(when: str, found: Attempt) -> str:
    """What a model wrote and how it was judged, headed by ``when`` (HTML)."""
    return f"<div class='attempt'><h4>{when} {verdict(found.verdict)}</h4>{_text(found.text)}</div>"
