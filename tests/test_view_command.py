"""``covrl view``: what it refuses, where it serves, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from live_runs import group, new_run, record, step, trace

from covrl.cli.app import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = new_run(tmp_path / "run")
    record(folder, [step(1, group("p", trace("a thought")))])
    return folder


def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 2
) -> str:
    """The one line with which the command refuses."""
    monkeypatch.setattr(sys, "argv", ["covrl", "view", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert (stop.value.code, out) == (code, "")
    assert err.count("\n") == 1
    return err


def test_one_line_for_what_cannot_be_shown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(run)
    for arguments, said in {
        (tmp_path / "nowhere", "--live"): "no such folder; give the folder of a run",
        (tmp_path / "empty", "--live"): "not the folder of a run, which holds config.toml",
        (run, run, "--live"): "are the same run",
        (run, tmp_path / "link", "--live"): "are the same run",
        (run, tmp_path / "empty", "--live"): "not the folder of a run",
        (run, run, run, "--live"): "one run or two side by side, not 3",
        (run, run): "go with --live",
        (run, "--port", "8000"): "go with --live",
        (run, "--live", "--port", "70000"): "--port",
        (run, "--live", "--port", "x"): "--port",
        ("--live",): "RUN",
    }.items():
        assert said in refused(monkeypatch, capfd, *arguments), arguments


def test_a_port_that_is_taken(run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(monkeypatch, capfd, run, "--live", "--port", port)
    assert f"port {port} of 127.0.0.1 cannot be had" in said


def test_it_serves_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "covrl", "view", str(run), "--live"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    try:
        with urllib.request.urlopen(f"{url}traces", timeout=60) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "covrl: run" in answer.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[1:] in ([], ["covrl: interrupted"])
    assert sorted(os.listdir(run)) == ["config.toml", "metrics.jsonl", "traces.jsonl"], "nothing is written to the run"


def test_without_live_it_writes_the_report(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["covrl", "view", str(run)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    assert capfd.readouterr().out.strip() == str(run / "report.html")
    assert "What is p?" in (run / "report.html").read_text()
