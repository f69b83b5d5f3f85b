"""Settings: what is checked, what an error says, and that nothing heavy is imported for it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import character_tokenizer

from covrl import config
from covrl.algorithms import ALGORITHMS, find_algorithm, make_algorithm, with_every_setting
from covrl.algorithms.base import Setup
from covrl.config import (
    AlgorithmTable,
    PromptConfig,
    RewardConfig,
    RunConfig,
    Settings,
    check,
    config_from,
    override,
    read_toml,
    to_toml,
)
from covrl.errors import UserError
from covrl.prompts import Prompts
from covrl.quickstart.run import RECIPES

MODEL = {"model": {"path": "x"}}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {**MODEL, "training": {"learning_rat": 1}},
            "unknown setting training.learning_rat: did you mean training.learning_rate?",
        ),
        ({**MODEL, "trainin": {}}, "unknown setting trainin: did you mean training?"),
        ({**MODEL, "report": {"xyz": 1}}, "unknown setting report.xyz: known keys: traces_every, groups_shown"),
        ({**MODEL, "training": {"steps": "many"}}, "setting training.steps: .*integer.*, found 'many'"),
        ({**MODEL, "training": {"steps": 0}}, "setting training.steps: .*greater than or equal to 1, found 0"),
        ({**MODEL, "training": {"schedule": "cosin"}}, "setting training.schedule: .*'cosine', found 'cosin'"),
        ({}, "setting model is missing"),
        ({"model": {}}, "setting model.path is missing"),
        ({**MODEL, "prompts": {"user": "no question"}}, "setting prompts: user has no {question}"),
        ({**MODEL, "prompts": {"posterior_open": "<think>"}}, "setting prompts: posterior_open has no {hint}"),
        ({**MODEL, "prompts": {"prior_open": "{hint}"}}, "the prior must not see the answer"),
        ({**MODEL, "prompts": {"close": " "}}, "must hold visible text"),
        ({**MODEL, "prompts": {"style": "plian"}}, "setting prompts.style: .*'thinking' or 'plain', found 'plian'"),
        ({**MODEL, "prompts": {"style": ["plain"]}}, r"setting prompts.style: .*'plain', found \['plain'\]"),
        ({**MODEL, "evaluation": {"answer_temperature": -1}}, "evaluation.answer_temperature: .*equal to 0, found -1"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(table: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        check(RunConfig, table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"name": "covlr"}, "unknown method 'covlr': did you mean covrl?"),
        ({"name": "covrl", "bta": 1}, r"\[algorithm\] unknown setting bta: did you mean beta\?"),
        ({"name": "covrl", "alpha": 2}, r"\[algorithm\] setting alpha: .*less than or equal to 1, found 2"),
        ({"name": "covrl", "kl": "exakt"}, r"\[algorithm\] setting kl: .*'exact' or 'sampled', found 'exakt'"),
    ],
)
def test_the_method_checks_its_own_table(table: dict, said: str) -> None:
    setup = Setup(Prompts(character_tokenizer(), PromptConfig()), 8)
    with pytest.raises(UserError, match=said):
        make_algorithm(AlgorithmTable.model_validate(table), setup)


def test_override_sets_values_by_dotted_key() -> None:
    table = override(
        {"training": {"steps": 5}},
        [
            "training.steps=9",
            "training.adam_betas=[0.9, 0.99]",
            "model.path=some/where",
            "algorithm.beta=0.5",
            "problems.shuffle_hints=true",
        ],
    )
    assert table == {
        "training": {"steps": 9, "adam_betas": [0.9, 0.99]},
        "model": {"path": "some/where"},
        "algorithm": {"beta": 0.5},
        "problems": {"shuffle_hints": True},
    }


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("training.steps", "expected section.key=value"),
        ("training.steps.x=1", "steps is a value, not a section"),
        ("=3", "expected"),
    ],
)
def test_a_malformed_override_says_what_it_should_be(assignment: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        override({"training": {"steps": 5}}, [assignment])


def test_override_leaves_its_input_alone() -> None:
    table = {"training": {"steps": 5}}
    override(table, ["training.steps=6"])
    assert table == {"training": {"steps": 5}}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"a = = 1", "not a TOML file: .*line 1"), (b"\xff\xfe", "not a TOML file")],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read_toml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("task", RECIPES)
def test_the_recipe_is_valid_and_survives_a_round_trip(tmp_path: Path, task: str) -> None:
    config = check(RunConfig, read_toml(RECIPES[task].file))
    copy = tmp_path / "config.toml"
    copy.write_text(to_toml(config), encoding="utf-8")
    assert check(RunConfig, read_toml(copy)) == config


def kept(name: str, **settings: object) -> dict[str, object]:
    """``[algorithm]`` of a run's config.toml, read again."""
    table = with_every_setting(AlgorithmTable.model_validate({"name": name, **settings}), find_algorithm(name))
    return tomllib.loads(to_toml(RunConfig.model_validate({**MODEL, "algorithm": table})))["algorithm"]


