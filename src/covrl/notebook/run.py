"""A run's folder as an object, to look at in Python and in notebooks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covrl.config import read_toml
from covrl.errors import UserError
from covrl.notebook.frames import metrics_frame, traces_frame
from covrl.notebook.view import Heading, Shown, charts, overview
from covrl.records import StepReport
from covrl.reporting.folder import summary_of
from covrl.reporting.format import duration
from covrl.reporting.html import write_report
from covrl.reporting.sinks import read_steps
from covrl.reporting.text import one_line

if TYPE_CHECKING:
    from pandas import DataFrame


class Run:
    """A run that ended, or that goes on in this process or another one; its files are read anew at each look.

    Example:
        >>> run = covrl.Run("runs/first")
        >>> run.metrics["eval/accuracy"].dropna()
        >>> run.traces.query("step == 20 and reward > -1")
        >>> run.plot("reward/*")

    Of a run that was resumed each step counts once, as it was taken last. A line that is being written is left out.
    In a notebook the run shows itself: how far it is, its figures and charts, and some of its traces.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.toml").is_file():
            raise UserError(f"{self.folder}: there is no run in this folder: it has no config.toml")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings, as ``config.toml`` has them."""
        return read_toml(self.folder / "config.toml")

    @property
    def metrics(self) -> DataFrame:
        """The metrics, one row a step (the index) and one column a metric; NaN where a step has none.

        Raises:
            UserError: pandas is not installed (extra ``notebook``), or a line of the file is damaged.
        """
        return metrics_frame(self.steps())

    @property
    def traces(self) -> DataFrame:
        """The traces of the steps that kept theirs, one row a trace (``report.traces_every``, ``groups_shown``).

        ``source`` is the prompt under which it was sampled, ``rollout`` its place in its problem's group, ``reward/…``
        what each of your reward functions gave.

        Raises:
            UserError: pandas is not installed (extra ``notebook``), or a line of the file is damaged.
        """
        return traces_frame(self.steps())

    @property
    def model(self) -> Path:
        """The best model so far, else the newest: a plain Hugging Face folder.

        Raises:
            UserError: there is none yet.
        """
        from covrl.checkpoints.folder import model_of_run  # it imports torch

        return model_of_run(self.folder)

    def steps(self) -> list[StepReport]:
        """What each step reported, its traces too, as records; this needs no pandas."""
        metrics = self.folder / "metrics.jsonl"
        return read_steps(metrics, self.folder / "traces.jsonl") if metrics.exists() else []

    def plot(self, *metrics: str) -> Shown:
        """Charts of these metrics (``"reward/*"`` names several), or of the most telling ones.

        Metrics that belong together share a chart, with a sentence on what is healthy.

        Raises:
            UserError: no metric is called so; the message names near ones.
        """
        return charts(self.steps(), metrics)

    def report(self) -> Path:
        """Write the report (``report.html``, docs/reading-a-report.md) into the folder, and say where it is.

        Raises:
            UserError: the run has recorded no step yet.
        """
        path = self.folder / "report.html"
        write_report(path, summary_of(self.folder))
        return path

    def __repr__(self) -> str:
        steps = self.steps()
        return one_line(f"<covrl run {self.folder}: {about(self.settings)}, {self._state(steps)}>")

    def _repr_html_(self) -> str:
        steps = self.steps()
        done, total = _last(steps), self._total()
        heading = Heading(str(self.folder), about(self.settings), self._state(steps), done / total if total else None)
        return str(overview(heading, steps))

    def _total(self) -> int:
        total = _section(self.settings, "training").get("steps")
        return total if isinstance(total, int) else 0

    def _state(self, steps: list[StepReport]) -> str:
        done, total = _last(steps), self._total()
        state = f"{done} of {total} steps" if total else f"step {done}"
        if not steps or done >= total:
            return state
        seconds = max(time.time() - (self.folder / "metrics.jsonl").stat().st_mtime, 0)
        return f"{state}; the last was written {duration(seconds)} ago"


def about(settings: Mapping[str, Any]) -> str:
    """The method of a run, and the problems that its settings name, if it is one source."""
    method = _section(settings, "algorithm").get("name", "no method")
    train = _section(settings, "problems").get("train")
    return f"{method} on {train}" if isinstance(train, str) and train else str(method)


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, Mapping) else {}


def _last(steps: list[StepReport]) -> int:
    return steps[-1].step if steps else 0
