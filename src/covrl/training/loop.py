"""A run of steps, with the guards that look at each of them from outside."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from covrl.errors import BrokenModelError, NonFiniteError, TrainingStoppedError
from covrl.guards.watchdog import Watchdog
from covrl.models.text import trunk
from covrl.records import StepReport
from covrl.training.metrics import comes_later
from covrl.training.publish import look_at_generator
from covrl.training.run import Run
from covrl.training.step import take_step
from covrl.training.undo import leave_if_asked


def steps(run: Run) -> Iterator[StepReport]:
    """Reports of all remaining steps, one as each is done.

    Raises:
        TrainingStoppedError: the method or a guard sees no use in going on. What a step's metrics show is raised after
            its report was yielded; a step that was not taken leaves the run as it was before it.
        RunInterruptedError: ``run.stopping`` turned true inside a step; the run is as it was before the step.
    """
    with watched(run) as arm:
        if run.config.guards.publish_check_every and run.done < run.config.training.steps:
            try:
                look_at_generator(run, first=True)
            except BrokenModelError as error:
                raise NonFiniteError(f"before step {run.done + 1}: {error}") from error
        if run.guard.stale:
            raise TrainingStoppedError(f"stopped before step {run.done + 1}: {run.guard.stale}")
        while run.done < run.config.training.steps:
            arm(run.done + 1)
            report = take_step(run)
            skipped = "guard/skipped" in report.metrics
            reason = run.guard.stale or (None if skipped else _reason_to_stop(run, report))
            yield report  # a checkpoint of this step holds what the guards saw of it
            if reason:
                raise TrainingStoppedError(f"stopped after step {report.step}: {reason}")


def _reason_to_stop(run: Run, report: StepReport) -> str | None:
    diverged = run.guard.divergence.check(report.metrics, lambda name: comes_later(run, name))
    return diverged or run.algorithm.stop_reason(report.metrics)


@contextmanager
def watched(run: Run) -> Generator[Callable[[int], None]]:
    """With the watchdog, whose ``arm`` is yielded, and with a look at ``run.stopping`` before each forward."""
    seconds = run.config.guards.step_deadline_s
    dog = Watchdog(seconds, run.folder) if seconds else None

    def look(module: object, given: object) -> None:
        del module, given
        leave_if_asked(run)

    trunks = [trunk(model.model) for model in run.models.values()] if run.stopping else []
    hooks = [trunk.register_forward_pre_hook(look) for trunk in trunks]
    try:
        yield dog.arm if dog else lambda _: None
    finally:
        for hook in hooks:
            hook.remove()
        if dog:
            dog.disarm()
