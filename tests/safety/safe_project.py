"""A small project and the command line, for what hostile input does to them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from models import save_tiny
from projects import PROMPTS, write_rows

from covrl.cli import app
from covrl.cli.app import main

CONFIG = f"""
[model]
path = "model"
device = "cpu"
[problems]
train = "train.jsonl"
id_field = "id"
{PROMPTS}[generation]
max_trace_tokens = 8
max_answer_tokens = 4
[training]
steps = 1
problems_per_step = 1
rollouts_per_problem = 2
warmup_steps = 0
[evaluation]
every = 1
problems = 1
"""


class Found(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Found]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen2 and one token a character."""
    place = tmp_path_factory.mktemp("made") / "model"
    save_tiny("qwen2", place, max_position_embeddings=512)
    return place


@pytest.fixture
def project(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that trains as it is."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", [{"id": str(i), "question": f"{i}+{i}", "answer": str(2 * i)} for i in (1, 2)])
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def as_it_is(error: BaseException) -> NoReturn:
    raise error


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``covrl`` with arguments, without the seconds of a new process; any traceback fails the test."""

    def call(*arguments: str) -> Found:
        monkeypatch.setattr(sys, "argv", ["covrl", *arguments])
        monkeypatch.setattr(app, "crash", as_it_is)
        code = 0
        capfd.readouterr()
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Found(code, *capfd.readouterr())

    return call
