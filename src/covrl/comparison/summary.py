"""From results to the figures of a table: means, intervals, every seed, accuracy at equal tokens, what is missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, NamedTuple

from covrl.comparison.cells import Cell, Exam, Result
from covrl.comparison.methods import BASE
from covrl.reporting.format import ABSENT
from covrl.statistics import Interval, bootstrap_interval, t_interval

Axis = Literal["generated", "passed"]

Measure = Literal["accuracy", "log_prob"]
"""What curves show: held-out accuracy, or held-out log p(y|x,z), nats."""

UNITS = {"log_prob": "nats", "trace_tokens": "tokens"}
"""Measures of an evaluation that are no shares."""

RANGES = {"log_prob": (-math.inf, 0.0), "trace_tokens": (0.0, math.inf)}
"""The range of these."""

AXES: dict[Axis, str] = {"generated": "generated tokens", "passed": "forward + backward tokens"}
"""Two measures of what a training cost. ``passed`` counts a token once for each forward and each backward pass: scored
tokens once, trained ones twice. It does not include sampling."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure of one method: its mean, its 95 % interval and the value of every seed.

    The interval is Student's over seeds; that of a single run is the bootstrap over problems (``over``), and where
    methods are compared at equal learning rates every rate is a point. There is none if all points or all problems
    are equal, which tells nothing about others.
    """

    mean: float
    points: tuple[float, ...]
    interval: Interval | None
    over: Literal["seeds", "problems", "rates"]


@dataclass(frozen=True, slots=True)
class Line:
    """A method at one setting, learning rate and exam: its results by seed, and the seeds that are missing.

    ``rate`` is None while it is not tuned; then every seed is missing.
    """

    method: str
    setting: str
    rate: float | None
    results: tuple[Result, ...]
    missing: tuple[int, ...]
    exam: Exam | None = None

    @property
    def key(self) -> tuple[str, str, float | None]:
        """What identifies the line."""
        return self.method, self.setting, self.rate

    @property
    def rate_text(self) -> str:
        """The learning rate as a table shows it."""
        return ABSENT if self.rate is None else f"{self.rate:g}"

    def figure(self, measure: str) -> Figure | None:
        """A measure of the evaluation (``greedy``, ``avg@n``, ``pass@8``, ``sound``, …), where the results have it."""
        values = [value for r in self.results if (value := _measure(r.figures["exam"], measure)) is not None]
        if not values:
            return None
        if len(values) > 1:
            return _over_seeds(values, _bounds(measure))
        low, high = self.results[0].figures["exam"]["intervals"].get(measure, (0.0, 0.0))
        return Figure(values[0], tuple(values), Interval(low, high) if low < high else None, "problems")

    def at(self, axis: Axis, tokens: float) -> Figure | None:
        """Held-out accuracy after so many tokens, between evaluations by the straight line; without seeds that
        ended before."""
        values = [value_at(course(r, axis), tokens) for r in self.results]
        known = [value for value in values if value is not None]
        return _over_seeds(known) if known else None

    def reached(self, axis: Axis, level: float) -> list[float | None]:
        """Of each seed whose tokens may be compared, the tokens at which held-out accuracy first was ``level``."""
        every = [reach(points, level) for r in self.results if (points := course(r, axis))]
        return [found.at if found else None for found in every]

    def cost(self, part: str, name: str) -> float | None:
        """Mean over seeds of ``figures[part][name]``; None if no comparable result has it."""
        values = [r.figures[part].get(name) for r in self.results if r.counted]
        counted = [value for value in values if value is not None]
        return fmean(counted) if counted else None


def _over_seeds(values: Sequence[float], within: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """Student's interval, cut to the possible range."""
    ends = t_interval(values, within=within) if len(set(values)) > 1 else None
    return Figure(fmean(values), tuple(values), ends, "seeds")


def _bounds(measure: str, gap: bool = False) -> tuple[float, float]:
    """The possible range of a measure, or of the difference of two."""
    low, high = RANGES.get(measure, (0.0, 1.0))
    return (low - high, high - low) if gap else (low, high)


def lead(
    first: Line, other: Line, value: Callable[[Result], float | None], within: tuple[float, float] = (-1.0, 1.0)
) -> Figure | None:
    """How far ``first`` is ahead of ``other``, in a share, seed by seed over the seeds that both have."""
    theirs = {r.cell.seed: value(r) for r in other.results}
    pairs = [(value(r), theirs.get(r.cell.seed)) for r in first.results]
    gaps = [mine - yours for mine, yours in pairs if mine is not None and yours is not None]
    return _over_seeds(gaps, within) if gaps else None


