"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import pytest
from commands import Covrl, here


@pytest.fixture
def covrl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Covrl:
    """Runs a command in the test's process and gives its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: here(monkeypatch, capfd, *arguments)
