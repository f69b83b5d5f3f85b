"""Live progress of a run in a terminal; plain lines elsewhere (a pipe, a log, continuous integration).

Everything goes to standard error, so that standard output stays clean for results.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from covrl.records import StepReport
from covrl.reporting.format import duration, number
from covrl.reporting.scales import without_outliers
from covrl.reporting.text import one_line, visible, warning_key

PLAIN_LINES = 20  # step lines in a log of one run; evaluation steps are preferred
ACCURACY = "eval/accuracy"
RECENT = 20  # steps that the pace and the time left are averaged over
PRIOR, POSTERIOR, PLAIN = "dodger_blue2", "dark_orange3", "default"
ROWS = (
    ("prior reward", "reward/prior", "", "", PRIOR),
    ("posterior reward", "reward/posterior", "", "", POSTERIOR),
    ("KL", "kl/nats_per_trace", "nats", "nats/trace", PLAIN),
    ("information", "answer/information", "nats", "nats", PLAIN),
    ("held-out accuracy", ACCURACY, "share", "", PLAIN),
)
_BLOCKS = "▁▂▃▄▅▆▇█"


class Progress:
    """Shows the progress of a run and its metrics; also a sink, so a trainer can write to it like to a file.

    Example:
        >>> with Progress(total_steps=120, chance=0.238, title="sort") as progress:
        ...     for report in trainer:
        ...         progress.write(report)
        ...     progress.note("saved runs/sort")

    ``total_steps`` counts all steps of the run, also those before a resume; ``None`` if it has no fixed end.
    ``chance`` is the accuracy of a guess. Values that are not finite are left out of the trends.
    """

    def __init__(
        self,
        total_steps: int | None,
        *,
        chance: float | None = None,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._chance, self._title, self._clock = total_steps, chance, title, clock
        self._start = clock()
        self._ends: deque[tuple[float, int]] = deque(maxlen=RECENT + 1)
        self._step: int | None = None
        self._history: dict[str, list[float]] = {metric: [] for _, metric, *_ in ROWS}
        self._evaluated: int | None = None
        self._warned: set[str] = set()
        self._plain_at = -math.inf
        self._pending: str | None = None
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        self._start = self._clock()
        self._ends.append((self._start, 0))
        if self._console.is_terminal:
            # Standard output is not used: it is for results.
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4, redirect_stdout=False
            )
            self._live.start(refresh=True)
        elif self._title:
            self._print(Text(one_line(self._title)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, report: StepReport) -> None:
        """Take one step's report."""
        self._step = report.step
        self._ends.append((self._clock(), self._ends[-1][1] + 1 if self._ends else 1))
        for metric, values in self._history.items():
            if math.isfinite(value := float(report.metrics.get(metric, math.nan))):
                values.append(value)
                self._evaluated = report.step if metric == ACCURACY else self._evaluated
        for warning in report.warnings:
            self._warn(report.step, warning)
        if self._live is None:
            self._plain_step(report)

    def note(self, text: str) -> None:
        """Print a line that stays, above the live display."""
        self._print(Text(visible(text)))

    def close(self) -> None:
        """Leave the last state on the screen; calling it twice is allowed."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._pending is not None:
            self._print(Text(self._pending))  # the last step is always in the log, also of a run that was stopped
        self._pending = None

    def _warn(self, step: int, warning: str) -> None:
        if (key := warning_key(warning)) not in self._warned:
            self._warned.add(key)
            self._print(Text.assemble((f"warning, step {step}: ", "yellow"), one_line(warning)))

    def _print(self, text: Text) -> None:
        # A log line is one line however long it is; a terminal wraps between words.
        self._console.print(text, highlight=False, soft_wrap=not self._console.is_terminal)

    def _pace(self) -> float:
        """Seconds per step by the clock, evaluations and saving included, over the last steps."""
        (begin, done), (end, now) = (self._ends[0], self._ends[-1]) if self._ends else ((0.0, 0), (0.0, 0))
        return (end - begin) / (now - done) if now > done else math.nan

    def _left(self) -> float:
        if self._total is None or self._step is None:
            return math.nan
        return max(self._total - self._step, 0) * self._pace()

    def _latest(self, metric: str) -> float | None:
        values = self._history[metric]
        return values[-1] if values else None

    def _plain_step(self, report: StepReport) -> None:
        """Keep this step's line, and print it if the last printed line is old enough."""
        self._pending = self._plain_line(report)
        # Without a fixed end the lines become rarer, so that their number grows only with the logarithm of the run.
        gap = self._total / PLAIN_LINES if self._total else report.step / 8
        # Steps with an evaluation may be printed early, but a run never has more than its limit of lines.
        early = any(name.startswith("eval/") for name in report.metrics)
        due = report.step - self._plain_at >= max(gap if early else gap * 1.5, 1.0)
        if due or report.step == self._total:
            self._print(Text(self._pending))
            self._pending, self._plain_at = None, report.step

    def _plain_line(self, report: StepReport) -> str:
        total = "" if self._total is None else f"/{self._total}"
        parts = [f"step {report.step:>{len(str(self._total or report.step))}}{total}"]
        for name, metric, unit, _, _ in ROWS:
            if metric == ACCURACY:
                parts += self._plain_accuracy(report.step)
            elif metric in report.metrics:
                parts.append(f"{name} {number(report.metrics[metric], unit)}")
        if math.isfinite(pace := self._pace()):
            parts.append(f"{number(pace)} s/step")
        if math.isfinite(left := self._left()) and left > 0:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _plain_accuracy(self, step: int) -> list[str]:
        """The latest accuracy, with its step if that is an earlier one, and chance."""
        if self._evaluated is None:
            return []
        beside = [] if self._evaluated == step else [f"at step {self._evaluated}"]
        beside += [] if self._chance is None else [f"chance {number(self._chance, 'share')}"]
        after = f" ({', '.join(beside)})" if beside else ""
        return [f"accuracy {number(self._latest(ACCURACY), 'share')}{after}".replace("\u00a0", " ")]

    def _render(self) -> Group:
        lines = [self._head(), self._bar(), *self._rows(), self._foot()]
        return Group(*(line for line in lines if line is not None))

    def _head(self) -> Table:
        head = Table.grid(expand=True)
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        total = "" if self._total is None else f"/{self._total}"
        step = "starting" if self._step is None else f"step {self._step}{total}"
        head.add_row(Text(one_line(self._title), "bold"), Text(step, "bold"))
        return head

    def _bar(self) -> Table:
        bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        elapsed, left = duration(self._clock() - self._start), self._left()
        when = f"{elapsed} elapsed" + (f", {duration(left)} left" if math.isfinite(left) and left > 0 else "")
        drawn = ProgressBar(
            total=self._total or None,
            completed=self._step or 0,
            pulse=self._total is None,
            complete_style="default",
            finished_style="default",
            style="bright_black",
        )
        bar.add_row(drawn, Text(when, "dim"))
        return bar

    def _rows(self) -> list[Table]:
        """One line a metric: name, value, value for comparison, trend; metrics that never occurred are omitted."""
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        for name, metric, unit, after, style in ROWS:
            if not self._history[metric]:
                continue
            beside = Text(after, "dim")
            if metric == ACCURACY and self._chance is not None:
                beside = Text(f"chance {number(self._chance, 'share')}", "dim")
            trend = Text(self._trend(metric), style)
            table.add_row(Text(name, style), Text(number(self._latest(metric), unit), "bold"), beside, trend)
        return [table] if table.row_count else []

    def _trend(self, metric: str) -> str:
        room = min(max(self._console.width - 50, 0), 40)
        unicode = self._console.encoding.lower().startswith("utf")
        return sparkline(self._history[metric], room) if unicode else ""

    def _foot(self) -> Text | None:
        parts = []
        if math.isfinite(pace := self._pace()):
            parts.append(f"{number(pace)} s/step")
        if count := len(self._warned):
            parts.append(f"{count} {'warning' if count == 1 else 'different warnings'}, above")
        return Text("  ".join(parts), "dim") if parts else None


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a row of block characters, lowest to highest.

    Longer series are averaged into ``width`` cells; a rare outlier does not flatten the rest.

    Example:
        >>> sparkline([0, 1, 2, 3], 8)
        '▁▃▆█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2 or width < 2:
        return ""
    cells = min(width, len(finite))
    edges = [round(place * len(finite) / cells) for place in range(cells + 1)]
    least, most = without_outliers(sorted(finite))
    finite = [min(max(value, least), most) for value in finite]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)
