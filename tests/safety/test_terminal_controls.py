"""No command lets a model, a data set, a file or another package write control sequences to the terminal."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from projects import write_rows
from safe_project import CONFIG, Command, Found

from covrl import api
from covrl.cli.app import main
from covrl.errors import UserError
from covrl.secrets import is_secret, redacted
from covrl.training.run import Run

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\x00\u202e\u2028[bold red]x[/]\r"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]")


def harmless(found: Found) -> Found:
    assert not CONTROLS.search(found.out), found.out
    assert not CONTROLS.search(found.err), found.err
    return found


@pytest.fixture
def hostile(project: Path) -> Path:
    """The project with controls wherever a data set may write, and in a trace: every token is one of these."""
    rows = [{"id": f"{i}{EVIL}", "question": f"{EVIL}{i}", "answer": f"{i}"} for i in (1, 2)]
    write_rows(project / "train.jsonl", rows)
    path = project / "model/tokenizer.json"
    table = json.loads(path.read_text())
    vocabulary = table["model"]["vocab"]
    for place, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        vocabulary[EVIL[place % len(EVIL)] * (1 + place // len(EVIL))] = vocabulary.pop(letter)
    path.write_text(json.dumps(table))
    return project


RUN = ["--config", "run.toml", "--out", "run"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config", "run.toml", "--dry-run"],
        ["train", *RUN],
        ["eval", "--model", "model", "--problems", "train.jsonl", "--config", "run.toml"],
        ["eval", "--model", "model", "--problems", "train.jsonl", "--config", "run.toml", "--out", "ev", "-n", "1"],
        ["leak", "--model", "model", "--problems", "train.jsonl", "--config", "run.toml", "-n", "1"],
        ["calibrate", "--model", "model", "--problems", "train.jsonl", "--config", "run.toml", "-n", "2"],
        ["ask", "model", f"2+2{EVIL}".replace("\0", ""), "--answer", "4", "--config", "run.toml"],
    ],
)
def test_a_command_prints_no_control_sequence(hostile: Path, command: Command, arguments: list[str]) -> None:
    found = harmless(command(*arguments))
    assert found.code in (0, 2), found.err
    assert found.out or found.err
    if arguments[0] in ("train", "eval", "ask"):
        assert found.code == 0, found.err


def test_a_dry_run_shows_the_controls_by_name(hostile: Path, command: Command) -> None:
    assert "<U+001B>[2J" in command("train", "--config", "run.toml", "--dry-run").out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.toml", CONFIG + '"\\u001b[2J\\n" = 1\n'),
        ("run.toml", '"\\u001b[2J" = 1\n' + CONFIG),
        ("run.toml", CONFIG.replace('"train.jsonl"', '"\\u001b[2J.jsonl"')),
        ("run.toml", CONFIG.replace('path = "model"', 'path = "\\u001b]0;x\\u0007"')),
        ("run.toml", CONFIG.replace("[training]", '[training]\nschedule = "\\u009b2J\\n"')),
        ("run.toml", CONFIG + '[algorithm]\nname = "\\u001b[2J"\n'),
        ("train.jsonl", json.dumps({"id": EVIL, "question": "1", "answer": ""}) + "\n"),
        ("train.jsonl", json.dumps({"id": EVIL, "question": "1", EVIL: "2"}) + "\n"),
        ("train.jsonl", json.dumps({"id": EVIL, "question": "1", "answer": "é" + EVIL}) + "\n"),
        ("train.jsonl", json.dumps({"id": "1", "question": "1" * 9999 + EVIL, "answer": "2"}) + "\n"),
        ("model/config.json", json.dumps({"model_type": EVIL})),
    ],
)
def test_an_error_is_one_harmless_line(project: Path, command: Command, file: str, content: str) -> None:
    (project / file).write_text(content)
    found = harmless(command("train", *RUN))
    assert (found.code, found.out) == (2, "")
    assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--set", f"{EVIL}=1"], ["--set", f"training.seed={EVIL}"], [f"--{EVIL}"]])
def test_an_argument_too(project: Path, command: Command, arguments: list[str]) -> None:
    found = harmless(command("train", *RUN, *(a.replace("\0", "") for a in arguments)))
    assert found.code == 2
    assert len(found.err.splitlines()) == 1


def test_a_folder_named_like_markup(project: Path, command: Command) -> None:
    found = command("train", "--config", "run.toml", "--out", "[bold]run[/oops]")
    assert found.code == 0, found.err
    assert "[bold]run[/oops]/report.html" in found.out.replace("\n", "")


# Secrets in what other packages say


def test_a_message_holds_no_secret(project: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted123")

    def fails(*_: Any, **__: Any) -> None:
        raise UserError("401 for Bearer hf_planted123 through http://me:pass@proxy.example:8080/x")

    monkeypatch.setattr(api, "build", fails)
    found = command("train", *RUN)
    assert found.err == "covrl: 401 for Bearer [HF_TOKEN] through http://[password]@proxy.example:8080/x\n"


def test_a_traceback_holds_no_secret_and_no_control(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of an error that nobody expected; its cause, and a secret that is quoted, too."""
    token = "hf_plan'ted\\123"
    monkeypatch.setenv("HF_TOKEN", token)

    def fails(*given: Any, **named: Any) -> None:
        try:
            raise ConnectionError(f"401 for Bearer {token} at http://me:planted-pass@proxy.example/x")
        except ConnectionError as error:
            raise RuntimeError(EVIL, {"token": token}) from error

    monkeypatch.setattr(api, "build", fails)
    monkeypatch.setattr(sys, "argv", ["covrl", "train", *RUN])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    said = capfd.readouterr().err
    assert said.count("Traceback (most recent call last)") == 2
    assert "ConnectionError: 401 for Bearer [HF_TOKEN] at http://[password]@proxy.example/x" in said
    assert "RuntimeError: " in said
    for part in ("hf_plan", "123'", "planted-pass"):
        assert part not in re.sub(r"(?m)^    .*$", "", said), "outside of the lines of this source"
    assert not CONTROLS.search(said)


