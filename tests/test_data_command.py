"""`covrl data`: what it finds in a file, with and without a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Covrl
from models import save_tiny
from projects import write_rows

LONG = "A farmer has {} sheep in the first field and twelve more in the second field. How many sheep are there now?"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "1+1? ", "answer": "3"}]
    rows += [{"question": LONG.format(i), "answer": str(i + 12)} for i in (3, 7)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", [{"question": LONG.format(9), "answer": "21"}, rows[0]])
    return tmp_path


def test_figures_of_a_file_without_a_model(covrl: Covrl, files: Path) -> None:
    found = json.loads(covrl("data", "train.jsonl", "--against", "test.jsonl", "--json").out)
    assert (found["problems"], found["unit"]) == (4, "characters")
    assert found["answers"] == {"integer": 4}
    assert found["duplicates"]["equal"] == [["train/0", "train/1", 1.0]]
    assert found["duplicates"]["contradicting"] == found["duplicates"]["equal"]
    assert [pair[:2] for pair in found["duplicates"]["near"]] == [["train/2", "train/3"]]
    overlap = found["against"]["test.jsonl"]
    assert [pair[:2] for pair in overlap["equal"]] == [["test/1", "train/0"], ["test/1", "train/1"]]
    assert [pair[:2] for pair in overlap["near"]] == [["test/0", "train/2"], ["test/0", "train/3"]]
    assert found["rows"][0]["question"] == "1+1?"


def test_rows_and_tokens_with_a_model(covrl: Covrl, files: Path) -> None:
    save_tiny("qwen2", files / "model")
    counted = json.loads(covrl("data", "train.jsonl", "--model", "model", "--json").out)
    assert counted["unit"] == "tokens"
    assert counted["lengths"]["answer"]["least"] == len("2</answer>")  # one token a character
    shown = covrl("data", "train.jsonl", "--model", "model", "--rows", "1").out
    assert "1+1?\n\nReason inside <think></think>" in shown
    assert "train/1 is train/0 (100%)" in shown


def test_what_cannot_be_read_is_one_line(covrl: Covrl, files: Path) -> None:
    for arguments, said in (
        (["none.jsonl"], "none.jsonl: no such file"),
        (["train.jsonl", "--against", "none.jsonl"], "none.jsonl: no such file"),
        (["train.jsonl", "--set", "problems.question_field=q"], "train.jsonl:1: no field 'q' (question)"),
    ):
        found = covrl("data", *arguments)
        assert (found.code, found.out) == (2, "")
        assert said in found.err
