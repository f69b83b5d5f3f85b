"""What `covrl train` and `covrl warm-format` do once their options are read."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from covrl import api, files
from covrl.checkpoints.checkpoint import leftovers, save_trained
from covrl.cli.show import show_dry_run, show_model_path
from covrl.config import RunConfig, config_from
from covrl.distributed.processes import is_lost_peer
from covrl.errors import RunBusyError, TrainingStoppedError, UserError
from covrl.models.compute import cannot_compile, is_compile_error
from covrl.reporting.folder import summary_of
from covrl.reporting.html import write_report
from covrl.reporting.terminal import Progress
from covrl.reporting.trackers import check_trackers, make_trackers
from covrl.training.dry_run import dry_run
from covrl.training.run import Run
from covrl.training.warm_format import roles_named, solved_problems, warm_format


def run_train(
    config: RunConfig | None,
    folder: Path,
    rehearsal: bool,
    algorithm: str | None,
    reward: Sequence[str] | None,
    engine: str | None,
) -> None:
    """Begin a run with ``config`` in ``folder``, resume the one that is there (None), or make a dry run.

    ``engine`` is that of a resumed run, in the place of the one that its file names. Of several processes only the
    first prints and reports.
    """
    if config is not None:
        run = api.build(config)
    else:
        run = api.resume(folder, reward=reward, algorithm=algorithm, engine=engine)
    if rehearsal:
        _rehearse(run)
        return
    check_trackers(run.config.report.trackers)
    api.check_can_push(run)
    folder = run.world.broadcast(folder)
    if config is not None:
        run.world.on_rank0(lambda: api.new_run_folder(folder))
    elif run.done >= run.config.training.steps:
        if run.world.first:
            _nothing_left(run, folder)
        run.world.close()
        return
    else:
        run.world.on_rank0(lambda: _check_free(folder))  # before any progress is printed
    if not run.world.first:  # another rank works in the same way, but neither prints nor writes
        with _continuing(folder):
            api.train_run(run, folder)
        run.world.close()
        return
    trained = _shown(run, folder)
    run.world.close()
    console = Console()
    if _report(folder):
        console.print(f"report {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False, markup=False)
    show_model_path(console, trained.best or trained.last)


def _rehearse(run: Run) -> None:
    found = dry_run(run)
    show_dry_run(Console(), found, run.prompts)
    complaint = found.complaint()
    if complaint:
        raise UserError(complaint)


def _shown(run: Run, folder: Path) -> api.Trained:
    """Train with progress and trackers; a run that ends early has a report."""
    progress = Progress(run.config.training.steps, title=f"{run.config.algorithm.name}: {folder}")
    trackers = make_trackers(run.config, folder)
    try:
        with progress, _continuing(folder):
            return api.train_run(run, folder, [progress, *trackers], progress.note)
    except RunBusyError:
        raise
    except BaseException:
        if (folder / "metrics.jsonl").exists():
            _report(folder)
        raise


@contextmanager
def _continuing(folder: Path) -> Generator[None]:
    """Add to an error that ends a run early how to continue; the same on all ranks, so that it is printed once."""
    try:
        yield
    except TrainingStoppedError as error:
        raise type(error)(f"{error}; continue with: covrl train --resume {folder}") from error
    except Exception as error:
        if is_compile_error(error):  # in a backward pass; a forward pass says so itself
            said = cannot_compile("the backward pass", error)
            raise TrainingStoppedError(f"{said}; continue with: covrl train --resume {folder}") from error
        if not is_lost_peer(error):
            raise
        said = "another process of the run has ended, and said why; then continue with: covrl train --resume"
        raise TrainingStoppedError(f"{said} {folder}") from error


def _check_free(folder: Path) -> None:
    with api.alone_in(folder):
        pass


def _nothing_left(run: Run, folder: Path) -> None:
    print(f"{folder}: all {run.done} steps are done; there is nothing left to resume")
    if left := leftovers(folder / "checkpoints"):  # killed at the very end
        with api.alone_in(folder):
            for path in left:
                files.discard(path)
    if not (folder / "report.html").exists():
        _report(folder)


def _report(folder: Path) -> bool:
    """Write the run's report; if the disk does not take it, print a note: the run itself is not affected."""
    try:
        write_report(folder / "report.html", summary_of(folder))
    except OSError as error:
        print(f"covrl: {folder / 'report.html'} cannot be written: {error.strerror}", file=sys.stderr)
        return False
    return True


def run_warm_format(
    config: Path, out: Path, settings: Sequence[str], steps: int, rate: float, until: float, every: int, roles: str
) -> None:
    """Teach the base of ``config`` the format under the prompts of ``roles``, and save it in ``out``."""
    taught = roles_named(roles)
    run = api.build(config_from(config, settings))
    solved_problems(run)
    api.new_run_folder(out)
    valid = 0.0
    for lesson in warm_format(run, steps, rate, until, every, taught):
        valid = lesson.valid
        several = len(lesson.by_prompt) > 1
        parts = ", ".join(f"{name} {share:.0%}" for name, share in lesson.by_prompt.items())
        print(
            f"step {lesson.step}/{steps}  loss {lesson.loss:.3f} nats a token  valid traces {valid:.0%}"
            + f" ({parts})" * several,
            file=sys.stderr,
            flush=True,
        )
    save_trained(run, out)
    show_model_path(Console(), out)
    if valid < until:
        raise TrainingStoppedError(f"only {valid:.0%} of the traces are valid after {steps} steps; go on with more")