def lead_in(first: Line, other: Line, measure: str) -> Figure | None:
    """:func:`lead` in a measure of the evaluation."""
    return lead(first, other, lambda r: _measure(r.figures["exam"], measure), _bounds(measure, gap=True))


def lead_by_problem(first: Line, other: Line, measure: str) -> Figure | None:
    """How far ``first`` is ahead of ``other`` on the same problems, over the seeds that both have.

    The interval is a bootstrap over problems of the difference of each. None where problems were not kept.
    """
    both = sorted({r.cell.seed for r in first.results} & {r.cell.seed for r in other.results})
    mine, theirs = _by_problem(first, both, measure), _by_problem(other, both, measure)
    if not mine or len(mine) != len(theirs):
        return None
    gaps = [a - b for a, b in zip(mine, theirs, strict=True)]
    ends = bootstrap_interval(gaps)
    return Figure(fmean(gaps), (fmean(gaps),), ends if ends.low < ends.high else None, "problems")


def _by_problem(line: Line, seeds: Sequence[int], measure: str) -> list[float]:
    """Each problem's figure, mean over seeds; empty where one of them has none."""
    every = [r.figures.get("by_problem", {}).get(measure) for r in line.results if r.cell.seed in seeds]
    columns = [column for column in every if column]
    if not columns or len(columns) < len(every) or len({len(column) for column in columns}) > 1:
        return []
    return [fmean(values) for values in zip(*columns, strict=True)]


def lead_at(first: Line, other: Line, axis: Axis) -> Figure | None:
    """:func:`lead` in held-out accuracy after the most tokens that all trainings of the two reached."""
    tokens = common_tokens([first, other], axis)
    return None if tokens is None else lead(first, other, lambda r: value_at(course(r, axis), tokens))


def sooner(times: Sequence[Figure | None]) -> str:
    """``sooner`` or ``later`` if the intervals of all ratios agree, else ``undecided``."""
    return _said(times, 1.0, "sooner", "later")


def verdict(leads: Sequence[Figure | None]) -> str:
    """``ahead`` or ``behind`` if all intervals agree, else ``undecided``."""
    return _said(leads, 0.0, "ahead", "behind")


def _said(figures: Sequence[Figure | None], even: float, above: str, below: str) -> str:
    """On which side of ``even`` all intervals are; undecided if a figure or its interval is missing."""
    ends = [figure.interval for figure in figures if figure and figure.interval]
    if not figures or len(ends) < len(figures):
        return "undecided"
    if all(low > even for low, _ in ends):
        return above
    return below if all(high < even for _, high in ends) else "undecided"


def _measure(exam: Mapping[str, Any], measure: str) -> float | None:
    if measure == "sound":
        return exam.get("sound_sampled", exam.get("sound"))
    return exam.get(measure)


