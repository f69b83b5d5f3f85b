"""The folder of a run: made, held by one process at a time, and the model that is in it."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from covrl.errors import RunBusyError, UserError
from covrl.training import durable
from covrl.training.checkpoint import newest_whole


def new_run_folder(folder: Path) -> None:
    """Create the folder of a run.

    Raises:
        UserError: it cannot be written, or holds a run already.
    """
    if (folder / "config.toml").exists():
        raise UserError(f"{folder}: there is a run in this folder already; resume it, or choose another with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Hold the folder's lock, which the system lets go of when the process ends, however it ends.

    Raises:
        RunBusyError: another process holds it.
        UserError: the folder cannot be written, or its file system has no locks.
    """
    try:
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(f"{folder}: a run is going on in this folder; wait for it or stop it") from None
        except OSError as error:
            raise UserError(f"{folder}: cannot lock {lock.name}: {error.strerror}") from None
        yield


def model_of_run(folder: Path) -> Path:
    """The best model of a run's folder, or its newest.

    Raises:
        UserError: the run has no model yet.
    """
    best = durable.present(folder / "best")
    if best is not None:
        return best
    found, damaged = newest_whole(folder / "checkpoints")
    if found is None:
        said = f"{damaged[0][0]} is damaged: {damaged[0][1]}" if damaged else f"{folder}: the run has no model yet"
        raise UserError(said)
    return found / "model"
