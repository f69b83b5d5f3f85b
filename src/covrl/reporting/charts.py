"""Charts as SVG text, complete without JavaScript; ``report.js`` only adds reading off values.

Colours are CSS classes, so that one drawing serves light, dark and print. The prior and the posterior have
classes of their own (``s-prior``, ``s-posterior``), which nothing else uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covrl.records import StepReport
from covrl.reporting.catalogue import ChartSpec, label
from covrl.reporting.format import UNITS, number, typeset
from covrl.reporting.scales import Axis, Curve, Point, axis, curve, is_noisy, runs, smooth, step_ticks
from covrl.reporting.text import escape

WIDTH, HEIGHT = 520, 216
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
BARS = 120  # columns in a stacked chart; each still has some three pixels
COLOURS = 7  # the classes s-0 ... s-6 in report.css
STREAMS = {"total": "s-0", "policy": "s-1", "kl": "s-2", "nll": "s-3"}  # the same in the loss and gradient charts


@dataclass(frozen=True, slots=True)
class Line:
    """A metric ready to be drawn: its name in the chart, its colour class and its curve."""

    name: str
    colour: str
    curve: Curve


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps steps and values to the drawing."""

    first: float
    last: float
    axis: Axis

    def x(self, step: float) -> float:
        wide = self.last - self.first
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - self.first) / wide if wide else 0.5)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - self.axis.place(value))


def plot_floor() -> int:
    """The lower edge of the frame."""
    return HEIGHT - BOTTOM


