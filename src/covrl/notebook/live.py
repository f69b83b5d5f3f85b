"""The progress of a run in the cell that trains it.

One display is made and then updated in place (``display_id``), so that the notebook's file keeps its last state alone,
and no widget has to be installed: JupyterLab, VS Code, Colab and nbclient all know it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from covrl.errors import TrainingStoppedError, UserError
from covrl.notebook.view import Heading, Shown, overview
from covrl.records import StepReport
from covrl.reporting.format import duration, number

SHORTEST_S, LONGEST_S = 1.0, 10.0
"""Limits of the time between two drawings; in between it grows with the run, to one per cent of its time so far."""

SHARE = 0.05
"""The most of a run's time that drawing may take."""


class Display(Protocol):
    """What IPython gives for a display that can be updated."""

    def update(self, shown: Shown) -> None:
        """Show this in the place of what was shown."""
        ...


def in_notebook() -> bool:
    """Whether this code runs in a kernel of Jupyter's; IPython is not imported for the answer."""
    loaded = sys.modules.get("IPython")
    shell = loaded.get_ipython() if loaded is not None and hasattr(loaded, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def new_display(shown: Shown) -> Display:
    """A display in the cell that is running."""
    from IPython.display import display

    return display(shown, display_id=True)


class LiveView:
    """Shows a run in a cell while it trains: a sink for its reports, and a context that says how it ended.

    Example:
        >>> with LiveView("runs/first", "covrl", total=40) as live:
        ...     train_run(run, folder, [live], live.note)

    ``earlier`` are the reports of the steps before a resume.
    """

    def __init__(
        self,
        title: str,
        about: str,
        total: int,
        earlier: Sequence[StepReport] = (),
        display: Callable[[Shown], Display] = new_display,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._about, self._total, self._clock = title, about, total, clock
        self._steps = list(earlier)
        self._begun_at = len(self._steps)
        self._notes: list[str] = []
        self._end = ""
        self._start = clock()
        self._due = -math.inf
        self._drawing = False
        self._show = display
        self._display: Display | None = None

    def __enter__(self) -> LiveView:
        self._start = self._clock()
        self._draw()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TrainingStoppedError | UserError):
            self._end = str(error)
        elif kind is not None:
            self._end = f"ended by {kind.__name__}" + (f": {error}" if str(error) else "")
        self._draw()

    def write(self, report: StepReport) -> None:
        """Take one step's report; it is shown when the last drawing is old enough."""
        self._steps.append(report)
        if self._clock() >= self._due:
            self._draw()

    def note(self, text: str) -> None:
        """Show a line at once. A signal's handler may call it, in the middle of a drawing too."""
        self._notes.append(text)
        self._draw()

    def close(self) -> None:
        """Show the last step; what comes at the end of the context is shown then."""
        self._draw()

    def _draw(self) -> None:
        if self._drawing:  # a signal came: the drawing at the end shows its note
            return
        self._drawing = True
        try:
            begun = self._clock()
            shown = Shown(overview(self._heading(), self._steps, self._notes), self._line())
            if self._display is None:
                self._display = self._show(shown)
            else:
                self._display.update(shown)
            now = self._clock()
            gap = min(max((now - self._start) / 100, SHORTEST_S), LONGEST_S)
            self._due = now + max(gap, (now - begun) / SHARE)
        finally:
            self._drawing = False

    def _heading(self) -> Heading:
        done = self._done()
        return Heading(self._title, self._about, self._state(), done / self._total if self._total else None, self._end)

    def _line(self) -> str:
        return " ".join(filter(None, (f"{self._title}: {self._state()}", self._end)))

    def _done(self) -> int:
        return self._steps[-1].step if self._steps else 0

    def _state(self) -> str:
        elapsed = self._clock() - self._start
        taken, left = len(self._steps) - self._begun_at, self._total - self._done()
        if not taken:
            return "starting"
        parts = [f"step {self._done()} of {self._total}", f"{duration(elapsed)} elapsed"]
        if left > 0 and not self._end:
            parts += [f"{duration(left * elapsed / taken)} left"]
        return " · ".join([*parts, f"{number(elapsed / taken)} s a step"])
