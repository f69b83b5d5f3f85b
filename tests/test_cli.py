"""The command line as a user meets it: exit codes, one-line errors, the JSON line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import Covrl, process

import covrl
from covrl.quickstart.run import Measured, measure
from covrl.records import Problem
from covrl.training.rollouts import sample
from covrl.training.run import Run

QUICK = ["quickstart", "--json", "--steps", "1", "--set", "evaluation.every=0"]


def test_help_lists_the_commands(tmp_path: Path) -> None:
    found = process("--help", cwd=tmp_path)
    assert found.returncode == 0
    assert "quickstart" in found.stdout
    assert process("--version", cwd=tmp_path).stdout == f"covrl {covrl.__version__}\n"


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
        (["--set", "problems.train=digit:train"], "digit:train"),
        (["--set", "problems.train=digits:tests"], "no split 'tests'"),
        (["--set", "model.path=/nowhere/at/all"], "there is no folder /nowhere/at/all"),
        (["--set", "model.path=covrl:digit"], "'covrl:digit' is not shipped; there is covrl:digits"),
        (["--set", "model.device=gpu"], "model.device: gpu"),
        (["--set", "nonsense"], "expected section.key=value"),
        (["--task", "digit"], "no recipe 'digit'; there are digits, animals, countdown"),
        (["--out", "/proc/nowhere"], "/proc/nowhere: cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = covrl(*QUICK, *arguments)
    assert (found.code, found.out) == (2, "")
    assert "Traceback" not in found.err
    last = found.err.strip().splitlines()[-1]
    assert last.startswith("covrl: ")
    assert said in last
    assert not list(tmp_path.iterdir()), "nothing is half-written"


@pytest.mark.parametrize("command", ["prompts", "warm-format", "quickstart", "compare"])
def test_commands_that_work_as_one_process_refuse_torchrun(
    monkeypatch: pytest.MonkeyPatch, covrl: Covrl, command: str
) -> None:
    needed = {
        "prompts": ["--model", "x", "--problems", "x.jsonl"],
        "warm-format": ["--config", "x.toml", "--out", "x"],
        "compare": ["--algorithms", "covrl"],
    }
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = covrl(command, *needed.get(command, []))
    assert (found.code, found.out) == (2, "")
    assert found.err == f"covrl: covrl {command} works as one process: start it without torchrun\n"


def test_a_dry_run_refuses_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl) -> None:
    (tmp_path / "run.toml").write_text("")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = covrl("train", "--config", str(tmp_path / "run.toml"), "--dry-run")
    assert (found.code, found.out) == (2, "")
    assert found.err == "covrl: --dry-run works as one process: start it without torchrun\n"


def test_grade_reads_standard_input_and_reports_on_standard_error(tmp_path: Path) -> None:
    rows = [{"answer": "42", "response": "so \\boxed{42}"}, {"answer": "1/2", "response": "\\boxed{0.5}"}]
    rows += [{"answer": "7", "response": "\\boxed{8}"}, {"answer": "7", "response": "it is 7"}]
    found = process("grade", cwd=tmp_path, given="\n".join(map(json.dumps, rows)))
    assert found.returncode == 0, found.stderr
    verdicts = [json.loads(line)["verdict"] for line in found.stdout.splitlines()]
    assert verdicts == ["right", "right", "wrong", "unknown"]
    assert "unknown" in found.stderr


def test_grade_names_a_broken_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"answer": "1", "response": "2"}\n{"answer": "1"}\n')
    found = process("grade", "rows.jsonl", cwd=tmp_path)
    assert found.returncode == 2
    assert "rows.jsonl line 2: no field 'response'" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_folder_without_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, said = covrl(*QUICK, "--set", f"model.path={tmp_path / 'empty'}")
    assert code == 2
    assert "holds no *.safetensors weights" in said
    assert "Traceback" not in said


def test_a_short_quickstart_prints_one_json_line_and_writes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl
) -> None:
    """On a part of the test problems, of which the command measures base and result on all."""

    def few(run: Run, test: list[Problem], longer: list[Problem]) -> Measured:
        return measure(run, test[:100], longer[:10])

    monkeypatch.setattr("covrl.quickstart.run.measure", few)
    monkeypatch.chdir(tmp_path)
    found = covrl(*QUICK, "--out", "run")
    assert found.code == 0, found.err
    (line,) = found.out.splitlines()
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
        "checkpoints/step-000001/model/model.safetensors",
        "checkpoints/step-000001/state.json",
    }
    again = covrl(*QUICK, "--out", "run")
    assert again.code == 2
    assert "there is a run in this folder already" in again.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_step_in_progress_and_says_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl, number: signal.Signals
) -> None:
    """Sent inside the second step: it is left, the first is checkpointed and reported; one line; exit code 130."""
    monkeypatch.chdir(tmp_path)

    def signalled(run: Run, *arguments: Any) -> Any:
        if run.done == 1:
            os.kill(os.getpid(), number)
        return sample(run, *arguments)

    monkeypatch.setattr("covrl.training.collect.sample", signalled)
    small = ["--set", "training.problems_per_step=2", "--set", "training.steps=9", "--out", "run"]
    code, _, said = covrl(*QUICK, *small)
    assert code == 130
    assert f"{number.name}: stopping" in said
    assert said.strip().endswith("covrl: interrupted inside step 2, of which nothing was kept; what was done is in run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run/checkpoints/step-000001/model/model.safetensors").is_file()
    assert "interrupted inside step 2" in (tmp_path / "run/report.html").read_text()
    assert signal.getsignal(number) is not None
