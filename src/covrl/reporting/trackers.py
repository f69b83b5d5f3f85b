"""Sinks of other trackers: TensorBoard, Weights & Biases, trackio, MLflow. Each is an extra, imported when it is used.

A run is the same run in a tracker however often it is resumed: ``trackers.json`` in its folder keeps the id, the
project and the name that it was begun with, and is written before a tracker hears of the run. Steps after a checkpoint
are taken again on a resume and, on a CPU, come out the same, so that a tracker that has them already loses nothing.
"""

from __future__ import annotations

import json
import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from covrl import files
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.extras import install_command
from covrl.records import StepReport
from covrl.reporting.sinks import Sink
from covrl.secrets import redacted

MODULES = {"tensorboard": "torch.utils.tensorboard"}
"""Modules that are not called like their trackers."""

FILE = "trackers.json"
"""What the run is called in trackers, in its folder."""

COLUMNS = ("problem", "question", "answer", "rollout", "source", "finish", "verdict", "reward", "advantage", "trace")
"""The columns of a table of traces."""


def check_trackers(names: Sequence[str]) -> None:
    """Check before anything is written that the packages of all trackers are installed.

    Raises:
        UserError: one is not installed; names the extra.
    """
    for name in names:
        _package(name)


def _package(name: str) -> Any:
    try:
        return import_module(MODULES.get(name, name))
    except ImportError:
        raise UserError(f"report.trackers: {name} is not installed: {install_command(name)}") from None


class Identity(NamedTuple):
    """What a run is called in trackers, and in which of them it was begun.

    Example:
        >>> Identity("5f0c2a…", project="covrl", name="first", begun=("wandb",))
    """

    id: str
    project: str
    name: str
    begun: tuple[str, ...] = ()


def identity_of(folder: Path, config: RunConfig) -> Identity:
    """What the run of ``folder`` is called: as it was begun, else by its settings.

    Raises:
        UserError: the file that keeps it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        report = config.report
        return Identity(uuid.uuid4().hex, report.tracker_project, report.tracker_name or folder.resolve().name)
    try:
        kept = json.loads(path.read_bytes())
        found = Identity(*(str(kept[key]) for key in ("id", "project", "name")), tuple(map(str, kept["begun"])))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not what covrl wrote ({error}); remove it, and trackers open a new run") from None
    if not re.fullmatch(r"[0-9a-f]{32}", found.id):
        raise UserError(f"{path}: id is not 32 hexadecimal digits; remove it, and trackers open a new run")
    return found


def make_trackers(config: RunConfig, folder: Path) -> list[Sink]:
    """The trackers of the settings, logging the run of ``folder``; one that was begun there goes on.

    Raises:
        UserError: the package of a tracker is not installed (names the extra), or it cannot begin a run.
    """
    made: list[Sink] = []
    for name in config.report.trackers:
        module = _package(name)
        if name == "tensorboard":
            made.append(TensorBoard(module.SummaryWriter(str(folder / "tensorboard"))))
            continue
        known = identity_of(folder, config)
        begun = tuple(dict.fromkeys((*known.begun, name)))
        files.write_file(folder / FILE, json.dumps(known._replace(begun=begun)._asdict(), indent=1) + "\n")
        try:
            made.append(BEGIN[name](module, known, config))
        except Exception as error:  # each has errors of its own, and those of its transport
            for sink in made:
                sink.close()
            said = (redacted(str(error)).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"report.trackers: {name} cannot begin its run: {said}") from error
    return made


def _begin_wandb(module: Any, known: Identity, config: RunConfig) -> Sink:
    """A run of Weights & Biases by its id, which goes on where it was begun before."""
    run = module.init(
        project=known.project,
        name=known.name,
        id=known.id,
        resume="allow",
        tags=list(config.report.tracker_tags),
        config=config.model_dump(mode="json"),
    )
    return LogTracker(run, module.Table)


def _begin_trackio(module: Any, known: Identity, config: RunConfig) -> Sink:
    """A run of trackio, which knows its runs by their names; a new one never continues another's of the same name."""
    resume = "allow" if "trackio" in known.begun else "never"
    settings = config.model_dump(mode="json")
    return LogTracker(module.init(project=known.project, name=known.name, resume=resume, config=settings))


