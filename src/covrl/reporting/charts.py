"""Charts as SVG, complete without JavaScript; ``report.js`` only adds values under the pointer.

Colours are CSS classes, so that one drawing serves light, dark and print. The prior and the posterior have
classes of their own (``s-prior``, ``s-posterior``), which nothing else uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from covrl.records import StepReport
from covrl.reporting.catalogue import ChartSpec, label
from covrl.reporting.format import UNITS, number, typeset
from covrl.reporting.pages import fill
from covrl.reporting.scales import Axis, Curve, Point, axis, curve, is_noisy, runs, smooth, step_ticks
from covrl.reporting.text import visible

WIDTH, HEIGHT = 520, 216
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
BARS = 120  # columns in a stacked chart; each still has some three pixels
COLOURS = 7  # the classes s-0 ... s-6 in page.css
STREAMS = {"total": "s-0", "policy": "s-1", "kl": "s-2", "nll": "s-3"}  # the same in the loss and gradient charts
NOTHING = Markup()


def element(tag: str, *inside: str | Sequence[Markup], **attributes: str | float) -> Markup:
    """One SVG element: what is inside and values are escaped, floats get one digit; ``text_anchor`` is text-anchor.

    Example:
        >>> element("text", "a < b", x=1.25, class_="name")
        Markup("<text x='1.2' class='name'>a &lt; b</text>")
    """
    named = "".join(f" {name.rstrip('_').replace('_', '-')}='{_value(v)}'" for name, v in attributes.items())
    content = "".join(_text(part) if isinstance(part, str) else "".join(part) for part in inside)
    return Markup(f"<{tag}{named}>{content}</{tag}>" if inside else f"<{tag}{named}/>")


def _value(value: str | float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else _text(str(value))


def _text(text: str) -> str:
    return text if isinstance(text, Markup) else escape(visible(text))


@dataclass(frozen=True, slots=True)
class Line:
    """A metric ready to be drawn: its name in the chart, its colour class and its curve."""

    name: str
    colour: str
    curve: Curve


class Key(NamedTuple):
    """An entry of a chart's key: its colour class, its name, its last value, and whether it is a fixed level."""

    colour: str
    name: str
    last: str
    level: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps steps and values to the drawing."""

    first: float
    last: float
    axis: Axis
    height: int = HEIGHT

    @property
    def floor(self) -> int:
        """The lower edge of the frame."""
        return self.height - BOTTOM

    def x(self, step: float) -> float:
        wide = self.last - self.first
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - self.first) / wide if wide else 0.5)

    def y(self, value: float) -> float:
        return TOP + (self.floor - TOP) * (1 - self.axis.place(value))


def chart(
    title: str,
    told: str,
    body: Markup,
    *,
    unit: str = "",
    keys: Sequence[Key] = (),
    healthy: str = "",
    remark: str = "",
    readings: Mapping[str, object] | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    kind: str = "",
) -> Markup:
    """One chart as HTML: title, a sentence on what is ``healthy``, key and drawing.

    ``told`` describes the drawing as text; ``readings`` are the values that the script shows; ``kind`` is a further CSS
    class.
    """
    read = json.dumps(readings, ensure_ascii=False) if readings else ""
    named = {"title": title, "unit": unit, "told": told, "healthy": healthy, "remark": remark, "readings": read}
    return fill("chart.html", **named, body=body, keys=keys, width=width, height=height, kind=kind)


def drawing(title: str, style: str, parts: Sequence[Markup], width: int, height: int) -> str:
    """A separate SVG file, with its own style."""
    inside = [element("title", title), element("style", style), *parts]
    return (
        element("svg", inside, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img") + "\n"
    )


def figure(spec: ChartSpec, steps: Sequence[StepReport], chance: float | None = None, scripted: bool = True) -> Markup:
    """The chart of a run's metrics; empty where no metric has a value to draw.

    ``scripted``: with the values that the page's script shows.
    """
    return _figure(spec, _lines(spec, steps), steps, chance, scripted)


def figure_of_two(
    spec: ChartSpec, first: Sequence[StepReport], second: Sequence[StepReport], chance: float | None = None
) -> Markup:
    """The curves of two runs in one frame, in the same colours, the second run's (B) dashed."""
    spec = replace(spec, kind="lines", shade=False)  # two stacks of bars cannot be laid over each other
    lines = [replace(line, name=f"{line.name}, A") for line in _lines(spec, first)]
    lines += [replace(line, name=f"{line.name}, B", colour=f"{line.colour} b") for line in _lines(spec, second)]
    ends = sorted((*first[:1], *first[-1:], *second[:1], *second[-1:]), key=lambda report: report.step)
    return _figure(spec, [line for line in lines if line.curve.points or line.curve.broken], ends, chance)


