"""The comparison as one HTML page without scripts: every seed as a point, and accuracy against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import fmean

from covrl.comparison.cells import Cell
from covrl.comparison.methods import BASE, SETTINGS
from covrl.comparison.summary import AXES, UNITS, Figure, Line, Measure, course, measures, places, remarks
from covrl.comparison.summary import Axis as TokenAxis
from covrl.comparison.table import ABOUT, Grid, count_text, grids, percent, value_text
from covrl.reporting.charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame
from covrl.reporting.scales import Axis, axis, step_ticks
from covrl.reporting.text import escape

Points = Sequence[tuple[float, float]]
Key = tuple[str, str, float | None]

ROW = 22  # height of a method's row among the points
NAMES = 150  # width of the methods' names beside it

STYLE = """
.rest { fill: none; stroke: var(--rule); stroke-width: 1.2; }
.whisker { stroke: var(--c); stroke-width: 7; opacity: 0.25; }
.mean { stroke: var(--ink); stroke-width: 2; }
.compared { font: 0.82rem var(--sans); font-variant-numeric: tabular-nums; }
.compared th, .compared td { text-align: right; font-weight: 400; padding: 0.2rem 0 0.2rem 1.2rem;
  border-bottom: 1px solid var(--hair); vertical-align: top; }
