"""What `covrl push` does once its options are read."""

from __future__ import annotations

from pathlib import Path

from covrl.config import RunConfig, check, read_toml
from covrl.errors import UserError
from covrl.hub.push import push


def run_push(run: Path, repo: str, private: bool | None, license: str) -> None:
    """Push the run's model and print its address; ``private`` that is not given is the run's own setting.

    Raises:
        UserError: no run there, or it cannot be pushed; one line.
    """
    file = run / "config.toml"
    if not file.is_file():
        raise UserError(f"{run}: no run is in this folder (it has no config.toml)")
    own = check(RunConfig, read_toml(file), where=f"{file}: ").hub.private
    print(push(run, repo, own if private is None else private, license, "push"))
