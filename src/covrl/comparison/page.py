"""The comparison as one HTML page without scripts: every seed as a point, and accuracy against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from markupsafe import Markup

from covrl.comparison.cells import Cell
from covrl.comparison.methods import BASE
from covrl.comparison.summary import AXES, UNITS, Axis, Figure, Line, Measure, course, measures, places, remarks
from covrl.comparison.table import ABOUT, count_text, grids, value_text
from covrl.reporting.charts import (
    BOTTOM,
    COLOURS,
    NOTHING,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Key,
    chance_line,
    chart,
    element,
    grid,
    path,
)
from covrl.reporting.pages import page
from covrl.reporting.scales import Axis as Scale
from covrl.reporting.scales import axis

Colours = Mapping[tuple[str, str, float | None], str]

ROW = 22  # height of a method's row among the points
NAMES = 150  # width of the methods' names beside it


def render(every: Sequence[Line], failures: Mapping[Cell, str], notes: Sequence[str] = ()) -> str:
    """The page as text; ``notes`` come before the remarks."""
    settings: list[tuple[object, ...]] = []
    drawn: set[str] = set()
    for (reached, *others), here in zip(grids(every).values(), places(every).values(), strict=True):
        setting = here[0].setting
        settings.append((reached, _seeds(here), [] if setting in drawn else _courses(setting, here), others))
        drawn.add(setting)
    said = [("", text) for text in (*notes, *remarks(every, failures))]
    return page("comparison.html", title="covrl compare", subtitle=ABOUT, settings=settings, said=said)


def _courses(setting: str, here: Sequence[Line]) -> list[tuple[str, str, list[Markup]]]:
    """The curves of training: title, subject and charts, for likelihood and, if there is any, accuracy."""
    every = [
        (f"{setting}: accuracy", "Held-out accuracy, greedy", _charts(here, "accuracy")),
        (f"{setting}: likelihood", "Held-out log p(y|x,z) after one sampled trace", _charts(here, "log_prob")),
    ]
    return [(title, subject, drawn) for title, subject, drawn in every if any(drawn)]


def _seeds(here: Sequence[Line]) -> list[Markup]:
    """A drawing for each measure: one row per method, every seed a point, mean and interval in the background."""
    shown = measures([r for line in here for r in line.results])
    return [_points(here, measure, title) for measure, title in shown.items()]


def _points(here: Sequence[Line], measure: str, title: str) -> Markup:
    height = ROW * len(here) + BOTTOM + TOP
    unit = UNITS.get(measure, "share")
    scale = _scale([line.figure(measure) for line in here], unit)
    rows = [_row(here, i, measure, scale) for i in range(len(here))]
    figures = [(line, line.figure(measure)) for line in here]
    told = "; ".join(f"{_name(line, here)} {value_text(f.mean, unit)}" for line, f in figures if f)
    lines = []
    for tick in scale.ticks:
        lines.append(_upright(scale, tick, height))
        text = f"{100 * tick:.0f} %" if unit == "share" else f"{tick:.6g}"
        lines.append(element("text", text, x=_place(scale, tick), y=height - 8, text_anchor="middle"))
    chance = _chance(here) if measure in ("greedy", "avg@n") else None
    guess = NOTHING if chance is None else _upright(scale, chance, height, "chance")
    body = element("g", lines, class_="grid") + guess + NOTHING.join(rows)
    return chart(title.removesuffix(f", {unit}"), told, body, unit="%" if unit == "share" else unit, height=height)


def _scale(figures: Sequence[Figure | None], unit: str) -> Scale:
    """The axis: 0 to 100 % for shares; the range of the values for other measures."""
    if unit == "share":
        return Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    return axis([value for figure in figures if figure for value in figure.points] or [0.0], zero=unit == "tokens")


def _place(scale: Scale, value: float) -> float:
    """The horizontal place of a value among the points."""
    return NAMES + (WIDTH - RIGHT - NAMES) * scale.place(value)


def _upright(scale: Scale, value: float, height: int, name: str = "") -> Markup:
    named, x = {"class": name} if name else {}, _place(scale, value)
    return element("line", **named, x1=x, x2=x, y1=TOP, y2=height - BOTTOM)


def _row(here: Sequence[Line], number: int, measure: str, scale: Scale) -> Markup:
    """A method's name, its interval, its mean and its seeds."""
    line, y = here[number], TOP + ROW * (number + 0.5)
    parts = [element("text", _name(line, here), x=0, y=y + 4)]
    figure = line.figure(measure)
    if figure and figure.interval:
        low, high = (_place(scale, end) for end in figure.interval)
        parts.append(element("path", class_="whisker", d=f"M{low:.1f} {y:.1f}H{high:.1f}"))
    if figure:
        parts.append(element("path", class_="mean", d=f"M{_place(scale, figure.mean):.1f} {y - 6:.1f}v12"))
        parts += [element("circle", cx=_place(scale, value), cy=y, r=3.2) for value in figure.points]
    return element("g", parts, class_=_colours(here)[number])


