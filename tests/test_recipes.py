"""Every recipe is a valid configuration of a known method."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import character_tokenizer

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.config import RunConfig, check, read_toml
from covrl.prompts import Prompts

RECIPES = sorted(Path(__file__).parents[1].glob("recipes/*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    config = check(RunConfig, read_toml(path))
    make_algorithm(config.algorithm, Setup(Prompts(character_tokenizer(), config.prompts), 8))


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"covrl", "gsm8k", "one-gpu"}
