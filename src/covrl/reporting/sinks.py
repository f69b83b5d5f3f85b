"""Where step reports go: the ``Sink`` protocol, and the two files that a run folder keeps.

``metrics.jsonl`` holds one line a step, ``traces.jsonl`` one line for each step whose traces are shown. Both
are strict JSON (a NaN or an infinity is ``null``), are flushed after each line and can be appended to after a
crash; :func:`read_steps` reads the reports.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from covrl.errors import UserError, first_fault
from covrl.records import StepReport, TraceGroup
from covrl.secrets import redacted

T = TypeVar("T")

MOST_STEPS = 10**12
"""Upper limit of a step's number."""

_REPORTS = TypeAdapter(StepReport)


class Sink(Protocol):
    """Receives each step's report as it is made."""

    def write(self, report: StepReport) -> None:
        """Take one report; reports come in the order of their steps."""
        ...

    def close(self) -> None:
        """Close the sink and its files; calling it twice is allowed."""
        ...


class _LineFile:
    """A file of JSON lines, opened for appending on the first line so that an idle sink leaves no file."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: FileIO | None = None
        self._closed = False

    def append(self, record: Mapping[str, object]) -> None:
        """Add a line, whole or not at all."""
        if self._closed:
            raise ValueError(f"{self._path} is closed")
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _mend(self._path)
            self._file = self._path.open("ab", buffering=0)
        self._write(self._file, _encode(record) + b"\n")

    def _write(self, file: FileIO, line: bytes) -> None:
        """Write a whole line or nothing, so that the file stays readable if the disk is full."""
        size = file.seek(0, os.SEEK_END)
        try:
            while line:  # a write may write only a part
                line = line[file.write(line) :]
        except OSError:
            file.truncate(size)
            raise

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._closed = True
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonlSink(_LineFile):
    """Writes each step's metrics and warnings as one line of ``metrics.jsonl``.

    Example:
        >>> JsonlSink("runs/sort/metrics.jsonl").write(StepReport(step=1, metrics={"reward/prior": -2.1}))
    """

    def write(self, report: StepReport) -> None:
        metrics = {name: _finite(value) for name, value in report.metrics.items()}
        # A warning may quote another package.
        self.append({"step": report.step, "metrics": metrics, "warnings": list(map(redacted, report.warnings))})


class TracesSink(_LineFile):
    """Writes the trace groups of each report that has some as one line of ``traces.jsonl``."""

    def write(self, report: StepReport) -> None:
        if report.groups:
            self.append({"step": report.step, "groups": [_group_record(group) for group in report.groups]})


def cut_behind(path: str | Path, step: int, every_step: bool = False) -> list[str]:
    """Cut a file of steps after ``step``, and an unfinished last line, before a run continues there.

    A run that continues writes the same lines again, so nothing is lost. With ``every_step`` the result says, in one
    sentence, which of the steps 1, 2, …, ``step`` are missing; otherwise it is empty.

    Raises:
        UserError: a line that is kept is damaged; the message names it.
    """
    path = Path(path)
    there: list[int] = []
    trouble: UserError | None = None
    end = kept = 0
    if path.exists():
        _mend(path)
        with path.open("rb") as file:
            for count, line in enumerate(file, start=1):
                end += len(line)
                try:
                    number = int(json.loads(line)["step"]) if line.strip() else 0
                except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                    trouble = trouble or _not_ours(path, count, error)
                    continue  # it is dropped if no line that is kept follows: a loss of power can leave such an end
                if number > step:
                    break
                if trouble:
                    raise trouble
                there.append(number)
                kept = end
        if kept < path.stat().st_size:
            os.truncate(path, kept)
    missing = [number for number in range(1, step + 1) if number not in there] if every_step else []
    shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    return [f"{path}: the lines of step {shown} are missing; the run goes on without them"] if missing else []


def read_metrics(path: str | Path) -> list[StepReport]:
    """The reports in a metrics file, without traces, steps strictly rising; ``null`` comes back as NaN.

    A run that was resumed wrote some steps twice: the lines of the abandoned steps are dropped. An unfinished
    last line is skipped; any other damage raises :class:`UserError` with file and line.
    """
    return latest(_read(Path(path), _metrics_report))


def read_traces(path: str | Path) -> dict[int, tuple[TraceGroup, ...]]:
    """The trace groups in a traces file, by step; damage and resumed runs as in :func:`read_metrics`."""
    return {report.step: tuple(report.groups) for report in latest(_read(Path(path), _traces_report))}


def metrics_line(path: Path, count: int, line: bytes) -> StepReport:
    """The report in line ``count`` of a metrics file; it may be of a run that goes on, and other lines unfinished.

    Raises:
        UserError: covrl did not write this; the message has file and line.
    """
    return _record(path, count, line, _metrics_report)


def traces_line(path: Path, count: int, line: bytes) -> StepReport:
    """The step and the trace groups in line ``count`` of a traces file; errors as in :func:`metrics_line`."""
    return _record(path, count, line, _traces_report)


def trace_group(line: bytes, step: int, place: int) -> TraceGroup:
    """One of the groups in a line of a traces file that is known to be of ``step``.

    Raises:
        UserError: the line is another one.
    """
    try:
        record = json.loads(line)
        report = _traces_report({"step": record["step"], "groups": [record["groups"][place]]})
    except (ValueError, LookupError, TypeError, RecursionError):
        report = None
    if report is None or report.step != step:
        raise UserError(f"the traces of step {step} are no longer where they were")
    return report.groups[0]


def read_steps(metrics: str | Path, traces: str | Path | None = None) -> list[StepReport]:
    """The reports of a run folder, traces included, ready for a new HTML report.

    Example:
        >>> write_report("report.html", RunSummary(title="sort", steps=read_steps("metrics.jsonl")))

    A traces file that does not exist counts as empty: a run may have shown none.
    """
    groups = read_traces(traces) if traces is not None and Path(traces).exists() else {}
    return [replace(report, groups=groups.get(report.step, ())) for report in read_metrics(metrics)]


def _mend(path: Path) -> None:
    """End the file with a line feed: a torn last line would otherwise swallow the next one."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        try:
            json.loads(content[start:])
        except ValueError:
            file.truncate(start)
        else:
            file.write(b"\n")  # the position is at the end: only the line feed was missing


