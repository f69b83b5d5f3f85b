"""benchmarks/reading.py: an arm goes on where it was cut, failures are told, the page names what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import reading as module
from models import save_tiny
from projects import PROMPTS, write_rows

from covrl.errors import RunInterruptedError


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with its lines and its page in a folder of the test."""
    monkeypatch.setattr(module, "LINES", tmp_path / "lines.jsonl")
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    return module


@pytest.fixture
def order(tmp_path: Path) -> dict[str, Any]:
    """An arm of five steps on a tiny model."""
    save_tiny("llama", tmp_path / "model")
    rows = [{"id": f"p{i}", "question": f"{i}+1", "answer": str(i + 1)} for i in range(6)]
    for name in ("train", "held_out"):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    config = tmp_path / "run.toml"
    config.write_text(
        f'[model]\npath = "{tmp_path}/model"\n{PROMPTS}\n[problems]\ntrain = "{tmp_path}/train.jsonl"\n'
        f'held_out = "{tmp_path}/held_out.jsonl"\n[generation]\nmax_trace_tokens = 16\nmax_answer_tokens = 4\n'
        "[training]\nproblems_per_step = 2\nrollouts_per_problem = 4\n"
    )
    out = str(tmp_path / "runs")
    return {"task": "tiny", "config": str(config), "arm": "floor-4", "seed": 0, "steps": 5, "out": out}


def test_an_arm_that_was_cut_goes_on_and_has_the_line_of_one_that_was_not(
    reading: ModuleType, order: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from covrl.training import step

    whole = reading.run_one({**order, "out": f"{order['out']}-whole"})
    assert [point["step"] for point in whole["points"]] == [1, 5]
    assert whole["settings"] == ["algorithm.floor=-4"]
    assert "eval/accuracy" in whole["points"][-1]

    taken = step.take_step

    def cut(run: Any) -> Any:
        if run.done == 2:
            raise RunInterruptedError("interrupted inside step 3")
        return taken(run)

    with monkeypatch.context() as inner:
        inner.setattr("covrl.training.loop.take_step", cut)
        assert reading.say_one(order) == 2
    assert capsys.readouterr().err.endswith("interrupted inside step 3\n")
    assert reading.run_one(order) == whole


def test_an_arm_that_fails_is_named_and_has_no_line(
    reading: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tmp_path / "none.toml"), "--name", "tiny", "--steps", "2", "--arms", "default"]
    monkeypatch.setattr(sys, "argv", ["reading.py", *words, "--out", str(tmp_path / "runs")])
    assert reading.main() == 1
    err = capfd.readouterr().err
    assert "none.toml" in err
    assert "tiny default 0 ended with code 2" in err
    assert "Traceback" not in err
    assert not reading.LINES.exists()


def test_the_page_names_the_arms_that_have_no_run(reading: ModuleType) -> None:
    facts = {"task": "digits", "seed": 0, "steps": 40, "machine": "m", "warnings": {"unread traces": 9}}
    points = [{"step": 1, "eval/accuracy": 0.1}, {"step": 5, "eval/accuracy": 0.6}]
    lines = [{**facts, "arm": arm, "points": points} for arm in reading.ARMS if arm != "prob"]
    reading.LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = reading.page(reading.read_lines())
    assert 'reading.py --task digits --steps 40 --arms "prob"' in page
    assert 'reading.py --task animals --steps 40 --arms "default,' in page
    assert "| default | 1 | 10.0% → 60.0% |" in page
    assert "unread traces (9)" in page