def _charts(here: Sequence[Line], measure: Measure) -> list[Markup]:
    """One chart per axis if the colours suffice; else one per method and axis, with the others in grey."""
    trained = [line for line in here if line.method != BASE]
    colours = {line.key: colour for line, colour in zip(here, _colours(here), strict=True)}
    together = [trained] if len(trained) <= COLOURS else [[line] for line in trained]
    return [_chart(axis_name, bold, trained, colours, measure) for bold in together for axis_name in AXES]


def _chart(
    axis_name: Axis, bold: Sequence[Line], trained: Sequence[Line], colours: Colours, measure: Measure
) -> Markup:
    """The lines ``bold`` in colour, with every seed, before all others in grey; empty where no tokens were counted."""
    unit = "share" if measure == "accuracy" else "nats"
    means = {line.key: mean_course(line, axis_name, measure) for line in trained}
    shown = [line for line in bold if means[line.key]]
    if not shown:
        return NOTHING
    seeds = {line.key: [p for result in line.results if (p := course(result, axis_name, measure))] for line in trained}
    chance = _chance(trained) if unit == "share" else None
    # The frame fits all lines, so that neighbouring charts have the same axes.
    drawn = [point for courses in seeds.values() for points in courses for point in points]
    heights = [y for _, y in drawn]
    upright = axis([*heights, chance or 0.0], zero=True, most=1.0) if unit == "share" else axis(heights)
    frame = Frame(0.0, max(x for x, _ in drawn), upright)
    body = grid(frame, unit, count_text) + chance_line(frame, chance)
    own = {line.key for line in shown}
    body += NOTHING.join(path(frame, mean, class_="rest") for k, mean in means.items() if mean and k not in own)
    keys = []
    for line in shown:
        colour, mean = colours[line.key], means[line.key]
        thin = [path(frame, points, class_="raw") for points in seeds[line.key]]
        body += element("g", [*thin, path(frame, mean, class_="line")], class_=colour)
        keys.append(Key(colour, _name(line, trained), _last(mean[-1][1], unit)))
    told = "; ".join(f"{key.name} ends at {key.last}" for key in keys)
    title = f"against {AXES[axis_name]}" if len(shown) > 1 else f"{keys[0].name} against {AXES[axis_name]}"
    return chart(title, told, body, unit="%" if unit == "share" else unit, keys=keys)


def _last(value: float, unit: str) -> str:
    return f"{value_text(value, unit)} {'%' if unit == 'share' else unit}"


def mean_course(line: Line, axis_name: Axis, measure: Measure = "accuracy") -> list[tuple[float, float]]:
    """The mean over seeds of tokens and accuracy (or log p) at each evaluation that every seed has, in order."""
    every = [points for result in line.results if (points := course(result, axis_name, measure))]
    return [(fmean(x for x, _ in row), fmean(y for _, y in row)) for row in zip(*every, strict=False)]


def _chance(here: Sequence[Line]) -> float | None:
    return next((r.figures["chance"] for line in here for r in line.results), None)


def _colours(here: Sequence[Line]) -> list[str]:
    """A colour class for each method; the base, which is no method, is grey."""
    count = iter(range(len(here)))
    return ["s-chance" if line.method == BASE else f"s-{next(count) % COLOURS}" for line in here]


def _name(line: Line, here: Sequence[Line]) -> str:
    """The method, with its rate if it has several here."""
    several = sum(other.method == line.method for other in here) > 1
    return f"{line.method} {line.rate_text}" if several else line.method