def _encode(record: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but JSON can still spell it \ud800
        return json.dumps(record, ensure_ascii=True, allow_nan=False).encode()


def _finite(value: float | None) -> float | None:
    """The value as a plain float (it may be a NumPy number), or ``None`` if JSON cannot express it."""
    if value is None:
        return None
    plain = float(value)
    return plain if math.isfinite(plain) else None


def _group_record(group: TraceGroup) -> dict[str, object]:
    traces = [
        asdict(trace)
        | {"reward": _finite(trace.reward), "advantage": _finite(trace.advantage), "kl": _finite(trace.kl)}
        | {"rewards": {name: _finite(value) for name, value in trace.rewards.items()}}
        | {"tokens": [[t.text, _finite(t.prior), _finite(t.posterior)] for t in trace.tokens]}
        for trace in group.traces
    ]
    return {"problem": asdict(group.problem), "traces": traces}


def _read(path: Path, parse: Callable[[Any], T]) -> list[T]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    lines = content.split(b"\n")
    torn = len(lines) if lines[-1].strip() else 0  # the text after the last line feed is the unfinished line
    records: list[T] = []
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(path, count, line, parse))
        except UserError:
            if count != torn:
                raise
    return records


def _record(path: Path, count: int, line: bytes, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(line))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _not_ours(path, count, error) from error


def _not_ours(path: Path, count: int, error: Exception) -> UserError:
    what = first_fault(error) if isinstance(error, ValidationError) else str(error).replace("\n", " ")
    return UserError(f"{path}, line {count}: not a line that covrl wrote ({what}); mend or remove it")


def latest(reports: Iterable[StepReport], kept: Sequence[StepReport] = ()) -> list[StepReport]:
    """Those that were ``kept`` and the reports after them, without the steps that a resumed run took again."""
    result = list(kept)
    for report in reports:
        while result and result[-1].step >= report.step:
            result.pop()
        result.append(report)
    return result


# The files may be of somebody else's run, so that every value is what the page takes it for, or the line is refused.
# Python's own reader of JSON stands before it: pydantic's refuses lone surrogates, which data sets do hold.


def _metrics_report(record: Any) -> StepReport:
    metrics = {name: math.nan if value is None else value for name, value in record["metrics"].items()}
    return _report({**record, "metrics": metrics, "groups": ()})


def _traces_report(record: Any) -> StepReport:
    return _report({**record, "metrics": {}})


def _report(record: Mapping[str, Any]) -> StepReport:
    report = _REPORTS.validate_python(record)
    if not 0 <= report.step < MOST_STEPS:
        raise ValueError(f"step {str(report.step)[:20]} is none")
    return report
