"""What a run leaves in its folder while it trains, such that a kill at any moment loses nothing but time.

Each step's lines go to ``metrics.jsonl`` and ``traces.jsonl`` first, then the best model, then a checkpoint where one
is due. A resumed run takes the steps behind its checkpoint again and makes the same lines: those of the abandoned
stretch are cut off before.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from safetensors import SafetensorError

from covrl import files
from covrl.checkpoints.checkpoint import checkpoints, damage_of, save_checkpoint, save_trained, step_of
from covrl.config import to_toml
from covrl.errors import TrainingStoppedError, UserError
from covrl.records import StepReport
from covrl.reporting.sinks import JsonlSink, TracesSink, cut_behind
from covrl.training.run import Run
from covrl.training.undo import boundary_of, updates_of

WRITTEN = ("metrics.jsonl", "traces.jsonl", "checkpoints", "best", "non-finite")
"""What a run writes in its folder in place; everything else is replaced as a whole."""


class CannotSaveError(TrainingStoppedError):
    """The disk is full or not writable; the message names the last good checkpoint."""


class RunWriter:
    """Writes a run's folder, which the caller has locked.

    Of several processes each has one, and all call the same methods: each writes its part of the weights, and the
    first all the rest. What goes wrong for one is raised on all.

    Raises:
        UserError: the folder has gone on since the run was built, or its files are not what covrl wrote.
        CannotSaveError: the folder cannot be written.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder, self._root = run, folder, folder / "checkpoints"
        self.notes: list[str] = []
        self._lines: tuple[JsonlSink | TracesSink, ...] = ()
        self._boundary = boundary_of(run)
        with self._saving("before its first step"):
            run.world.on_rank0(self._open)

    def _open(self) -> None:
        run, folder = self._run, self._folder
        for name in WRITTEN:  # in a folder of somebody else's it could be any file of ours
            if (folder / name).is_symlink():
                raise UserError(f"{folder / name} is a link: a run writes inside its folder only; put the file there")
        self._set_aside_damaged()
        files.recover(folder / "best")
        self.notes += cut_behind(folder / "metrics.jsonl", run.done, every_step=True)
        cut_behind(folder / "traces.jsonl", run.done)
        files.write_file(folder / "config.toml", to_toml(run.config))
        self._lines = (JsonlSink(folder / "metrics.jsonl"), TracesSink(folder / "traces.jsonl"))

    def write(self, report: StepReport) -> None:
        """Take a step that is done: its lines, the best model, a checkpoint where one is due."""
        run = self._run
        with self._saving(f"after step {run.done}"):
            run.world.on_rank0(lambda: [lines.write(report) for lines in self._lines])
            self._keep_best(report)
            self._boundary = boundary_of(run)
            if run.done % run.config.checkpoint.every == 0:
                self._save()

    def last(self) -> Path | None:
        """The checkpoint of the last whole step, written if it is not there.

        None if the run stopped inside a step whose update had begun: the tensors of the last boundary are gone, and
        the run is resumed from the checkpoint before.
        """
        there = self._root / f"step-{self._boundary.done:06d}"
        if self._run.world.broadcast(there.is_dir()):
            return there
        if (self._run.done, updates_of(self._run)) != (self._boundary.done, self._boundary.updates):
            return None
        with self._saving(f"after step {self._boundary.done}"):
            return self._save()

    def close(self) -> None:
        """Close the files."""
        for lines in self._lines:
            lines.close()

    def _save(self) -> Path:
        self._run.world.on_rank0(lambda: [lines.sync() for lines in self._lines])
        return save_checkpoint(self._run, self._root, self._run.config.checkpoint.keep, self._boundary)

    def _keep_best(self, report: StepReport) -> None:
        """The best model so far, by held-out accuracy, then likelihood."""
        run = self._run
        if "eval/log_prob" not in report.metrics:
            return
        value = (report.metrics.get("eval/accuracy", 0.0), report.metrics["eval/log_prob"])
        if run.best is not None and not value > run.best:
            return
        best, world = self._folder / "best", run.world
        with files.discarded_if_not_done(files.beside(best)) if world.first else nullcontext():
            world.on_rank0(lambda: files.begin(best))
            save_trained(run, files.beside(best))
            world.on_rank0(lambda: files.finish(files.beside(best), best, {"step": report.step, "value": value}))
        run.best = value

    def _set_aside_damaged(self) -> None:
        """Checkpoints behind the run's step: damaged ones lose their name, a whole one means that this run is late."""
        for folder in [p for p in self._root.glob("step-*") if step_of(p) > self._run.done]:
            if damage_of(folder) is None:
                raise UserError(f"{self._folder}: the run is at step {step_of(folder)} already; resume it again")
            aside = folder.with_name(f"damaged-{folder.name}")
            files.discard(aside)
            folder.rename(aside)

    @contextmanager
    def _saving(self, when: str) -> Generator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            found = checkpoints(self._root)
            last = f"the last good checkpoint is {found[-1].name}" if found else "there is no checkpoint yet"
            raise CannotSaveError(f"{self._folder}: cannot write there {when} ({reason}); {last}") from error


def best_value(best: Path) -> tuple[float, float] | None:
    """The held-out figures of the best model that is there, as its manifest has them; None if there is none."""
    found = files.present(best)
    if found is None:
        return None
    try:
        accuracy, likelihood = map(float, files.manifest(found)["value"])
    except (ValueError, KeyError, TypeError):  # of an earlier version, which kept no manifest
        return None
    return accuracy, likelihood
