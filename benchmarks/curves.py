"""A method's learning curves as an SVG file for its page in the docs: one row per setting, one column per axis."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup

from covrl.comparison.methods import BASE
from covrl.comparison.page import mean_course
from covrl.comparison.summary import AXES, Axis, Line, course, value_at
from covrl.comparison.table import count_text
from covrl.reporting.charts import HEIGHT, LEFT, WIDTH, Frame, chance_line, drawing, element, grid, path
from covrl.reporting.scales import axis

HEAD = 40  # height of a panel's two lines of text
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #555; }
.name { font-weight: 600; fill: #222; }
.grid line { stroke: #ddd; }
.chance { stroke: #999; stroke-dasharray: 4 4; fill: none; }
path { fill: none; }
.rest { stroke: #bbb; stroke-width: 1; }
.seed { stroke: #2f6fb5; stroke-width: 1; opacity: 0.45; }
.mean { stroke: #2f6fb5; stroke-width: 2.4; }
@media (prefers-color-scheme: dark) {
  text { fill: #aaa; } .name { fill: #eee; } .grid line { stroke: #333; } .chance { stroke: #777; }
  .rest { stroke: #555; } .seed, .mean { stroke: #7db3f0; }
}
"""


def curves(method: str, every: Sequence[Line]) -> str:
    """The method's seeds and their mean against both measures of tokens, the means of all other methods in grey.

    Each drawing ends where the method itself ends. Empty without results whose tokens may be compared. ``every`` are
    the lines of all methods at the rates that are to be shown, one for each method and setting.
    """
    own = [line for line in every if line.method == method != BASE]
    settings = list(dict.fromkeys(line.setting for line in own if any(mean_course(line, axis) for axis in AXES)))
    if not settings:
        return ""
    placed = [
        element(
            "g",
            _panel(method, [line for line in every if line.setting == setting], axis_name),
            transform=f"translate({column * WIDTH} {row * (HEIGHT + HEAD)})",
        )
        for row, setting in enumerate(settings)
        for column, axis_name in enumerate(AXES)
    ]
    title = f"{method}: held-out accuracy (%) against {' and '.join(AXES.values())}"
    return drawing(title, STYLE, placed, len(AXES) * WIDTH, len(settings) * (HEIGHT + HEAD))


def up_to(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """The part of a curve (x rising) up to ``end``: a method that spends far more would squeeze all others."""
    last = value_at(points, end)
    return [(x, y) for x, y in points if x < end] + ([(end, last)] if last is not None else [])


def _panel(method: str, here: Sequence[Line], axis_name: Axis) -> list[Markup]:
    trained = [line for line in here if line.method != BASE and mean_course(line, axis_name)]
    own = next((line for line in trained if line.method == method), None)
    if own is None:
        return [element("text", f"{AXES[axis_name]} were not counted", x=LEFT, y=16)]
    seeds = [points for result in own.results if (points := course(result, axis_name))]
    chance = fmean(result.figures["chance"] for result in own.results)
    means = {line.method: mean_course(line, axis_name) for line in trained}
    end = max(x for points in (means[method], *seeds) for x, _ in points)
    means = {name: up_to(points, end) for name, points in means.items()}
    drawn = [point for points in (*means.values(), *seeds) for point in points]
    frame = Frame(0.0, end, axis([*(y for _, y in drawn), chance], zero=True, most=1.0))
    parts = [grid(frame, "share", count_text), chance_line(frame, chance)]
    parts += [path(frame, points, class_="rest") for name, points in means.items() if name != method]
    parts += [path(frame, points, class_="seed") for points in seeds]
    parts.append(path(frame, means[method], class_="mean"))
    count = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    about = f"% right against {AXES[axis_name]}; others grey, chance dashed"
    return [
        element("text", f"{method}, {own.setting}: rate {own.rate_text}, {count}", class_="name", x=LEFT, y=16),
        element("text", about, x=LEFT, y=32),
        element("g", parts, transform=f"translate(0 {HEAD})"),
    ]
