"""A run's folder as far as it has been read: its steps in memory, its traces in an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covrl.config import read_toml
from covrl.errors import UserError
from covrl.records import StepReport, TraceGroup
from covrl.reporting.folder import METRICS, SETTINGS, TRACES, summary_from
from covrl.reporting.live.follow import Line, Mark, News, follow, read_at
from covrl.reporting.live.index import Place, TraceIndex
from covrl.reporting.sinks import latest, metrics_line, trace_group, traces_line
from covrl.reporting.summary import RunSummary

MOST_BYTES = 4_000_000
"""What is read of each file at a time, so that a page that opens on a large run is answered at once."""

MOST_FAULTS = 3
"""Of a file; where one line is not ours, all may be."""


@dataclass
class LiveRun:
    """One run that is looked at.

    ``version`` changes with the steps and the settings, ``traces_version`` each time that indexed traces were removed.
    ``faults`` are sentences about what could not be read, by file.
    """

    number: int
    folder: Path
    config: dict[str, Any]
    steps: list[StepReport] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=lambda: {METRICS: Mark(), TRACES: Mark()})
    behind: dict[str, int] = field(default_factory=lambda: {METRICS: 0, TRACES: 0})
    faults: dict[str, list[str]] = field(default_factory=dict)
    version: int = 0
    traces_version: int = 0

    @property
    def gone(self) -> bool:
        """Whether the folder was deleted or moved; what was read of it is still shown."""
        return not self.folder.is_dir()

    def summary(self) -> RunSummary:
        """What the page shows besides traces."""
        return summary_from(self.folder, self.config, self.steps)

    def said(self) -> list[str]:
        """What is wrong with the run's files."""
        gone = [f"{self.folder}: the folder is gone; what was read of it is shown"] if self.gone else []
        return [*gone, *(fault for faults in self.faults.values() for fault in faults)]


def open_run(number: int, folder: Path) -> LiveRun:
    """A run of which nothing but the settings was read yet.

    Raises:
        UserError: the folder is not that of a run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run, which holds {SETTINGS}")
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder}: not the folder of a run, which holds {SETTINGS}")
    return LiveRun(number, folder.resolve(), read_toml(folder / SETTINGS))


def poll(run: LiveRun, index: TraceIndex) -> None:
    """Read what the run's files have gained, some megabytes of it."""
    metrics, traces = (_news(run, name) for name in (METRICS, TRACES))
    if metrics.lines or metrics.afresh:
        read = [report for _, report in _parsed(run, METRICS, metrics.lines, metrics_line)]
        run.steps = latest(read, [] if metrics.afresh else run.steps)
        _read_settings(run)
        run.version += 1
    if traces.afresh:
        _forget(run, index, 0)
    for line, report in _parsed(run, TRACES, traces.lines, traces_line):
        _forget(run, index, report.step)  # a resumed run took the step again
        index.add(run.number, report, line.at, len(line.content))


def trace_tokens(run: LiveRun, place: Place) -> TraceGroup | None:
    """A group with its tokens, from the run's file; ``None`` if the file no longer has it there."""
    try:
        group = trace_group(read_at(run.folder / TRACES, place.at, place.size), place.step, place.place)
    except (OSError, UserError):
        return None
    return group if len(group.traces) == place.traces else None


def _news(run: LiveRun, name: str) -> News:
    """What a file has gained; nothing, and a fault that says so, where it cannot be read."""
    try:
        news, closed = follow(run.folder / name, run.marks[name], MOST_BYTES), []
    except OSError as error:
        news, closed = News([], run.marks[name]), [f"{run.folder / name}: cannot be read: {error.strerror}"]
    run.faults[f"opening {name}"] = closed
    if news.afresh:
        run.faults[name] = []
    run.marks[name], run.behind[name] = news.mark, news.behind
    return news


def _parsed(
    run: LiveRun, name: str, lines: Sequence[Line], parse: Callable[[Path, int, bytes], StepReport]
) -> list[tuple[Line, StepReport]]:
    """The reports in the lines, each with its line; a line that is not one is told and left out."""
    found = []
    for line in lines:
        try:
            if line.content.strip():
                found.append((line, parse(run.folder / name, line.count, line.content)))
        except UserError as error:
            run.faults[name] = [*run.faults.get(name, []), str(error)][:MOST_FAULTS]
    return found


def _forget(run: LiveRun, index: TraceIndex, step: int) -> None:
    if index.forget(run.number, step):
        run.traces_version += 1


def _read_settings(run: LiveRun) -> None:
    """The settings may have been changed before a resume; where they cannot be read, those of before count."""
    try:
        run.config, run.faults[SETTINGS] = read_toml(run.folder / SETTINGS), []
    except UserError as error:
        run.faults[SETTINGS] = [] if run.gone else [str(error)]
