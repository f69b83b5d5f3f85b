"""Resuming from a run folder that somebody else wrote or changed: it is refused in one line, or it is a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from covrl import api
from covrl import files as durable
from covrl.checkpoints.checkpoint import load_checkpoint, newest_whole, read_state
from covrl.checkpoints.resuming import check_config, check_inputs
from covrl.errors import UserError
from covrl.quickstart.run import load_config
from covrl.training.run import Run

SMALL = [
    "algorithm.name=nover",
    "training.steps=2",
    "training.problems_per_step=2",
    "training.rollouts_per_problem=2",
    "evaluation.every=0",
    "problems.held_out=''",
    "checkpoint.keep=1",
]


class Runs:
    """Unpickled without limits, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step of two, with a model that follows the policy."""
    folder = tmp_path_factory.mktemp("made") / "run"
    api.new_run_folder(folder)
    api.train_run(api.build(load_config([*SMALL, "training.steps=1"])), folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("\nsteps = 1\n", "\nsteps = 2\n"))
    return folder


@pytest.fixture(scope="module")
def built(made: Path) -> Run:
    """The run as it was resumed, to load checkpoints into."""
    return api.resume(made)


def loaded(built: Run, checkpoint: Path) -> str:
    """What a resume does with a checkpoint behind loading its model, in one line where it is refused."""
    said = "it is taken"
    try:
        state = read_state(checkpoint)
        check_config(state, built.config, type(built.algorithm), checkpoint)
        check_inputs(state, built)
        load_checkpoint(built, checkpoint)
    except UserError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return said


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def newest(run: Path) -> Path:
    return run / "checkpoints/step-000001"


def reseal(checkpoint: Path, **files: Any) -> None:
    """A manifest that fits what is there, as whoever changed it would write it; ``files`` are further entries."""
    about = {k: v for k, v in durable.manifest(checkpoint).items() if k != "files"}
    (checkpoint / "manifest.json").unlink()
    durable.seal(checkpoint, about)
    content = durable.manifest(checkpoint)
    content["files"] |= files
    (checkpoint / "manifest.json").write_text(json.dumps({**content, "digest": durable._digest(content)}))


def resumed(run: Path, goes_on: bool = False) -> str:
    """What is said where it is refused, in one line; empty where it could go on (and does, if asked)."""
    try:
        found = api.resume(run)
        if goes_on:
            api.train_run(found, run)
    except UserError as error:
        said = str(error)
    else:
        return ""
    assert said
    assert "\n" not in said
    return said


def test_the_run_itself_is_good(run: Path) -> None:
    reseal(newest(run))
    assert resumed(run, goes_on=True) == ""
    assert (run / "checkpoints/step-000002/model/model.safetensors").is_file()


# Names that lead elsewhere


@pytest.mark.parametrize("name", ["../../../secret", "{}/secret", "model/../../../../secret", "a\0b"])
def test_a_manifest_cannot_name_a_file_outside(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    entry = {"bytes": 1, "sha256": "0"}
    reseal(newest(run), **{name.format(tmp_path): entry})
    assert "is not in the folder" in resumed(run)


def test_a_link_in_a_checkpoint_leads_nowhere_else(run: Path, tmp_path: Path) -> None:
    shutil.move(newest(run) / "optimizer.safetensors", tmp_path / "elsewhere")
    (newest(run) / "optimizer.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "'optimizer.safetensors' is not in the folder" in resumed(run)


@pytest.mark.parametrize("files", [None, [], {"state.json": None}, {"state.json": {"bytes": "9"}}])
def test_a_manifest_of_another_shape(run: Path, files: Any) -> None:
    content = durable.manifest(newest(run)) | {"files": files}
    (newest(run) / "manifest.json").write_text(json.dumps({**content, "digest": durable._digest(content)}))
    assert "manifest.json is not as it was written" in resumed(run)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"format": 2}', "\x00", '{"digest": 1e999}'])
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_a_file_of_another_shape(run: Path, name: str, text: str) -> None:
    (newest(run) / name).write_text(text)
    if name == "state.json":
        reseal(newest(run))
    assert "damaged" in resumed(run) or "checkpoint format" in resumed(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "traces.jsonl", ".lock", "checkpoints", "best"])
def test_a_link_in_a_run_folder_is_not_written_through(run: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    if (run / name).exists():
        shutil.move(run / name, precious)
    else:
        precious.mkdir()
    (run / name).unlink(missing_ok=True)
    if name == ".lock":
        precious.rmdir() if precious.is_dir() else precious.unlink()
        precious.write_text("mine\n" * 9)
    (run / name).symlink_to(precious)
    before = {p: p.read_bytes() for p in [precious, *tmp_path.glob("precious/**/*")] if p.is_file()}
    assert resumed(run, goes_on=True)
    assert before == {p: p.read_bytes() for p in [precious, *tmp_path.glob("precious/**/*")] if p.is_file()}


# What is in the files


def change(run: Path, **values: Any) -> None:
    path = newest(run) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    reseal(newest(run))


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just(2**80), st.just(-0.5), st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.sampled_from(["position", "a"]), st.integers(-1, 3)),
)  # fmt: skip
KEYS = ("format", "done", "problems", "best", "algorithm", "guards", "paths", "fingerprint", "config")


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=VALUE)
@example(key="done", value="1")
@example(key="problems", value={"position": -1})
@example(key="paths", value={"scoring": [True]})
@example(key="config", value={"model": 3})
@example(key="guards", value={"skipped": "x"})
def test_an_odd_value_in_the_state_is_one_line_or_no_matter(
    run: Path, made: Path, built: Run, key: str, value: Any
) -> None:
    shutil.copytree(newest(made), newest(run), dirs_exist_ok=True)
    change(run, **{key: value})
    loaded(built, newest(run))


@pytest.mark.parametrize("done", [-1, 7, True, "1", None, 1.5])
def test_a_step_that_is_none(run: Path, done: Any) -> None:
    change(run, done=done)
    said = resumed(run)
    assert said or done == 7  # nothing is left to do there


def tensors(run: Path, name: str, **changed: torch.Tensor | None) -> None:
    path = newest(run) / name
    found = {**load_file(path), **changed}
    save_file({k: v for k, v in found.items() if v is not None}, path, metadata={"format": "pt"})
    reseal(newest(run))


@pytest.mark.parametrize("part", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [None, torch.zeros(3, 3), torch.zeros(())])
def test_an_optimizer_state_that_does_not_fit(run: Path, built: Run, part: str, value: torch.Tensor | None) -> None:
    name = next(k for k in load_file(newest(run) / "optimizer.safetensors") if k.endswith("weight.exp_avg"))
    tensors(run, "optimizer.safetensors", **{name.replace("exp_avg", part): value})
    said = resumed(run)
    assert (
        "optimizer state" in said
        or "the checkpoint is damaged" in said
        or (part == "step" and value is not None and value.shape == ())
    )


@pytest.mark.parametrize("step", [float("nan"), float("inf"), -1.0])
def test_an_optimizer_that_has_taken_no_number_of_steps(run: Path, built: Run, step: float) -> None:
    name = next(k for k in load_file(newest(run) / "optimizer.safetensors") if k.endswith(".step"))
    tensors(run, "optimizer.safetensors", **{name: torch.tensor(step)})
    assert "has step" in loaded(built, newest(run))


def test_weights_that_are_missing_are_not_made_up(run: Path) -> None:
    name = next(k for k in load_file(newest(run) / "model/model.safetensors") if "layers" in k)
    tensors(run, "model/model.safetensors", **{name: None})
    assert f"its weights lack {name}" in resumed(run)


def test_a_model_that_follows_is_no_pickle(run: Path, tmp_path: Path) -> None:
    (follower,) = (p.parent for p in newest(run).glob("*/config.json") if p.parent.name != "model")
    (follower / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Runs(tmp_path / "it-ran")}, follower / "pytorch_model.bin")
    reseal(newest(run))
    assert "pytorch_model.bin is a pickle" in resumed(run)
    assert not (tmp_path / "it-ran").exists()


FILES = ("state.json", "optimizer.safetensors", "reference/model.safetensors", "reference/config.json")


@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_with_a_manifest_that_fits_it(
    run: Path, made: Path, built: Run, name: str, at: float, bit: int, cut: bool
) -> None:
    """Without the hashes to tell, whatever is read must stand it."""
    shutil.copytree(newest(made), newest(run), dirs_exist_ok=True)
    content = bytearray((newest(made) / name).read_bytes())
    place = int(at * min(len(content), 2000))
    content = content[:place] if cut else content
    if not cut:
        content[place] ^= 1 << bit
    (newest(run) / name).write_bytes(content)
    reseal(newest(run))
    assert newest_whole(run / "checkpoints")[0] == newest(run)
    loaded(built, newest(run))
