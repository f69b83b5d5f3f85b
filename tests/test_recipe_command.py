"""`covrl recipe`, and the command that an error names for what is not installed."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from commands import Covrl

from covrl.algorithms import ALGORITHMS
from covrl.extras import core_command, install_command
from covrl.recipes import list_recipes

ROOT = Path(__file__).parents[1]


def test_recipes_are_listed_and_printed_as_they_are(covrl: Covrl) -> None:
    assert {recipe.name for recipe in list_recipes()} >= {*ALGORITHMS, "gsm8k", "one-gpu", "quickstart", "animals"}
    assert all(recipe.about for recipe in list_recipes())
    listed = covrl("recipe").out
    assert "GRPO (arXiv 2402.03300)" in listed
    for name in ("grpo", "grpo.toml"):
        assert covrl("recipe", name).out == (ROOT / "recipes" / "grpo.toml").read_text()


def test_an_unknown_recipe_names_the_nearest(covrl: Covrl) -> None:
    found = covrl("recipe", "gropo")
    assert (found.code, found.err) == (2, "covrl: no recipe 'gropo': did you mean grpo?\n")


def test_the_command_of_an_extra_names_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "torch>=2.13", "datasets>=4; extra == 'data'", 'pyarrow>=17 ; extra == "data"', "x[y]>=1,<2; extra == 'docs'",
    ]  # fmt: skip
    monkeypatch.setattr(metadata, "requires", lambda name: listed)
    assert install_command("data") == "pip install 'datasets>=4' 'pyarrow>=17'"
    assert install_command("docs") == "pip install 'x[y]>=1,<2'"
    assert install_command("dat") == "pip install 'covrl[dat]'"
    assert (core_command("torch"), core_command("rich")) == ("pip install 'torch>=2.13'", "pip install 'rich'")


def test_without_an_installed_covrl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert install_command("data") == "pip install 'covrl[data]'"


def test_every_extra_that_an_error_names_is_one_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = {part.partition(part[0])[2].partition(part[0])[0] for part in sources.split("install_command(")[1:]
             if part[0] in "'\""}  # fmt: skip
    assert named
    assert named <= set(extras)