.compared td { white-space: pre; }
.compared th:first-child { text-align: left; padding-left: 0; }
.compared thead th { color: var(--soft); }
"""


def render(every: Sequence[Line], failures: Mapping[Cell, str], notes: Sequence[str] = ()) -> str:
    """The page as text; everything from results is escaped on its way in. ``notes`` come before the remarks."""
    style = files("covrl.reporting").joinpath("report.css").read_text(encoding="utf-8") + STYLE
    drawn: set[str] = set()
    body = ""
    for tables, here in zip(grids(every).values(), places(every).values(), strict=True):
        body += _section(tables, here, courses=here[0].setting not in drawn)
        drawn.add(here[0].setting)
    said = "".join(f"<li><span></span>{escape(text)}</li>" for text in (*notes, *remarks(every, failures)))
    body += f"<section><h2>Remarks</h2><ul class='remarks'>{said}</ul></section>" if said else ""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta name='color-scheme' content='light dark'>\n<title>covrl compare</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<header><h1>covrl compare</h1>"
        f"<p class='subtitle'>{escape(ABOUT)}</p></header>\n<main>{body}</main>\n</body>\n</html>\n"
    )


def _section(tables: Sequence[Grid], here: Sequence[Line], courses: bool = True) -> str:
    """All of one setting: the seeds and what was reached, the courses, then the other tables."""
    reached, *others = tables
    body = _titled(reached, f"<div class='charts'>{_seeds(here)}</div>")
    if courses:
        setting = escape(here[0].setting)
        ours = " (dev)" if here[0].setting in SETTINGS else ""
        body += _courses(f"{setting}: accuracy", here, "accuracy", f"Held-out{ours} accuracy, greedy")
        body += _courses(f"{setting}: likelihood", here, "log_prob", "Held-out log p(y|x,z) behind one sampled trace")
    return body + "".join(map(_titled, others))


def _courses(title: str, here: Sequence[Line], measure: Measure, what: str) -> str:
    """How training went; empty where nothing of the measure is known, but for accuracy of our own tasks."""
    charts = _charts(here, measure)
    if not charts and (measure != "accuracy" or here[0].setting not in SETTINGS):
        return ""
    return (
        f"<section><h2>{title} against tokens</h2><p class='lead'>{what}, as it went in training: thin lines are "
        "seeds, bold ones their mean. A method is ahead only where it is ahead on both axes. Forward + backward counts "
        f"scored tokens once and trained ones twice.</p><div class='charts'>{charts}</div></section>"
    )


def _titled(grid: Grid, drawn: str = "") -> str:
    return (
        f"<section><h2>{escape(grid.title)}</h2><p class='lead'>{escape(grid.about)}</p>{drawn}{_table(grid)}</section>"
    )


def _table(grid: Grid) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in grid.head)
    rows = "".join(
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in grid.rows
    )
    return (
        f"<div class='scroll'><table class='compared'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _seeds(here: Sequence[Line]) -> str:
    """A drawing for each measure: a row a method, every seed a point, mean and interval behind them."""
    shown = measures([r for line in here for r in line.results])
    return "".join(_points(here, measure, title) for measure, title in shown.items())


def _points(here: Sequence[Line], measure: str, title: str) -> str:
    height, unit = ROW * len(here) + BOTTOM + TOP, UNITS.get(measure, "share")
    figures = [line.figure(measure) for line in here]
    scale = _scale(figures, unit)
    place = lambda value: NAMES + (WIDTH - RIGHT - NAMES) * scale.place(value)  # noqa: E731
    parts = ["<g class='grid'>"]
    for tick in scale.ticks:
        x = place(tick)
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{height - BOTTOM}'/>")
        label = f"{100 * tick:.0f} %" if unit == "share" else f"{tick:.6g}"
        parts.append(f"<text x='{x:.1f}' y='{height - 8}' text-anchor='middle'>{label}</text>")
    parts.append("</g>")
    chance = _chance(here)
    if chance is not None and measure in ("greedy", "avg@n"):
        x = place(chance)
        parts.append(f"<line class='chance' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{height - BOTTOM}'/>")
    for row, (line, colour, figure) in enumerate(zip(here, _colours(here), figures, strict=True)):
        y = TOP + ROW * (row + 0.5)
        parts.append(f"<g class='{colour}'><text x='0' y='{y + 4:.1f}'>{escape(_name(line, here))}</text>")
        if figure and figure.interval:
            low, high = map(place, figure.interval)
            parts.append(f"<path class='whisker' d='M{low:.1f} {y:.1f}H{high:.1f}'/>")
        if figure:
            parts.append(f"<path class='mean' d='M{place(figure.mean):.1f} {y - 6:.1f}v12'/>")
            parts += [f"<circle cx='{place(v):.1f}' cy='{y:.1f}' r='3.2'/>" for v in figure.points]
        parts.append("</g>")
    named = zip(here, figures, strict=True)
    told = "; ".join(f"{_name(line, here)} {value_text(f.mean, unit)}" for line, f in named if f)
    return _figure(title, "", f"{WIDTH} {height}", "".join(parts), told, unit)


def _scale(figures: Sequence[Figure | None], unit: str) -> Axis:
    """All shares stand between 0 and 100 %; another measure between what was seen of it."""
    if unit == "share":
        return Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    return axis([value for figure in figures if figure for value in figure.points] or [0.0], zero=unit == "tokens")


def _charts(here: Sequence[Line], measure: Measure) -> str:
    """One chart an axis where the colours suffice; else one a method and axis, with the others in grey."""
    trained = [line for line in here if line.method != BASE]
    colours = {line.key: colour for line, colour in zip(here, _colours(here), strict=True)}
    together = [trained] if len(trained) <= COLOURS else [[line] for line in trained]
    return "".join(_chart(axis_name, bold, trained, colours, measure) for bold in together for axis_name in AXES)


def _chart(
    axis_name: TokenAxis, bold: Sequence[Line], trained: Sequence[Line], colours: Mapping[Key, str], measure: Measure
) -> str:
    """The lines ``bold`` in colour, with every seed, before all others in grey; empty where no tokens were counted."""
    means = {line.key: mean_course(line, axis_name, measure) for line in trained}
    share = measure == "accuracy"
    shown = [line for line in bold if means[line.key]]
    if not shown:
        return ""
    every = {line.key: [p for result in line.results if (p := course(result, axis_name, measure))] for line in trained}
    seeds = {line.key: every[line.key] for line in shown}
    chance = _chance(trained) if share else None
    # The frame holds all lines, so that charts that stand beside each other have the same axes.
    drawn = [point for courses in every.values() for points in courses for point in points]
    heights = [y for _, y in drawn]
    upright = axis([*heights, chance or 0.0], zero=True, most=1.0) if share else axis(heights)
    frame = Frame(0.0, max(x for x, _ in drawn), upright)
    parts = [draw_grid(frame, share)]
    if chance is not None:
        y = frame.y(chance)
        parts.append(f"<line class='chance' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
    others = [points for key, points in means.items() if points and key not in seeds]
    parts += [f"<path class='rest' d='{draw_path(frame, points)}'/>" for points in others]
    keys = []
    for line in shown:
        colour, mean = colours[line.key], means[line.key]
        thin = "".join(f"<path class='raw' d='{draw_path(frame, points)}'/>" for points in seeds[line.key])
        parts.append(f"<g class='{colour}'>{thin}<path class='line' d='{draw_path(frame, mean)}'/></g>")
        swatch = f"<svg class='swatch {colour}' viewBox='0 0 14 8' aria-hidden='true'><path d='M0 4H14'/></svg>"
        keys.append(f"<li>{swatch}{escape(_name(line, trained))} <b>{_last(mean[-1][1], share)}</b></li>")
    told = "; ".join(f"{_name(line, trained)} ends at {_last(means[line.key][-1][1], share)}" for line in shown)
    legend = f"<ul class='legend'><li class='at'>last</li>{''.join(keys)}</ul>"
    title = f"against {AXES[axis_name]}" if len(shown) > 1 else f"{_name(shown[0], trained)} against {AXES[axis_name]}"
    return _figure(title, legend, f"{WIDTH} {HEIGHT}", "".join(parts), told, "share" if share else "nats")


def _last(value: float, share: bool) -> str:
    return f"{percent(value)} %" if share else f"{value_text(value, 'nats')} nats"


def mean_course(line: Line, axis_name: TokenAxis, measure: Measure = "accuracy") -> list[tuple[float, float]]:
    """The mean over seeds of tokens and accuracy (or log p) at each evaluation that every seed has, in order."""
    every = [points for result in line.results if (points := course(result, axis_name, measure))]
    return [(fmean(x for x, _ in row), fmean(y for _, y in row)) for row in zip(*every, strict=False)]


def draw_grid(frame: Frame, share: bool = True) -> str:
    """The horizontal lines of a chart of accuracy (or log p) against tokens, with both axes' numbers."""
    parts = ["<g class='grid'>"]
    for tick in frame.axis.ticks:
        y = frame.y(tick)
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(
            f"<text x='{LEFT - 7}' y='{y + 4:.1f}' text-anchor='end'>{tick * (100 if share else 1):.6g}</text>"
        )
    for tokens in step_ticks(frame.first, frame.last):
        x, anchor = frame.x(tokens), "end" if tokens == round(frame.last) else "middle"
        parts.append(f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 17}' text-anchor='{anchor}'>{count_text(tokens)}</text>")
    return "".join(parts) + "</g>"


def draw_path(frame: Frame, points: Points) -> str:
    """The straight lines between points, as the data of an SVG path."""
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


def _figure(title: str, legend: str, box: str, body: str, told: str, unit: str = "share") -> str:
    sign = "%" if unit == "share" else unit
    return (
        f"<figure class='chart'><figcaption><h3>{escape(title.removesuffix(f', {unit}'))} "
        f"<span class='unit'>{sign}</span></h3></figcaption>{legend}"
        f"<svg viewBox='0 0 {box}' role='img' aria-label='{escape(f'{title}. {told}')}'>{body}</svg></figure>"
    )


def _chance(here: Sequence[Line]) -> float | None:
    return next((r.figures["chance"] for line in here for r in line.results), None)


def _colours(here: Sequence[Line]) -> list[str]:
    """A colour class a method; the base, which is none, is grey."""
    count = iter(range(len(here)))
    return ["s-chance" if line.method == BASE else f"s-{next(count) % COLOURS}" for line in here]


def _name(line: Line, here: Sequence[Line]) -> str:
    """The method, with its rate where it has several here."""
    several = sum(other.method == line.method for other in here) > 1
    return f"{line.method} {line.rate_text}" if several else line.method
