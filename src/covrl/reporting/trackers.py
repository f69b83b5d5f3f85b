"""Sinks of other trackers: TensorBoard, Weights & Biases, trackio. Each is an extra, imported when it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from covrl.errors import UserError
from covrl.extras import install_command
from covrl.records import StepReport
from covrl.reporting.sinks import Sink


def check_trackers(names: Sequence[str]) -> None:
    """Check before anything is written that the packages of all trackers are installed.

    Raises:
        UserError: one is not installed; names the extra.
    """
    for name in names:
        _package(name)


def _package(name: str) -> Any:
    try:
        return import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError:
        raise UserError(f"report.trackers: {name} is not installed: {install_command(name)}") from None


def make_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """The trackers of those names, logging the run of ``folder``.

    Raises:
        UserError: the package of a tracker is not installed; names the extra.
    """
    made: list[Sink] = []
    for name in names:
        module = _package(name)
        if name == "tensorboard":
            made.append(TensorBoard(module.SummaryWriter(str(folder / "tensorboard"))))
        else:
            made.append(LogTracker(module.init(project="covrl", name=folder.name, config=dict(config))))
    return made


LAYOUT = {
    "covrl": {
        "training reward and held-out accuracy": ["Multiline", ["reward/prior", "eval/sampled"]],
        "reward watch: rises since the same evaluation": ["Multiline", ["watch/reward_rise", "watch/accuracy_gain"]],
    }
}
"""Charts of TensorBoard's "custom scalars" that hold more than one metric."""


class TensorBoard:
    """Scalars by metric name, through torch's own writer."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        writer.add_custom_scalars(LAYOUT)

    def write(self, report: StepReport) -> None:
        for name, value in _finite(report).items():
            self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        self._writer.close()


class LogTracker:
    """A run object with ``log(metrics, step=…)`` and ``finish()``, as Weights & Biases and trackio have it."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, report: StepReport) -> None:
        self._run.log(_finite(report), step=report.step)

    def close(self) -> None:
        self._run.finish()


def _finite(report: StepReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if math.isfinite(value)}
