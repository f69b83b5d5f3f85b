"""`covrl config`: every setting is listed, files are checked, and the schema accepts what the settings accept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Covrl

from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.config import RunConfig, read_toml
from covrl.config_help import UNITS, check_file, config_schema, list_settings
from covrl.recipes import list_recipes


def test_every_setting_of_every_section_and_method_is_listed_once() -> None:
    keys = [setting.key for setting in list_settings()]
    assert len(keys) == len(set(keys))
    for section, field in RunConfig.model_fields.items():
        if section not in ("algorithm", "reward"):
            assert {f"{section}.{key}" for key in field.annotation.model_fields} <= set(keys)  # ty: ignore
    for method in ALGORITHMS:
        assert {f"algorithm({method}).{key}" for key in find_algorithm(method).Config.model_fields} <= set(keys)
    assert set(UNITS) <= set(keys)


def test_a_setting_has_its_default_unit_and_evidence() -> None:
    known = {setting.key: setting for setting in list_settings()}
    deadline, alpha = known["guards.step_deadline_s"], known["algorithm(covrl).alpha"]
    assert (deadline.kind, deadline.default, deadline.unit) == ("number ≥ 0", 0.0, "seconds")
    assert (alpha.kind, alpha.default, alpha.evidence) == ("number ≥ 0 ≤ 1", 0.5, "CONFIRMED")
    assert known["model.path"].required
    assert known["training.schedule"].kind == "constant | linear | cosine"
    assert known["generation.rows_per_pass"].kind == "integer > 0 or auto"
    assert known["training.tokens_per_pass"].unit == "tokens"


def test_names_choose_sections_settings_and_methods(covrl: Covrl) -> None:
    assert "learning_rate" in covrl("config", "training").out
    one = covrl("config", "training.seed").out
    assert "seed" in one
    assert "steps" not in one
    assert "aggregation" in covrl("config", "grpo").out
    listed = json.loads(covrl("config", "--json", "covrl").out)
    assert "algorithm(covrl).alpha" in {setting["key"] for setting in listed}
    every = covrl("config").out
    assert "[guards]" in every
    assert "has to be given" in every


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainign"], "no section, setting or method 'trainign': did you mean training?"),
        (["xyzzy"], "there are the sections model, lora,"),
        (["--check", "none.toml"], "none.toml: no such file"),
        (["--schema", "--json"], "give one of names"),
        (["training", "--schema"], "give one of names"),
        (["--set", "training.steps=1"], "give it with --check"),
    ],
)
def test_what_cannot_be_asked_is_one_line(covrl: Covrl, arguments: list[str], said: str) -> None:
    found = covrl("config", *arguments)
    assert (found.code, found.out) == (2, "")
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_file_is_checked_with_its_methods_own_settings(
    covrl: Covrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = '[model]\npath = "x"\n[algorithm]\nname = "grpo"\nclip_low = 0.1\n[training]\nsteps = 3\n'
    Path("run.toml").write_text(good)
    assert covrl("config", "--check", "run.toml").out == "run.toml: 4 settings, all right; the method is grpo\n"
    for wrong, said in (
        (good.replace("clip_low", "clip_lo"), "run.toml: [algorithm] unknown setting clip_lo: did you mean clip_low?"),
        (good.replace("steps", "step"), "run.toml: unknown setting training.step: did you mean training.steps?"),
        (good.replace('"grpo"', '"grop"'), "unknown method 'grop': did you mean grpo?"),
    ):
        Path("run.toml").write_text(wrong)
        found = covrl("config", "--check", "run.toml")
        assert (found.code, found.out) == (2, "")
        assert said in found.err


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(config_schema())


def test_the_schema_accepts_every_recipe_and_refuses_what_the_settings_refuse(validator: Any) -> None:
    for recipe in list_recipes():
        check_file(recipe.file)
        assert list(validator.iter_errors(read_toml(recipe.file))) == [], recipe.name
    for section, key, value in (
        ("training", "step", 1),
        ("training", "steps", 0),
        ("training", "schedule", "cosin"),
        ("algorithm", "alpa", 0.5),
        ("algorithm", "alpha", 2),
        ("generation", "rows_per_pass", "all"),
    ):
        wrong = {"model": {"path": "x"}, section: {key: value}}
        assert not validator.is_valid(wrong), key
    assert not validator.is_valid({"model": {"path": "x"}, "algorithm": {"name": "grpo", "alpha": 0.5}})
    reward = {"function": "brevity"}
    for given in ({"short": reward}, [{"name": "short", **reward}]):
        assert validator.is_valid({"model": {"path": "x"}, "reward": given})


def test_what_the_schema_refers_to_is_in_it() -> None:
    schema = config_schema()
    text = json.dumps(schema)
    for reference in (part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]):
        assert reference in schema["$defs"]
    named = [each["properties"]["name"].get("const") for each in schema["properties"]["algorithm"]["oneOf"]]
    assert named == [*ALGORITHMS, None]