def _figure(
    spec: ChartSpec,
    lines: Sequence[Line],
    steps: Sequence[StepReport],
    chance: float | None,
    scripted: bool = True,
) -> Markup:
    """The lines in a frame from the first to the last of the steps."""
    if not any(line.curve.points or line.curve.broken for line in lines):
        return NOTHING
    level = chance if spec.chance else None
    frame = Frame(steps[0].step, steps[-1].step, _axis(spec, lines, level))
    stacked = spec.kind == "bars"
    outside = _outside(frame, [_total(lines)] if stacked else lines)
    body = grid(frame, spec.unit) + chance_line(frame, level, "chance ")
    body += _bars(frame, lines) if stacked else _curves(frame, spec, lines)
    body += _broken(frame, lines) + _triangles(frame, outside)
    return chart(
        spec.title,
        "; ".join(told(line, spec.unit) for line in lines if line.curve.points),
        body,
        unit=UNITS.get(spec.unit, spec.unit),
        keys=[*(key(line, spec.unit) for line in lines), *chance_key(level)],
        healthy=spec.healthy,
        remark=_remark(frame, lines, len(outside)),
        readings=readout(frame, spec, lines) if scripted else None,
    )


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour class for each metric; the prior's and the posterior's are reserved for them."""
    given: dict[str, str] = {}
    for name in names:
        taken = given.values()
        own = next((f"s-{source}" for source in ("posterior", "prior") if source in label(name).split()), None)
        own = own or STREAMS.get(label(name))
        free = (f"s-{place}" for place in range(COLOURS) if f"s-{place}" not in taken)
        given[name] = own if own and own not in taken else next(free, f"s-{len(given) % COLOURS}")
    return given


def _lines(spec: ChartSpec, steps: Sequence[StepReport]) -> list[Line]:
    names = list(spec.metrics)
    if spec.kind == "bars" and len(names) > 1:
        names = [name for name in names if name != "time/step"]  # it is the sum of which the bars are the parts
    given = colours(names)
    if spec.kind == "bars":  # an evaluation on few steps must not fill a bar that represents many
        curves = [curve(steps, name, BARS, absent=0.0) for name in names]
    else:
        curves = [curve(steps, name) for name in names]
    return [Line(label(name), given[name], each) for name, each in zip(names, curves, strict=True)]


def _axis(spec: ChartSpec, lines: Sequence[Line], level: float | None) -> Axis:
    values = [value for line in lines for point in line.curve.points for value in (point.low, point.high)]
    if spec.kind == "bars":
        values = [sum(column) for column in _columns(lines).values()]
    values += [] if level is None else [level]
    return axis(values, log=spec.log, zero=spec.zero, most=1.0 if spec.unit == "share" else math.inf)


def across(frame: Frame, value: float, **attributes: str) -> Markup:
    """A horizontal line over the whole frame."""
    y = frame.y(value)
    return element("line", **attributes, x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)


def grid(
    frame: Frame,
    unit: str,
    below: Callable[[float], str] = "{:,}".format,
    ticks: Sequence[float] | None = None,
) -> Markup:
    """The scale on the left with its lines, and the ``ticks`` below as ``below`` writes them (steps, if none)."""
    parts = []
    for tick in frame.axis.ticks:
        zero = {"class": "zero"} if tick == 0 and frame.axis.low < 0 else {}
        text = tick_text(tick, unit, log=frame.axis.log)
        parts += [across(frame, tick, **zero)]
        parts += [element("text", text, x=LEFT - 7, y=frame.y(tick) + 4, text_anchor="end")]
    ticks = step_ticks(frame.first, frame.last) if ticks is None else ticks
    for place, tick in enumerate(ticks):
        anchor = "end" if 0 < place == len(ticks) - 1 else "middle"
        parts += [element("text", below(tick), x=frame.x(tick), y=frame.floor + 17, text_anchor=anchor)]
    return element("g", parts, class_="grid")


def tick_text(value: float, unit: str, *, log: bool) -> str | list[Markup]:
    """A tick's number as SVG text; shares in per cent."""
    if unit == "share":
        return typeset(f"{100 * value:.6g}")
    if log or (value and not 1e-3 <= abs(value) < 1e5):
        mantissa, exponent = f"{value:.0e}".split("e")
        if abs(int(exponent)) >= 3:
            power = element("tspan", typeset(str(int(exponent))), dy=-5, font_size=9)
            return [Markup("10" if mantissa == "1" else f"{typeset(mantissa)}·10"), power]
    return typeset(f"{value:,.6g}")