def test_a_warning_that_quotes_a_secret_is_written_without_it(
    project: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "planted-123")
    build, steps = api.build, api.steps

    def noted(*given: Any, **named: Any) -> Run:
        run = build(*given, **named)
        run.notes = (*run.notes, "a note on planted-123")
        return run

    def warned(run: Run) -> Any:
        for report in steps(run):
            yield replace(report, warnings=("401 for planted-123",))

    monkeypatch.setattr(api, "build", noted)
    monkeypatch.setattr(api, "steps", warned)
    found = command("train", *RUN)
    assert found.code == 0, found.err
    assert "401 for [KAGGLE_KEY]" in found.err
    assert "a note on [KAGGLE_KEY]" in found.err
    line = json.loads((project / "run/metrics.jsonl").read_text())
    assert line["warnings"] == ["401 for [KAGGLE_KEY]"]
    assert "planted-123" not in found.err + (project / "run/report.html").read_text()


def test_what_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    yes = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DB_PASSWORD", "my_secret")
    yes += ("KAGGLE_KEY", "MYSQL_PWD", "GITHUB_PAT", "SMTP_PASS", "SENTRY_DSN", "REGISTRY_AUTH", "VLLM_API_KEY")
    yes += ("AZURE_STORAGE_CONNECTION_STRING",)
    no = ("TOKENIZERS_PARALLELISM", "PATH", "KEYBOARD", "OMP_NUM_THREADS", "PWD", "OLDPWD", "SSH_AUTH_SOCK")
    no += ("XAUTHORITY", "COMPAT", "MONKEY", "KEYMAP", "PYTHONPATH")
    assert all(map(is_secret, yes))
    assert not any(map(is_secret, no))
    monkeypatch.setenv("A_TOKEN", "x")  # short values would make a message unreadable
    assert redacted("an x") == "an x"
