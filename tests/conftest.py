"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import os

import pytest
from commands import Covrl, here
from hypothesis import settings

# No test asks the network: without this a model that is not there is looked for on the hub, again and again.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Known draws and no deadline, so that a red run is never chance or a busy machine; `make fuzz` looks for new draws.
settings.register_profile("known", derandomize=True, deadline=None)
settings.register_profile("fuzz", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("known")


@pytest.fixture
def covrl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Covrl:
    """Runs a command in the test's process and gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: here(monkeypatch, capfd, *arguments)
