"""The command line in tests: in the test's own process, or in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from covrl.cli.app import main


class Found(NamedTuple):
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Covrl = Callable[..., Found]
"""The fixture ``covrl`` of ``conftest.py``: ``covrl("train", "--config", "run.toml")``."""


def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> Found:
    """Run a command without the seconds that a new process takes to import torch.

    What libraries print past Python's own streams is in what is found.
    """
    monkeypatch.setattr(sys, "argv", ["covrl", *arguments])
    capfd.readouterr()
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Found(code, *capfd.readouterr())


def process(*arguments: str, cwd: Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m covrl`` as a user starts it, with ``given`` on standard input."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "covrl", *arguments],
        cwd=cwd,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
