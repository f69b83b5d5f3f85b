"""The page of `covrl eval`: tables, and right and wrong traces of the same problem side by side. No scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from typing import NamedTuple, Protocol

from covrl.evaluation.exam import Sample, Solved
from covrl.reporting.browser import attempt
from covrl.reporting.charts import COLOURS, HEIGHT, WIDTH, Frame, Line, draw_curve, grid, legend
from covrl.reporting.scales import Curve, Point, axis
from covrl.reporting.summary import Attempt
from covrl.reporting.text import escape, one_line

PAIRS = 6
"""Pairs of traces that are shown of each kind and exam."""

STYLE = """
.exam { font: 0.84rem var(--sans); font-variant-numeric: tabular-nums; }
.exam th, .exam td { text-align: right; font-weight: 400; padding: 0.2rem 0 0.2rem 1.4rem;
  border-bottom: 1px solid var(--hair); white-space: nowrap; }
.exam th:first-child { text-align: left; padding-left: 0; white-space: normal; }
.exam thead th { color: var(--soft); }
.example h3 { font-size: 1rem; font-weight: 400; white-space: pre-wrap; }
"""


class TableLike(Protocol):
    """A titled table; the first column holds names."""

    @property
    def title(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def head(self) -> Sequence[str]: ...
    @property
    def rows(self) -> Sequence[Sequence[str]]: ...


class Pair(NamedTuple):
    """Two traces for one problem, and whose they are."""

    solved: Solved
    left: str
    right: str
    good: Sample
    bad: Sample


CROSSING = (
    "At least one of k samples is right (unbiased). Where the curve of a trained model ends below its base's, training "
    "made answers more certain and lost problems that could be solved."
)
DOTS = 32
"""Points that are drawn as dots."""

Records = Mapping[tuple[str, str], Sequence[Solved]]


Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""exam -> model -> pass@1, pass@2, … pass@n."""


def render_exams(tables: Sequence[TableLike], notes: Sequence[str], solved: Records, curves: Curves) -> str:
    """The page as text; everything that a model or a data set wrote is escaped on its way in."""
    body = "".join(map(section, tables))
    drawn = "".join(pass_chart(exam, found) for exam, found in curves.items())
    if drawn:
        body += f"<section><h2>pass@k for every k</h2><p class='lead'>{CROSSING}</p>"
        body += f"<div class='charts'>{drawn}</div></section>"
    if notes:
        said = "".join(f"<li><span></span>{escape(note)}</li>" for note in notes)
        body += f"<section><h2>Notes</h2><ul class='remarks'>{said}</ul></section>"
    for exam in dict.fromkeys(exam for exam, _ in solved):
        models = {model: rows for (name, model), rows in solved.items() if name == exam}
        body += _traces(exam, models)
    return page("covrl eval", "Greedy and sampled traces under the prior prompt.", body)


def pass_chart(exam: str, found: Mapping[str, Sequence[float]]) -> str:
    """pass@k over k, a line a model; empty where a single sample or none was drawn."""
    count = max((len(values) for values in found.values()), default=0)
    if count < 2:
        return ""
    lines = [
        Line(
            name,
            f"s-{i % COLOURS}",
            Curve([Point(k, v, v, v) for k, v in enumerate(values, 1)], [], sparse=count <= DOTS),
        )
        for i, (name, values) in enumerate(found.items())
    ]
    frame = Frame(1, count, axis([v for line in lines for v in line.curve.values()], zero=True, most=1.0))
    said = "; ".join(
        f"{line.name} {line.curve.points[0].value:.1%} to {line.curve.points[-1].value:.1%}" for line in lines
    )
    return (
        f"<figure class='chart'><figcaption><h3>{escape(exam)} <span class='unit'>% over k</span></h3></figcaption>"
        f"{legend([(line, 'share') for line in lines])}<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{escape(f'pass@k of {exam}, from k = 1 to {count}: {said}')}'>{grid(frame, 'share')}"
        f"{''.join(draw_curve(frame, line) for line in lines)}</svg></figure>"
    )


def page(title: str, subtitle: str, body: str) -> str:
    """A page in the report's style, without scripts."""
    style = files("covrl.reporting").joinpath("report.css").read_text(encoding="utf-8") + STYLE
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<meta name='color-scheme' content='light dark'>\n<title>{escape(title)}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1>"
        f"<p class='subtitle'>{escape(subtitle)}</p></header>\n<main>{body}</main>\n</body>\n</html>\n"
    )


def section(table: TableLike) -> str:
    """A table under its title."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in table.head)
    rows = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in table.rows
    )
    return (
        f"<section><h2>{escape(table.title)}</h2><p class='lead'>{escape(table.about)}</p><div class='scroll'>"
        f"<table class='exam'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _traces(exam: str, models: Mapping[str, Sequence[Solved]]) -> str:
    """Right beside wrong: of one model, and where greedy answers of the first model and another part."""
    kinds = [(f"{exam}: {model}, a right and a wrong trace of the same problem", within(model, rows))
             for model, rows in models.items()]  # fmt: skip
    first, *others = models
    for other in others:
        kinds.append((f"{exam}: {other} is right where {first} is wrong (greedy)", between(models, other, first)))
        kinds.append((f"{exam}: {first} is right where {other} is wrong (greedy)", between(models, first, other)))
    return "".join(_kind(title, list(islice(pairs, PAIRS))) for title, pairs in kinds)


def within(model: str, rows: Sequence[Solved]) -> Iterator[Pair]:
    """Of each problem that has both, the first right and the first wrong trace."""
    for row in rows:
        every = (*row.samples, row.greedy)
        good = next((s for s in every if s.verdict == "right"), None)
        bad = next((s for s in every if s.verdict == "wrong"), None)
        if good and bad:
            yield Pair(row, model, model, good, bad)


def between(models: Mapping[str, Sequence[Solved]], good: str, bad: str) -> Iterator[Pair]:
    """Greedy traces of problems that one model has right and the other wrong."""
    for ours, theirs in zip(models[good], models[bad], strict=True):
        if ours.greedy.verdict == "right" and theirs.greedy.verdict == "wrong":
            yield Pair(ours, good, bad, ours.greedy, theirs.greedy)


def _kind(title: str, pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ""
    blocks = "".join(
        f"<article class='example'><h3>{escape(pair.solved.question)}</h3>"
        f"<p class='answer'>Answer <code>{escape(one_line(pair.solved.reference, 300))}</code></p><div class='pair'>"
        f"{_attempt(pair.left, pair.good)}{_attempt(pair.right, pair.bad)}</div></article>"
        for pair in pairs
    )
    return f"<section><h2>{escape(title)}</h2>{blocks}</section>"


def _attempt(model: str, sample: Sample) -> str:
    said = f"answers {one_line(sample.said, 80)}" if sample.finish == "closed" else "no answer: the trace is not closed"
    return attempt(escape(f"{one_line(model, 60)}: {said}"), Attempt(sample.trace, sample.verdict))
