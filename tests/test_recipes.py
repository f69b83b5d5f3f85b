"""Every recipe is a valid configuration of a known method, and what the documentation says of methods is true."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import character_tokenizer, save_tiny
from projects import MARKS

import covrl
from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.algorithms.base import Algorithm
from covrl.algorithms.group import GroupConfig, GroupMethod
from covrl.algorithms.listing import describe
from covrl.api import build_algorithm
from covrl.config import RunConfig, Settings, check, read_toml
from covrl.generation.base import Draw
from covrl.prompts import Prompts
from covrl.training.rollouts import sample
from covrl.training.scores import score_groups

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*.toml"))
DOCS = ROOT / "docs"
WITH_TABLES = ["covrl", "rover", *(name for name in ALGORITHMS if issubclass(find_algorithm(name), GroupMethod))]
"""Methods whose page has a table of settings with their defaults."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(path: Path) -> None:
    config = check(RunConfig, read_toml(path))
    build_algorithm(config, Prompts(character_tokenizer(), config.prompts), None, rewarded=False)


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"covrl", "gsm8k", "one-gpu", *ALGORITHMS}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_recipe_is_of_its_method_and_its_page_names_it(name: str) -> None:
    assert read_toml(ROOT / "recipes" / f"{name}.toml")["algorithm"]["name"] == name
    page = (DOCS / "methods" / f"{name}.md").read_text()
    assert f"recipes/{name}.toml" in page
    index = (DOCS / "papers.md").read_text()
    assert f"(methods/{name}.md)" in index
    assert f"(../recipes/{name}.toml)" in index


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_table_of_methods_is_that_of_the_code(name: str) -> None:
    listed = describe(name)
    rows = [row for row in (DOCS / "methods" / "README.md").read_text().splitlines() if row.startswith(f"| [`{name}`]")]
    assert len(rows) == 1
    _, verifier, reads, evidence = (cell.strip() for cell in re.split(r"(?<!\\)\|", rows[0])[2:-1])
    assert (verifier == "yes") == listed.needs_verifier
    assert reads == ", ".join(listed.contexts)
    assert evidence == listed.evidence


def stated_defaults(page: Path) -> dict[str, str]:
    """Setting -> default, of the rows of a page's tables that begin with both as code."""
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", page.read_text(), flags=re.MULTILINE))


def as_text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


@pytest.mark.parametrize("name", WITH_TABLES)
def test_the_defaults_of_a_page_are_those_of_the_method(name: str) -> None:
    config = find_algorithm(name).Config()
    stated = stated_defaults(DOCS / "methods" / f"{name}.md")
    assert stated == {key: as_text(getattr(config, key)) for key in stated}
    assert own_settings(config) <= set(stated)


def own_settings(config: Settings) -> set[str]:
    """Settings that the method adds to those of the group family, or has with another default."""
    family = GroupConfig().model_dump() if isinstance(config, GroupConfig) else {}
    return {k for k, v in config.model_dump().items() if k not in family or v != family[k]}


def test_the_defaults_of_the_family_are_those_of_its_page() -> None:
    family = GroupConfig()
    expected = {key: as_text(getattr(family, key)) for key in GroupConfig.model_fields}
    assert stated_defaults(DOCS / "methods" / "group-settings.md") == expected


def pages() -> list[Path]:
    return [DOCS / "kl.md", DOCS / "papers.md", *sorted((DOCS / "methods").glob("*.md"))]


def test_tests_and_files_that_the_pages_name_exist() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in pages():
        text = page.read_text()
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in sources, f"{page.name}: {name}"
        for path in re.findall(r"\btests/[\w/]+\.py", text):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert (page.parent / link).resolve().exists(), f"{page.name}: {link}"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_block_on_kl_prints_what_the_page_shows() -> None:
    (code,), (shown,) = blocks(DOCS / "kl.md", "python"), blocks(DOCS / "kl.md", "text")
    printed = io.StringIO()
    before = torch.random.get_rng_state()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    torch.random.set_rng_state(before)
    assert printed.getvalue() == shown


def test_the_method_of_the_documentation_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, *_ = blocks(DOCS / "methods" / "README.md", "python")  # the others: tests/test_methods_of_the_docs.py
    names: dict[str, Any] = {"__name__": "own"}
    exec(code, names)
    best: type[Algorithm] = names["Best"]
    monkeypatch.chdir(tmp_path)
    save_tiny("llama", "model", max_position_embeddings=128)
    settings = {
        "model": {"path": "model", "device": "cpu"},
        "algorithm": {"margin": 0.5},
        "prompts": MARKS,
        "generation": {"max_trace_tokens": 12, "max_answer_tokens": 4},
        "training": {"steps": 1, "problems_per_step": 4, "rollouts_per_problem": 4, "warmup_steps": 0},
        "evaluation": {"every": 0},
    }
    problems = [covrl.Problem(str(i), f"{i}+{i}", str(2 * i)) for i in range(4)]
    by_letter = lambda problem, text: float(sum(map(ord, text)) % 7)  # noqa: E731
    trained = covrl.train(settings, problems, out="run", algorithm=best, reward=by_letter)
    (report,) = trained.reports
    assert report.metrics["grad_norm/total"] > 0
    assert 0 < report.metrics["train/rows"] < 16
    groups = score_groups(trained.run, sample(trained.run, problems, Draw(0, 1)))
    for group, credits in zip(groups, trained.run.algorithm.credit(groups), strict=True):
        bar = sum(r.reward or 0.0 for r in group.rollouts) / 4 + 0.5
        for rollout, credit in zip(group.rollouts, credits, strict=True):
            assert bool(credit.weights["nll"].any()) == ((rollout.reward or 0.0) > bar)
    assert names["shortness"](problems[0], "abc") == -3.0