def _begin_mlflow(module: Any, known: Identity, config: RunConfig) -> Sink:
    return MLflow(module, known, config)


BEGIN = {"wandb": _begin_wandb, "trackio": _begin_trackio, "mlflow": _begin_mlflow}
"""How a run of each tracker is begun or goes on, from its module, the run's names and its settings."""


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
    """A run object with ``log(metrics, step=…)`` and ``finish()``, as Weights & Biases and trackio have it.

    ``table`` makes what the tracker shows as a table, from ``columns`` and ``data``; None: no tables of traces.
    """

    def __init__(self, run: Any, table: Any = None) -> None:
        self._run, self._table = run, table

    def write(self, report: StepReport) -> None:
        logged: dict[str, Any] = dict(_finite(report))
        if report.groups and self._table is not None:
            logged["traces"] = self._table(columns=list(COLUMNS), data=trace_rows(report))
        self._run.log(logged, step=report.step)

    def close(self) -> None:
        self._run.finish()


RUN_TAG = "covrl.run"
"""The tag by which a run is found again in MLflow, whose own ids are given by its server."""

IN_A_BATCH, LONGEST_PARAM = 100, 500
"""What MLflow takes in one request, and of one value, at any version."""


class MLflow:
    """A run of MLflow through its client: metrics, settings as parameters, tags, tables of traces as artifacts.

    Tables have the form of ``mlflow.log_table``, and so does the page that shows them; that function itself wants
    pandas, which mlflow-skinny does not bring. The run ends as FINISHED where all steps are done, else as KILLED.
    """

    def __init__(self, module: Any, known: Identity, config: RunConfig) -> None:
        self._entities, self._steps, self._last = module.entities, config.training.steps, 0
        self._client = module.MlflowClient()
        found = self._client.get_experiment_by_name(known.project)
        experiment = found.experiment_id if found else self._client.create_experiment(known.project)
        runs = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{known.id}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {RUN_TAG: known.id} | dict.fromkeys(config.report.tracker_tags, "")
            self._run = self._client.create_run(experiment, tags=tags, run_name=known.name).info.run_id
        settings = config.model_dump(mode="json")
        self._client.log_dict(self._run, settings, "settings.json")
        self._log_params(settings, set(runs[0].data.params) if runs else set())

    def _log_params(self, settings: Mapping[str, Any], there: set[str]) -> None:
        """Log settings that are not there yet; MLflow lets no parameter change, and ``settings.json`` has them all."""
        new = [
            self._entities.Param(f"{section}.{key}", str(value)[:LONGEST_PARAM])
            for section, part in settings.items()
            for key, value in (part.items() if isinstance(part, Mapping) else [])
            if f"{section}.{key}" not in there
        ]
        for start in range(0, len(new), IN_A_BATCH):
            self._client.log_batch(self._run, params=new[start : start + IN_A_BATCH])

    def write(self, report: StepReport) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_named(n), v, now, report.step) for n, v in _finite(report).items()]
        for start in range(0, len(metrics), IN_A_BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + IN_A_BATCH])
        if report.groups:
            table = {"columns": list(COLUMNS), "data": trace_rows(report)}
            self._client.log_dict(self._run, table, f"traces/step-{report.step:06d}.json")
        self._last = report.step

    def close(self) -> None:
        done = self._last >= self._steps
        self._client.set_terminated(self._run, status="FINISHED" if done else "KILLED")


def trace_rows(report: StepReport) -> list[list[Any]]:
    """A row for each trace that the report shows, with the values of :data:`COLUMNS`."""
    return [
        [
            group.problem.id,
            group.problem.question,
            group.problem.answer,
            trace.index,
            trace.source,
            trace.finish,
            trace.correct,
            _number(trace.reward),
            _number(trace.advantage),
            trace.text,
        ]
        for group in report.groups
        for trace in group.traces
    ]


def _named(metric: str) -> str:
    """The name with what MLflow refuses in one replaced."""
    return re.sub(r"[^\w.\- /]", "_", metric, flags=re.ASCII)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _finite(report: StepReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if math.isfinite(value)}
