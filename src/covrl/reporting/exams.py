"""The page of `covrl eval`: tables, and right and wrong traces of the same problem side by side. No scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from markupsafe import Markup

from covrl.evaluation.exam import Sample, Solved
from covrl.reporting.charts import COLOURS, NOTHING, Frame, Line, chart, draw_curve, grid, key
from covrl.reporting.pages import page
from covrl.reporting.scales import Curve, Point, axis
from covrl.reporting.summary import Attempt
from covrl.reporting.tables import TitledTable
from covrl.reporting.text import one_line

PAIRS = 6
"""Pairs of traces that are shown of each kind and exam."""

DOTS = 32
"""Points that are drawn as dots."""

Records = Mapping[tuple[str, str], Sequence[Solved]]

Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""exam -> model -> pass@1, pass@2, … pass@n."""


class Pair(NamedTuple):
    """Two traces for one problem, and the models that wrote them."""

    solved: Solved
    left: str
    right: str
    good: Sample
    bad: Sample

    def shown(self) -> list[tuple[str, Attempt]]:
        """Both traces with their headings."""
        return [
            (_heading(m, s), Attempt(s.trace, s.verdict)) for m, s in ((self.left, self.good), (self.right, self.bad))
        ]


def render_exams(tables: Sequence[TitledTable], notes: Sequence[str], solved: Records, curves: Curves) -> str:
    """The page as text."""
    charts = [pass_chart(exam, found) for exam, found in curves.items()]
    kinds: list[tuple[str, list[Pair]]] = []
    for exam in dict.fromkeys(exam for exam, _ in solved):
        kinds += _traces(exam, {model: rows for (name, model), rows in solved.items() if name == exam})
    return page(
        "eval.html",
        title="covrl eval",
        subtitle="Greedy and sampled traces under the prior prompt.",
        tables=tables,
        charts=[each for each in charts if each],
        notes=[("", note) for note in notes],
        kinds=kinds,
    )


def pass_chart(exam: str, found: Mapping[str, Sequence[float]]) -> Markup:
    """pass@k over k, one line per model; empty if at most one sample was drawn."""
    count = max((len(values) for values in found.values()), default=0)
    if count < 2:
        return NOTHING
    lines = [
        Line(
            name,
            f"s-{i % COLOURS}",
            Curve([Point(k, v, v, v) for k, v in enumerate(values, 1)], [], sparse=count <= DOTS),
        )
        for i, (name, values) in enumerate(found.items())
    ]
    frame = Frame(1, count, axis([v for line in lines for v in line.curve.values()], zero=True, most=1.0))
    ends = ((line.name, line.curve.points[0].value, line.curve.points[-1].value) for line in lines)
    said = "; ".join(f"{name} {first:.1%} to {last:.1%}" for name, first, last in ends)
    return chart(
        exam,
        f"pass@k from k = 1 to {count}: {said}",
        grid(frame, "share") + NOTHING.join(draw_curve(frame, line) for line in lines),
        unit="% over k",
        keys=[key(line, "share") for line in lines],
    )


def _traces(exam: str, models: Mapping[str, Sequence[Solved]]) -> list[tuple[str, list[Pair]]]:
    """Right beside wrong traces: of one model, and of two models whose greedy answers differ."""
    kinds = [(f"{exam}: {model}, a right and a wrong trace of the same problem", within(model, rows))
             for model, rows in models.items()]  # fmt: skip
    first, *others = models
    for other in others:
        kinds.append((f"{exam}: {other} is right where {first} is wrong (greedy)", between(models, other, first)))
        kinds.append((f"{exam}: {first} is right where {other} is wrong (greedy)", between(models, first, other)))
    return [(title, pairs) for title, every in kinds if (pairs := list(islice(every, PAIRS)))]


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


def _heading(model: str, sample: Sample) -> str:
    said = f"answers {one_line(sample.said, 80)}" if sample.finish == "closed" else "no answer: the trace is not closed"
    return f"{one_line(model, 60)}: {said}"
