"""Runs of commit f21ff7b, made by that commit's own code (make_old_runs.py), in today's commands.

Kernels differ by machine, so the weights at the end are compared within :data:`TOLERANCE`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl
from make_old_runs import table_of
from safetensors.torch import load_file
from torch import Tensor

from covrl import api
from covrl.algorithms import find_algorithm
from covrl.checkpoints.checkpoint import fingerprint
from covrl.checkpoints.resuming import check_inputs
from covrl.config import RunConfig, check, read_toml, to_toml
from covrl.errors import UserError

pytest.importorskip("peft")  # of the run lora

OLD = Path(__file__).parent / "f21ff7b"
RUNS = {"covrl": (), "grpo": ("--reward", "old_run_rewards:digits"), "lora": ()}
"""By name, what a resume is given again."""

TOLERANCE = 2e-5
"""Largest difference of a weight. Two steps at the rate 2e-3 move weights by up to 4e-3."""

SETTINGS = json.loads((OLD / "settings.json").read_text(encoding="utf-8"))


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all that f21ff7b made, and the folder that commands work in: the runs name their base from there."""
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder


def metrics_of(file: Path) -> list[dict[str, Any]]:
    """Of each step, without what may differ between two runs."""
    rows = [json.loads(line)["metrics"] for line in file.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "system/"))} for row in rows]


def weights_of(run: Path, step: str) -> dict[str, Tensor]:
    (file,) = (run / "checkpoints" / step / "model").glob("*.safetensors")
    return load_file(file)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on_to_where_its_own_version_ended(name: str, old: Path, covrl: Covrl) -> None:
    run, begun = old / name, weights_of(old / name, "step-000002")
    lines = (run / "metrics.jsonl").read_bytes()
    code, _, err = covrl("train", "--resume", name, *RUNS[name])
    assert code == 0, err
    assert ("a response ends at prompts.answer_suffix only" in " ".join(err.split())) == (name != "covrl")
    end = load_file(old / "ends" / f"{name}.safetensors")
    assert apart(begun, end) > 50 * TOLERANCE
    assert apart(weights_of(run, "step-000004"), end) < TOLERANCE
    assert (run / "metrics.jsonl").read_bytes().startswith(lines)
    found, expected = metrics_of(run / "metrics.jsonl"), metrics_of(old / "ends" / f"{name}.jsonl")
    assert len(found) == len(expected) == 4
    for now, then in zip(found, expected, strict=True):
        assert now.keys() >= then.keys()
        assert {k: now[k] for k in then} == pytest.approx(then, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_viewed_and_evaluated(name: str, old: Path, covrl: Covrl) -> None:
    code, _, err = covrl("view", name)
    assert code == 0, err
    page = (old / name / "report.html").read_text(encoding="utf-8")
    groups = [g for line in (old / name / "traces.jsonl").read_text().splitlines() for g in json.loads(line)["groups"]]
    assert groups
    for shown in ("optim/lr", groups[0]["problem"]["question"]):
        assert shown in page
    code, out, err = covrl("eval", "--model", name, "--problems", "problems.jsonl", "-n", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["problems"] == 12


def test_a_run_that_was_resumed_is_resumed_again_before_its_next_checkpoint(old: Path) -> None:
    """The first resume writes every setting of the method to config.toml; the checkpoint has those that were set."""
    first = api.resume(old / "covrl")
    assert read_toml(old / "covrl" / "config.toml")["algorithm"] == {"name": "covrl", "beta": 0.5}
    (old / "covrl" / "config.toml").write_text(to_toml(first.config))
    assert read_toml(old / "covrl" / "config.toml")["algorithm"]["alpha"] == 0.5
    again = api.resume(old / "covrl")
    assert again.config == first.config
    assert again.notes == first.notes
    assert torch.equal(*(torch.cat([p.flatten() for p in run.parameters]) for run in (first, again)))


def test_a_run_whose_prompts_are_rendered_otherwise_today_is_refused_with_the_reason(old: Path) -> None:
    """As those with chat templates that open a thought: since then it is opened once."""
    run = api.resume(old / "covrl")
    state = {"done": 2, "fingerprint": fingerprint(run) | {"tokenizer": "of other tokens"}}
    with pytest.raises(UserError, match="this version of transformers or covrl renders them otherwise") as error:
        check_inputs(state, run)
    assert "\n" not in str(error.value)


def lost(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings, and choices of settings, that a section or method has no longer."""
    gone = [name for name in then if name not in now]
    return gone + [
        f"{name} = {choice!r}"
        for name in then.keys() & now.keys()
        for choice in then[name]["choices"]
        if choice not in now[name]["choices"]
    ]


def test_every_setting_of_that_version_is_one_today() -> None:
    """Whoever renames or removes one tells it in ``Settings.absent`` and takes it out of this test with that line."""
    for name, section in SETTINGS["sections"].items():
        assert lost(section, table_of(RunConfig.model_fields[name].annotation)) == [], name
    for name, method in SETTINGS["methods"].items():
        assert lost(method, table_of(find_algorithm(name).Config)) == [], name


def test_settings_that_old_runs_left_out_still_have_the_same_defaults() -> None:
    """Of [algorithm] old config.toml files keep those that were set, so another default would change a resumed run."""
    for name, method in SETTINGS["methods"].items():
        now = table_of(find_algorithm(name).Config)
        assert {key: now[key]["default"] for key in method} == {k: v["default"] for k, v in method.items()}, name


def test_the_settings_of_an_old_run_begin_a_new_one(old: Path) -> None:
    for name in RUNS:
        table = read_toml(old / name / "config.toml")
        now = check(RunConfig, table).model_dump(mode="json")
        assert {s: {k: now[s][k] for k in part} for s, part in table.items()} == table