def chance_line(frame: Frame, level: float | None, said: str = "") -> Markup:
    """The accuracy of a guess as a dashed line, with its label at the place of ``said``; empty if none is known."""
    if level is None:
        return NOTHING
    line = across(frame, level, class_="chance")
    text, y = typeset(f"{said}{number(level, 'share')}"), frame.y(level) - 5
    return line + element("text", text, class_="chance", x=WIDTH - RIGHT - 2, y=y, text_anchor="end") if said else line


def path(frame: Frame, points: Sequence[tuple[float, float]], end: str = "", **attributes: str) -> Markup:
    """The straight lines between points."""
    return element(
        "path", **attributes, d="M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points) + end
    )


def _drawable(frame: Frame, line: Line) -> list[list[Point]]:
    """The line's stretches; on a log axis values of zero or less are omitted."""
    points = [p for p in line.curve.points if p.value > 0] if frame.axis.log else line.curve.points
    return runs(points, line.curve.broken)


def _curves(frame: Frame, spec: ChartSpec, lines: Sequence[Line]) -> Markup:
    shade = _shade(frame, lines[0], lines[1]) if spec.shade and len(lines) == 2 else NOTHING
    return shade + NOTHING.join(draw_curve(frame, line) for line in lines)


def draw_curve(frame: Frame, line: Line) -> Markup:
    """One line: single steps thin and their trend bold; dots if few steps have a value."""
    parts = []
    noisy = is_noisy(line.curve.points) and not line.curve.sparse
    for stretch in _drawable(frame, line):
        raw = [(point.step, point.value) for point in stretch]
        if line.curve.per_point > 1:
            upper, lower = [(p.step, p.high) for p in stretch], [(p.step, p.low) for p in reversed(stretch)]
            parts += [path(frame, upper + lower, "Z", class_="band")]
        elif noisy:
            parts += [path(frame, raw, class_="raw")]
        if len(stretch) > 1:
            parts += [path(frame, smooth(stretch, _half(line)) if noisy else raw, class_="line")]
        if line.curve.sparse or len(stretch) == 1:
            parts += [element("circle", cx=frame.x(s), cy=frame.y(v), r=2.6) for s, v in raw]
    return element("g", parts, class_=line.colour)


def _half(line: Line) -> int:
    """Half the window of the trend, which is about a twentieth of the curve."""
    return len(line.curve.points) // 40


def _shade(frame: Frame, first: Line, second: Line) -> Markup:
    """Fills the space between two lines over the steps that both have."""
    one, two = (dict(smooth(line.curve.points, _half(line))) for line in (first, second))
    both = sorted(one.keys() & two.keys())
    if len(both) < 2:
        return NOTHING
    around = [(step, one[step]) for step in both] + [(step, two[step]) for step in reversed(both)]
    return path(frame, around, "Z", class_="gap")


def _columns(lines: Sequence[Line]) -> Mapping[float, list[float]]:
    """The stacked chart's columns: for each step that any line has, every line's value (0 where absent)."""
    tables = [{point.step: max(point.value, 0.0) for point in line.curve.points} for line in lines]
    every = sorted({step for table in tables for step in table})
    return {step: [table.get(step, 0.0) for table in tables] for step in every}