def figure(spec: ChartSpec, steps: Sequence[StepReport], chance: float | None = None) -> str:
    """One chart with its title, its sentence and its read-out; empty where no metric has a value to draw."""
    lines = _lines(spec, steps)
    if not any(line.curve.points or line.curve.broken for line in lines):
        return ""
    level = chance if spec.chance else None
    frame = Frame(steps[0].step, steps[-1].step, _axis(spec, lines, level))
    stacked = spec.kind == "bars"
    body = _bars(frame, lines) if stacked else _curves(frame, spec, lines)
    outside = _outside(frame, [_total(lines)] if stacked else lines)
    marks = _broken(frame, lines) + _triangles(frame, outside)
    svg = _svg(spec, lines, grid(frame, spec.unit) + _chance(frame, level) + body + marks)
    unit = UNITS.get(spec.unit, spec.unit)
    heading = escape(spec.title) + (f" <span class='unit'>{escape(unit)}</span>" if unit else "")
    healthy = f"<p class='healthy'>{escape(spec.healthy)}</p>" if spec.healthy else ""
    return (
        f"<figure class='chart' data-chart='{escape(json.dumps(readout(frame, spec, lines), ensure_ascii=False))}'>"
        f"<figcaption><h3>{heading}</h3>{healthy}{_remarks(frame, lines, len(outside))}</figcaption>"
        f"{legend([(line, spec.unit) for line in lines], level)}{svg}</figure>"
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
        names = [name for name in names if name != "time/step"]  # it is the whole, and the bars are its parts
    given = colours(names)
    if spec.kind == "bars":  # an evaluation that few steps have must not fill a bar that stands for many
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


def grid(frame: Frame, unit: str) -> str:
    """The scale on the left with its lines, and the steps below."""
    right, floor = WIDTH - RIGHT, plot_floor()
    parts = ["<g class='grid'>"]
    for tick in frame.axis.ticks:
        y = frame.y(tick)
        text = tick_text(tick, unit, log=frame.axis.log)
        zero = " class='zero'" if tick == 0 and frame.axis.low < 0 else ""
        parts.append(f"<line{zero} x1='{LEFT}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{LEFT - 7}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>")
    ticks = step_ticks(frame.first, frame.last)
    for place, step in enumerate(ticks):
        anchor = "end" if 0 < place == len(ticks) - 1 else "middle"
        x = frame.x(step)
        parts.append(f"<text x='{x:.1f}' y='{floor + 17}' text-anchor='{anchor}'>{step:,}</text>")
    return "".join(parts) + "</g>"


def tick_text(value: float, unit: str, *, log: bool) -> str:
    """A tick's number as SVG text; shares in per cent."""
    if unit == "share":
        return typeset(f"{100 * value:.6g}")
    if log or (value and not 1e-3 <= abs(value) < 1e5):
        mantissa, exponent = f"{value:.0e}".split("e")
        if abs(int(exponent)) >= 3:
            ten = f"10<tspan dy='-5' font-size='9'>{typeset(str(int(exponent)))}</tspan>"
            return ten if mantissa == "1" else typeset(mantissa) + "·" + ten
    return typeset(f"{value:,.6g}")


def _chance(frame: Frame, level: float | None) -> str:
    if level is None:
        return ""
    y, right = frame.y(level), WIDTH - RIGHT
    text = typeset(f"chance {number(level, 'share')}")
    return (
        f"<line class='chance' x1='{LEFT}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'/>"
        f"<text class='chance' x='{right - 2}' y='{y - 5:.1f}' text-anchor='end'>{text}</text>"
    )


def _path(frame: Frame, pairs: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in pairs)


def _drawable(frame: Frame, line: Line) -> list[list[Point]]:
    """The line's stretches; on a log axis a value of zero or less has no place and is left out."""
    points = [p for p in line.curve.points if p.value > 0] if frame.axis.log else line.curve.points
    return runs(points, line.curve.broken)


def _curves(frame: Frame, spec: ChartSpec, lines: Sequence[Line]) -> str:
    shade = _shade(frame, lines[0], lines[1]) if spec.shade and len(lines) == 2 else ""
    return shade + "".join(draw_curve(frame, line) for line in lines)


def draw_curve(frame: Frame, line: Line) -> str:
    """One line: single steps thin and their trend bold, dots where few steps have a value."""
    parts = [f"<g class='{line.colour}'>"]
    noisy = is_noisy(line.curve.points) and not line.curve.sparse
    for stretch in _drawable(frame, line):
        raw = [(point.step, point.value) for point in stretch]
        if line.curve.per_point > 1:
            upper, lower = [(p.step, p.high) for p in stretch], [(p.step, p.low) for p in reversed(stretch)]
            parts.append(f"<path class='band' d='{_path(frame, upper + lower)}Z'/>")
        elif noisy:
            parts.append(f"<path class='raw' d='{_path(frame, raw)}'/>")
        if len(stretch) > 1:
            parts.append(f"<path class='line' d='{_path(frame, smooth(stretch, _half(line)) if noisy else raw)}'/>")
        if line.curve.sparse or len(stretch) == 1:
            parts += [f"<circle cx='{frame.x(s):.1f}' cy='{frame.y(v):.1f}' r='2.6'/>" for s, v in raw]
    return "".join(parts) + "</g>"


def _half(line: Line) -> int:
    """Half the window of the trend, which is about a twentieth of the curve."""
    return len(line.curve.points) // 40


def _shade(frame: Frame, first: Line, second: Line) -> str:
    """Fills the space between two lines over the steps that both have."""
    one, two = (dict(smooth(line.curve.points, _half(line))) for line in (first, second))
    both = sorted(one.keys() & two.keys())
    if len(both) < 2:
        return ""
    around = [(step, one[step]) for step in both] + [(step, two[step]) for step in reversed(both)]
    return f"<path class='gap' d='{_path(frame, around)}Z'/>"


def _columns(lines: Sequence[Line]) -> Mapping[float, list[float]]:
    """The stacked chart's columns: for each step that any line has, every line's value (0 where absent)."""
    tables = [{point.step: max(point.value, 0.0) for point in line.curve.points} for line in lines]
    every = sorted({step for table in tables for step in table})
    return {step: [table.get(step, 0.0) for table in tables] for step in every}


def _bars(frame: Frame, lines: Sequence[Line]) -> str:
    columns = _columns(lines)
    width = (WIDTH - LEFT - RIGHT) / max(len(columns), 8) + 0.6  # a hair over, or rounding leaves gaps
    paths: list[list[str]] = [[] for _ in lines]
    for step, values in columns.items():
        x = min(max(frame.x(step) - width / 2, LEFT), WIDTH - RIGHT - width)
        below = 0.0
        for path, value in zip(paths, values, strict=True):
            low, high = frame.y(below), frame.y(below + value)
            below += value
            if low - high > 0.05:
                path.append(f"M{x:.1f} {low:.1f}H{x + width:.1f}V{high:.1f}H{x:.1f}Z")
    drawn = zip(lines, paths, strict=True)
    return "".join(f"<path class='bar {line.colour}' d='{''.join(path)}'/>" for line, path in drawn if path)


def _total(lines: Sequence[Line]) -> Line:
    sums = {step: sum(values) for step, values in _columns(lines).items()}
    return Line("total", "s-total", Curve([Point(step, value, value, value) for step, value in sums.items()], []))


def _broken(frame: Frame, lines: Sequence[Line]) -> str:
    """A cross on the lower edge for each value that is not finite."""
    floor = HEIGHT - BOTTOM - 3
    places = [frame.x(step) - 3 for line in lines for step in line.curve.broken]
    return "".join(f"<path class='cross' d='M{x:.1f} {floor}l6 6m0-6l-6 6'/>" for x in places)


def _triangles(frame: Frame, outside: Sequence[tuple[Line, Point]]) -> str:
    """A triangle on the edge that a value lies beyond."""
    marks = []
    for line, point in outside:
        over = point.value > frame.axis.high
        y, tip = (TOP, -5) if over else (HEIGHT - BOTTOM, 5)
        marks.append(f"<path class='out {line.colour}' d='M{frame.x(point.step) - 3.5:.1f} {y}h7l-3.5 {tip}Z'/>")
    return "".join(marks)


def _outside(frame: Frame, lines: Sequence[Line]) -> list[tuple[Line, Point]]:
    """The points that the axis leaves out as outliers."""
    low, high = frame.axis.low, frame.axis.high
    slack = 1e-9 * (high - low)
    every = [(line, point) for line in lines for point in line.curve.points if not frame.axis.log or point.value > 0]
    return [(line, point) for line, point in every if point.value > high + slack or point.value < low - slack]


def _svg(spec: ChartSpec, lines: Sequence[Line], body: str) -> str:
    said = "; ".join(told(line, spec.unit) for line in lines if line.curve.points)
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(f'{spec.title}. {said}')}'>"
        f"<title>{escape(spec.title)}</title><desc>{escape(said)}</desc>{body}<g class='cursor'></g></svg>"
    )


