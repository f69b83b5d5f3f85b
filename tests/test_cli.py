"""The command line as a user meets it: exit codes, one-line errors, the JSON line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from covrl.cli import main
from covrl.records import StepReport
from covrl.training.loop import Run

QUICK = ["quickstart", "--json", "--steps", "1", "--set", "evaluation.every=0"]


def covrl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "covrl", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def in_process(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The same, without the seconds that a new process takes to import torch."""
    monkeypatch.setattr(sys, "argv", ["covrl", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_help_lists_the_commands(tmp_path: Path) -> None:
    found = covrl("--help", cwd=tmp_path)
    assert found.returncode == 0
    assert "quickstart" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--set", "training.lerning_rate=1"],
            "unknown setting training.lerning_rate: did you mean training.learning_rate?",
        ),
        (["--set", "algorithm.betta=1"], "unknown setting betta: did you mean beta?"),
        (["--set", "algorithm.name=grppo"], "unknown method 'grppo'"),
        (["--set", "training.steps=-1"], "setting training.steps"),
        (["--set", "problems.task=digit"], "unknown task 'digit': did you mean digits?"),
        (["--set", "problems.train=tests"], "task digits has no split 'tests'"),
        (["--set", "model.path=/nowhere/at/all"], "cannot load '/nowhere/at/all'"),
        (["--set", "model.path=covrl:digit"], "'covrl:digit' is not shipped; there is covrl:digits"),
        (["--set", "model.device=gpu"], "model.device: gpu"),
        (["--set", "nonsense"], "expected section.key=value"),
        (["--out", "/proc/nowhere"], "/proc/nowhere: cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_process(monkeypatch, *QUICK, *arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "Traceback" not in found.err
    last = found.err.strip().splitlines()[-1]
    assert last.startswith("covrl: ")
    assert said in last
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = covrl(*QUICK, "--set", f"model.path={tmp_path / 'empty'}", cwd=tmp_path)
    assert found.returncode == 2
    assert "holds no *.safetensors weights" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_short_quickstart_prints_one_json_line_and_writes_its_folder(tmp_path: Path) -> None:
    found = covrl(*QUICK, "--out", "run", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    result = json.loads(line)
    assert set(result) == {"base", "trained", "chance", "steps", "seconds", "report"}
    assert set(result["trained"]) >= {"greedy", "sampled", "sound"}
    assert result["steps"] == 1
    assert result["base"]["greedy"] <= 0.10
    assert result["base"]["sampled"] <= 0.10
    assert Path(result["report"]).is_file()
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert files >= {
        "config.toml",
        "metrics.jsonl",
        "traces.jsonl",
        "report.html",
        "model/model.safetensors",
        "model/config.json",
    }
    again = covrl(*QUICK, "--out", "run", cwd=tmp_path)
    assert again.returncode == 2
    assert "there is a run in this folder already" in again.stderr


def test_an_interrupt_keeps_what_was_done_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the third step: model, metrics and a report are there, one line says so, exit code 130."""
    monkeypatch.chdir(tmp_path)
    step = Run.step

    def interrupted(run: Run) -> StepReport:
        if run.done == 2:
            raise KeyboardInterrupt
        return step(run)

    monkeypatch.setattr(Run, "step", interrupted)
    small = ["--set", "training.problems_per_step=2", "--set", "training.steps=9", "--out", "run"]
    assert in_process(monkeypatch, *QUICK, *small) == 130
    assert capsys.readouterr().err.strip().endswith("covrl: interrupted after step 2; what was done is in run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert "interrupted after step 2" in (tmp_path / "run/report.html").read_text()