def _bars(frame: Frame, lines: Sequence[Line]) -> Markup:
    columns = _columns(lines)
    width = (WIDTH - LEFT - RIGHT) / max(len(columns), 8) + 0.6  # slightly wider, else rounding leaves gaps
    paths: list[list[str]] = [[] for _ in lines]
    for step, values in columns.items():
        x = min(max(frame.x(step) - width / 2, LEFT), WIDTH - RIGHT - width)
        below = 0.0
        for parts, value in zip(paths, values, strict=True):
            low, high = frame.y(below), frame.y(below + value)
            below += value
            if low - high > 0.05:
                parts.append(f"M{x:.1f} {low:.1f}H{x + width:.1f}V{high:.1f}H{x:.1f}Z")
    drawn = zip(lines, paths, strict=True)
    return NOTHING.join(
        element("path", class_=f"bar {line.colour}", d="".join(parts)) for line, parts in drawn if parts
    )


def _total(lines: Sequence[Line]) -> Line:
    sums = {step: sum(values) for step, values in _columns(lines).items()}
    return Line("total", "s-total", Curve([Point(step, value, value, value) for step, value in sums.items()], []))


def _broken(frame: Frame, lines: Sequence[Line]) -> Markup:
    """A cross on the lower edge for each value that is not finite."""
    places = [frame.x(step) - 3 for line in lines for step in line.curve.broken]
    return NOTHING.join(element("path", class_="cross", d=f"M{x:.1f} {frame.floor - 3}l6 6m0-6l-6 6") for x in places)


def _triangles(frame: Frame, outside: Sequence[tuple[Line, Point]]) -> Markup:
    """A triangle on the edge for a value beyond it."""
    marks = []
    for line, point in outside:
        y, tip = (TOP, -5) if point.value > frame.axis.high else (frame.floor, 5)
        drawn = f"M{frame.x(point.step) - 3.5:.1f} {y}h7l-3.5 {tip}Z"
        marks.append(element("path", class_=f"out {line.colour}", d=drawn))
    return NOTHING.join(marks)


def _outside(frame: Frame, lines: Sequence[Line]) -> list[tuple[Line, Point]]:
    """The points outside the axis, as outliers."""
    low, high = frame.axis.low, frame.axis.high
    slack = 1e-9 * (high - low)
    every = [(line, point) for line in lines for point in line.curve.points if not frame.axis.log or point.value > 0]
    return [(line, point) for line, point in every if point.value > high + slack or point.value < low - slack]


def told(line: Line, unit: str) -> str:
    """The line as text."""
    first, last = line.curve.points[0], line.curve.points[-1]
    begin, end = number(first.value, unit), number(last.value, unit)
    return f"{line.name} from {begin} at step {first.step:.0f} to {end} at step {last.step:.0f}"


def key(line: Line, unit: str) -> Key:
    """The line's entry in the key, with its last value; the script writes others there."""
    last = number(line.curve.points[-1].value, unit) if line.curve.points else "NaN"
    return Key(line.colour, line.name, typeset(last))


def chance_key(level: float | None) -> list[Key]:
    """The entry of the accuracy of a guess; none where none is known."""
    return [] if level is None else [Key("s-chance", "chance", typeset(number(level, "share")), level=True)]


def _remark(frame: Frame, lines: Sequence[Line], outside: int) -> str:
    """Remarks on values that the drawing cannot show."""
    said = []
    if broken := sum(len(line.curve.broken) for line in lines):
        said.append(f"× {broken} {'value' if broken == 1 else 'values'} not finite")
    if outside:
        said.append(f"▲ {outside} outside the frame")
    if frame.axis.log and (zeros := sum(value <= 0 for line in lines for value in line.curve.values())):
        said.append(f"{zeros} {'value' if zeros == 1 else 'values'} of 0 or less not drawn")
    return "; ".join(said)


def readout(frame: Frame, spec: ChartSpec, lines: Sequence[Line]) -> dict[str, list[Any]]:
    """What the script needs to show values: the steps, the values as text, and their heights."""
    series = []
    for line in lines:
        points = line.curve.points
        texts = [typeset(number(point.value, spec.unit)) for point in points]
        heights = [round(frame.y(point.value)) for point in points] if spec.kind == "lines" else []
        places = [round(point.step) for point in points]
        series.append({"c": line.colour, "s": places, "v": texts, "y": heights})
    return {"x": [frame.first, frame.last], "box": [LEFT, WIDTH - RIGHT, TOP, frame.floor], "series": series}