def told(line: Line, unit: str) -> str:
    """The line in words."""
    first, last = line.curve.points[0], line.curve.points[-1]
    begin, end = number(first.value, unit), number(last.value, unit)
    return f"{line.name} from {begin} at step {first.step:.0f} to {end} at step {last.step:.0f}"


def legend(lines: Sequence[tuple[Line, str]], level: float | None = None) -> str:
    """The key to the lines, each with its unit, with each one's last value; the script writes others into it."""
    keys = []
    for line, unit in lines:
        last = number(line.curve.points[-1].value, unit) if line.curve.points else "NaN"
        swatch = f"<svg class='swatch {line.colour}' viewBox='0 0 14 8' aria-hidden='true'><path d='M0 4H14'/></svg>"
        keys.append(f"<li>{swatch}{escape(line.name)} <b>{typeset(last)}</b></li>")
    if level is not None:
        swatch = "<svg class='swatch s-chance' viewBox='0 0 14 8' aria-hidden='true'><path d='M0 4H14'/></svg>"
        keys.append(f"<li class='level'>{swatch}chance <b>{typeset(number(level, 'share'))}</b></li>")
    return f"<ul class='legend'><li class='at'>last</li>{''.join(keys)}</ul>"


def _remarks(frame: Frame, lines: Sequence[Line], outside: int) -> str:
    """What the drawing does not show as it is."""
    said = []
    if broken := sum(len(line.curve.broken) for line in lines):
        said.append(f"× {broken} {'value' if broken == 1 else 'values'} not finite")
    if outside:
        said.append(f"▲ {outside} outside the frame")
    if frame.axis.log and (zeros := sum(value <= 0 for line in lines for value in line.curve.values())):
        said.append(f"{zeros} {'value' if zeros == 1 else 'values'} of 0 or less not drawn")
    return f"<p class='remark'>{'; '.join(said)}</p>" if said else ""


def readout(frame: Frame, spec: ChartSpec, lines: Sequence[Line]) -> dict[str, list[Any]]:
    """What the script needs to read values off: the steps, the values as text, and their heights."""
    series = []
    for line in lines:
        points = line.curve.points
        texts = [typeset(number(point.value, spec.unit)) for point in points]
        heights = [round(frame.y(point.value)) for point in points] if spec.kind == "lines" else []
        places = [round(point.step) for point in points]
        series.append({"c": line.colour, "s": places, "v": texts, "y": heights})
    box = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
    return {"x": [frame.first, frame.last], "box": box, "series": series}