def test_a_run_keeps_every_setting_of_its_method() -> None:
    """So another default later does not change it; left out is what is None or would do nothing."""
    for name in ALGORITHMS:
        cls, table = find_algorithm(name).Config, kept(name)
        assert table.pop("name") == name
        assert cls.model_validate(table) == cls()
        assert list(kept(name, **table)) == ["name", *table], "a second resume writes the same bytes"
    band, idle = {"kl_band", "kl_band_moves"}, {"contrast_temperature", "contrast_threshold"}
    assert kept("covrl").keys() == {"name", *find_algorithm("covrl").Config.model_fields} - band - idle
    assert kept("covrl", contrast=0.5, kl_band=[0.1, 0.2]).keys() >= band | idle
    assert "kl_weight" in kept("grpo", kl="k3", kl_weight=0.25)
    assert not {"source_cap", "dual_clip", "kl_in"} & kept("grpo").keys()
    assert not {"kl", "kl_in", "kl_weight", "phi0"} & kept("rapo", penalty="k3").keys()

    class Later(find_algorithm("covrl").Config):
        alpha: float = 0.125

    assert Later.model_validate({k: v for k, v in kept("covrl", beta=2).items() if k != "name"}).alpha == 0.5


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    config = check(RunConfig, {**MODEL, "prompts": {"user": "{question}" + text}})
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert check(RunConfig, read_toml(path)) == config


def test_there_are_at_most_a_hundred_and_four_settings() -> None:
    """Sixty, six for engines, three for adapters, three for pickles, compiling and offloading, six for chats, one
    for what a trace is worth, one for words of doubt, one for comparisons, five for each of several reward functions,
    seven for scores of reasoning steps, one for system messages, two for several processes, three for trackers, two for
    the hub, one for 8-bit moments, one for the way to servers, one for a base of 4 bits."""
    fields = RunConfig.model_fields.items()
    sections = [RewardConfig if name == "reward" else field.annotation for name, field in fields]
    assert sum(len(section.model_fields) for section in sections) <= 104  # ty: ignore


@pytest.mark.parametrize(
    "engine", ["torch", "vllm", "http://127.0.0.1:8000", "https://gpu-3.local/v", "http://[::1]:80"]
)
def test_engines_that_can_be_named(engine: str) -> None:
    assert (
        check(RunConfig, {**MODEL, "generation": {"engine": engine + "/" * ("//" in engine)}}).generation.engine
        == engine
    )


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("vlm", "should be torch, vllm, or the address of a vLLM server"),
        ("localhost:8000", "should be torch, vllm, or the address"),
        ("http://", "should be torch, vllm, or the address"),
        ("http://me:secret@host:80", "must not hold a password; the key is read from VLLM_API_KEY"),
    ],
)
def test_engines_that_cannot(engine: str, said: str) -> None:
    with pytest.raises(UserError, match=f"setting generation.engine: .*{said}") as error:
        check(RunConfig, {**MODEL, "generation": {"engine": engine}})
    assert "secret" not in str(error.value)


def test_settings_records_and_command_line_do_not_import_torch(tmp_path: Path) -> None:
    """Nor do the commands that read no model and no method: they answer in the time that Python takes to start."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    code = """
import sys, covrl, covrl.cli.app, covrl.config, covrl.records, covrl.problems.digits, covrl.reporting.html
for words in (["data", "rows.jsonl"], ["config"], ["config", "training", "generation.engine"], ["recipe", "grpo"]):
    sys.argv = ["covrl", *words]
    try:
        covrl.cli.app.main()
    except SystemExit as done:
        assert not done.code, words
    assert not {"torch", "transformers", "numpy"} & set(sys.modules), f"{words}: heavy import"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


def test_a_wrong_setting_says_whether_the_file_or_the_command_line_has_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[model]\npath = "m"\n[training]\nsteps = 3\n')
    assert config_from(file, ["training.steps=4"]).training.steps == 4
    with pytest.raises(UserError, match=r"^--set: setting training.steps"):
        config_from(file, ["training.steps=no"])
    with pytest.raises(UserError, match=r"^--set: setting generation.temperature: Input should be a finite number"):
        config_from(file, ["generation.temperature=inf"])
    file.write_text("[training]\nsteps = 0\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: "):
        config_from(file, ["training.seed=1"])


def test_settings_of_a_step_server_want_one_and_a_runs_own_file_is_read_again() -> None:
    with pytest.raises(UserError, match=r"setting steps: .*model does nothing with no steps\.server"):
        check(RunConfig, {**MODEL, "steps": {"model": "a/prm"}})
    config = check(RunConfig, {**MODEL, "steps": {"rule": "lines"}})
    assert check(RunConfig, tomllib.loads(to_toml(config))) == config
    served = {"server": "http://127.0.0.1:8001", "protocol": "vllm", "model": "a/prm"}
    assert check(RunConfig, {**MODEL, "steps": served}).steps.model == "a/prm"


def test_the_page_of_settings_has_every_section() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api" / "settings.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: covrl\.config\.(\w+)$", page, re.MULTILINE)
    found = [each for each in vars(config).values() if isinstance(each, type) and issubclass(each, Settings)]
    assert sorted(shown) == sorted(each.__name__ for each in found if each is not Settings)