def lines(cells: Sequence[Cell], results: Mapping[Cell, Result]) -> list[Line]:
    """The cells by method, setting and rate, in their order."""
    groups: dict[tuple[str, str, float, Exam], list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        groups.setdefault((cell.method, cell.setting, cell.rate, cell.exam), []).append(cell)
    return [
        Line(
            *key[:3],
            tuple(results[cell] for cell in members if cell in results),
            tuple(cell.seed for cell in members if cell not in results),
            key[3],
        )
        for key, members in groups.items()
    ]


def places(every: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of one table: those of a setting, or of each exam if it has several."""
    exams: dict[str, dict[Exam | None, None]] = {}
    for line in every:
        exams.setdefault(line.setting, {})[line.exam if line.rate is not None else None] = None
    found: dict[str, list[Line]] = {}
    for line in every:
        several = len([exam for exam in exams[line.setting] if exam]) > 1
        name = f"{line.setting}, {line.exam.split.replace('_', '-')}" if several and line.exam else line.setting
        found.setdefault(name, []).append(line)
    return found


def measures(results: Sequence[Result]) -> dict[str, str]:
    """The measures of a table and how they are headed: pass@k for the largest k that every result has.

    Accuracies if answers were graded; the share of sound traces if the task has a check.
    """
    exams = [r.figures["exam"] for r in results]
    samples = min((exam.get("n", 0) for exam in exams), default=0)
    shown = {"greedy": "greedy"} if all("greedy" in exam for exam in exams) else {}
    if samples and shown:
        most = 1 << (samples.bit_length() - 1)
        shown |= {"avg@n": f"avg@{samples}"} | ({f"pass@{most}": f"pass@{most}"} if most > 1 else {})
    if all("sound" in exam for exam in exams):
        shown["sound"] = "sound"
    if exams and all("log_prob" in exam for exam in exams):
        shown |= {"log_prob": "log p(y|x,z), nats", "trace_tokens": "trace, tokens"}
    return shown


def course(result: Result, axis: Axis, measure: Measure = "accuracy") -> list[tuple[float, float]]:
    """Held-out accuracy (or log p) over the tokens of ``axis``, as it went in training.

    Empty if tokens were not counted, or were counted by another version.
    """
    if not result.counted:
        return []
    found = [(_tokens(point, axis), point.get(measure)) for point in result.figures["curve"]]
    return [(x, y) for x, y in found if x is not None and y is not None]


def _tokens(point: Mapping[str, float | None], axis: Axis) -> float | None:
    if axis == "generated":
        return point["generated"]
    scored, trained = point["scored"], point["trained"]
    return None if scored is None or trained is None else scored + 2 * trained


def _plain(cell: Cell) -> str:
    return f"{cell.method}, {cell.setting}, rate {cell.rate:g}"


def value_at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value at ``x`` on the straight lines between points (x rising); None outside them."""
    for (a, before), (b, after) in pairwise(points):
        if a <= x <= b:
            return after if b == a else before + (x - a) / (b - a) * (after - before)
    return points[0][1] if len(points) == 1 and points[0][0] == x else None


class Reach(NamedTuple):
    """When a course first was at a level: after so many tokens, by so many, and at these on the straight line."""

    after: float
    by: float
    at: float


def reach(points: Sequence[tuple[float, float]], level: float) -> Reach | None:
    """When a curve (x rising) first reaches ``level``; None if it never does."""
    if points and points[0][1] >= level:
        return Reach(points[0][0], points[0][0], points[0][0])
    for (a, before), (b, after) in pairwise(points):
        if before < level <= after:
            return Reach(a, b, a + (b - a) * (level - before) / (after - before))
    return None


def common_tokens(every: Sequence[Line], axis: Axis) -> float | None:
    """The most tokens that every finished training reached; None where none counted them."""
    ends = [points[-1][0] for line in every for r in line.results if (points := course(r, axis)) and points[-1][0] > 0]
    return min(ends, default=None)


def alike(every: Sequence[Line]) -> list[str]:
    """The methods of one setting whose trainings have the same figures everywhere, in the seeds that both have."""
    groups: list[tuple[tuple[str, Exam | None], dict[int, Any], list[str]]] = []
    for line in every:
        told = {r.cell.seed: (r.figures["exam"], [p["accuracy"] for p in r.figures["curve"]]) for r in line.results}
        for setting, first, names in groups:
            both = first.keys() & told.keys()
            if both and setting == (line.setting, line.exam) and all(first[seed] == told[seed] for seed in both):
                names.append(f"{line.method} (rate {line.rate_text})")
                break
        else:
            groups.append(((line.setting, line.exam), told, [f"{line.method} (rate {line.rate_text})"]))
    return [", ".join(names) for _, _, names in groups if len(names) > 1]


def remarks(every: Sequence[Line], failures: Mapping[Cell, str]) -> list[str]:
    """Remarks on the figures: what is missing, failed or was stopped, and which code made them."""
    said = []
    for line in every:
        if line.missing:
            seeds = ", ".join(map(str, line.missing))
            rate = "rate not tuned yet" if line.rate is None else f"rate {line.rate_text}"
            said.append(f"Missing: {line.method}, {line.setting}, {rate}, seeds {seeds}.")
    said += [f"Failed: {cell.title}: {reason}" for cell, reason in failures.items()]
    said += [f"Alike in every figure of every seed that they share: {names}." for names in alike(every)]
    results = [r for line in every for r in line.results]
    said += [f"Stopped: {r.cell.title}: {r.figures['stopped']}" for r in results if r.figures["stopped"]]
    if other := [r for r in results if r.cell.method != BASE and not r.counted]:
        which = "; ".join(f"{cell} ({count})" for cell, count in Counter(_plain(r.cell) for r in other).items())
        said.append(f"Not compared in tokens and time, as older code did or counted its work otherwise: {which}.")
    commits = Counter(r.commit for r in results)
    if commits:
        said.append("Commits (results): " + ", ".join(f"{commit} ({count})" for commit, count in commits.items()) + ".")
    if any(commit.endswith("-dirty") for commit in commits):
        said.append("Results marked -dirty come from code that was not committed, and cannot be made again.")
    return list(dict.fromkeys(said))  # two exams of one training have the same curves
