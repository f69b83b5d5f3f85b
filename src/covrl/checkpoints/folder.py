"""The folder of a run: made, and the model that is in it."""

from __future__ import annotations

from pathlib import Path

from covrl import files
from covrl.checkpoints.checkpoint import newest_whole
from covrl.errors import UserError


def new_run_folder(folder: Path) -> None:
    """Create the folder of a run.

    Raises:
        UserError: it cannot be written, or holds a run already.
    """
    if (folder / "config.toml").exists():
        raise UserError(f"{folder}: there is a run in this folder already; resume it, or choose another with --out")
    try:
        probe = files.made(folder) / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None


def model_of_run(folder: Path) -> Path:
    """The best model of a run's folder, or its newest.

    Raises:
        UserError: the run has no model yet.
    """
    best = files.present(folder / "best")
    if best is not None:
        return best
    found, damaged = newest_whole(folder / "checkpoints")
    if found is None:
        said = f"{damaged[0][0]} is damaged: {damaged[0][1]}" if damaged else f"{folder}: the run has no model yet"
        raise UserError(said)
    return found / "model"
