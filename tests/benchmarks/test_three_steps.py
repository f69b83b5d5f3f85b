"""Three steps of each method: that every method can be made with the script's settings, its reward, its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from models import character_tokenizer

from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.api import build_algorithm
from covrl.prompts import Prompts
from covrl.records import Problem

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "real"))

import three_steps


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_is_made_with_these_settings(name: str) -> None:
    config = three_steps.settings(Path("model"), name)
    prompts = Prompts(character_tokenizer(), config.prompts)
    made = build_algorithm(config, prompts, None, rewarded=find_algorithm(name).verified)
    assert made.name == name


def test_a_response_is_right_where_the_sum_is_written_as_a_number_of_its_own() -> None:
    problem = Problem("p", "What is 8 plus 9?", "17")
    assert [three_steps.said(problem, text) for text in ("It is 17.", "8+9=17")] == [1, 1]
    assert [three_steps.said(problem, text) for text in ("117", "seventeen", "")] == [0, 0, 0]


def test_a_methods_line_takes_the_place_of_its_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(three_steps, "LINES", tmp_path / "lines.jsonl")
    line = {"method": "grpo", "loss": [0.0, 0.1], "gradient": [1.0, 2.0], "tokens_trained": [5, 6], "moved": 1e-5}
    line |= {"finite": True, "cpu_seconds": 3.2, "warnings": [], "machine": "a machine"}
    for made in (line, line | {"method": "covrl"}, line | {"finite": False, "warnings": ["no signal"]}):
        three_steps.keep(made)
    rows = [json.loads(row) for row in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [(row["method"], row["finite"]) for row in rows] == [("covrl", True), ("grpo", False)]
    page = three_steps.page(three_steps.read_lines())
    assert "| `grpo` | 0 0.1 | 1 2 | 5 6 | 1.0e-05 | no | 3 | no signal |\n" in page
    assert page.endswith("Machine: a machine.\n")
