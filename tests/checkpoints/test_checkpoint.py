"""A run that was interrupted and resumed against one that was not; damaged and foreign checkpoints."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from projects import InterruptAt

from covrl import api, files
from covrl.checkpoints.checkpoint import checkpoints, newest_whole, save_checkpoint
from covrl.checkpoints.resuming import ACCEPTED
from covrl.checkpoints.run_writer import CannotSaveError
from covrl.config import RunConfig, check, read_toml
from covrl.errors import RunInterruptedError, UserError
from covrl.quickstart.run import load_config
from covrl.reporting.sinks import read_metrics
from covrl.training import publish
from covrl.training import step as page
from covrl.training.run import Run
from covrl.training.step import take_step

SMALL = [
    "training.steps=5",
    "training.problems_per_step=3",
    "training.stream_norms_every=2",
    "evaluation.every=2",
    "evaluation.problems=8",
    "checkpoint.every=2",
    "training.learning_rate=1e-3",
]


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.parameters])


def rows(folder: Path) -> list[dict]:
    """metrics.jsonl without what may differ between two runs: the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.get("metrics", row).items() if not k.startswith("time/")} for row in lines]


REMEMBERS = [*SMALL, "algorithm.kl_band=[0.001, 0.002]"]
"""A method that remembers: the KL is above its band, so β rises at every step."""

UPDATES = [*SMALL, "algorithm.name=rlpr", "algorithm.filter=0", "training.mini_batches=2"]
"""Two updates a batch, and a method that remembers."""


def trained(folder: Path, settings: list[str]) -> Path:
    """A run from its beginning to its end."""
    api.new_run_folder(folder)
    api.train_run(api.build(load_config(settings)), folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("whole") / "run", REMEMBERS)


@pytest.fixture(scope="module")
def whole_with_updates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("updates") / "run", UPDATES)


def same_files(one: Path, other: Path, step: str) -> None:
    """Two runs' checkpoints of a step are the same, byte for byte."""
    files = [p.relative_to(one / "checkpoints" / step) for p in (one / "checkpoints" / step).rglob("*") if p.is_file()]
    assert len(files) >= 6
    for file in files:
        assert (one / "checkpoints" / step / file).read_bytes() == (other / "checkpoints" / step / file).read_bytes()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupted_run_ends_with_the_same_bytes_as_one_that_was_not(tmp_path: Path, whole: Path, at: int) -> None:
    api.new_run_folder(tmp_path / "parts")
    with pytest.raises(RunInterruptedError):
        api.train_run(api.build(load_config(REMEMBERS)), tmp_path / "parts", [InterruptAt(at)])
    resumed = api.resume(tmp_path / "parts")
    assert resumed.done == at
    api.train_run(resumed, tmp_path / "parts")
    assert rows(whole) == rows(tmp_path / "parts")
    same_files(whole, tmp_path / "parts", "step-000005")
    watch = json.loads((whole / "checkpoints/step-000005/state.json").read_text())["guards"]["watch"]
    assert [look[0] for look in watch["looks"]] == [1, 2, 4, 5]
    assert len(watch["paid"]) == 5
    moved = [row["band/beta"] for row in rows(whole) if "band/beta" in row]
    assert moved == pytest.approx([1.1**step for step in range(5)])


def test_only_the_newest_checkpoints_are_kept_and_the_best_model_beside_them(tmp_path: Path) -> None:
    run = api.build(load_config(SMALL))
    api.new_run_folder(tmp_path / "run")
    trained = api.train_run(run, tmp_path / "run")
    kept = [p.name for p in checkpoints(tmp_path / "run/checkpoints")]
    assert kept == ["step-000004", "step-000005"]
    assert trained.last == tmp_path / "run/checkpoints/step-000005/model"
    assert trained.best == tmp_path / "run/best"
    seen = [(row["eval/accuracy"], row["eval/log_prob"]) for row in rows(tmp_path / "run") if "eval/accuracy" in row]
    assert run.best == max(seen)


def test_the_settings_survive_a_resume(tmp_path: Path) -> None:
    run = api.build(load_config(SMALL))
    config = run.config
    api.new_run_folder(tmp_path / "run")
    with pytest.raises(RunInterruptedError):
        api.train_run(run, tmp_path / "run", [InterruptAt(1)])
    assert api.resume(tmp_path / "run").config == config
    assert check(RunConfig, read_toml(tmp_path / "run/config.toml")) == config


def test_a_torn_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    run = api.build(load_config(SMALL))
    save_checkpoint(run, tmp_path, keep=3)
    (tmp_path / "step-000009").mkdir()
    (tmp_path / ".writing-000010").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-000000"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps that was interrupted after the fourth, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    api.new_run_folder(folder)
    with pytest.raises(RunInterruptedError):
        api.train_run(api.build(load_config(REMEMBERS)), folder, [InterruptAt(4)])
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def flip(path: Path, at: float) -> None:
    """Change one bit in a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 4
    path.write_bytes(content)


def test_every_flipped_bit_cut_end_and_lost_file_is_detected(folder: Path) -> None:
    root = folder / "checkpoints"
    newest = root / "step-000004"
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    assert {p.name for p in files} >= {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    draw = random.Random(0)
    for path in files:
        content = path.read_bytes()
        for damage in (
            lambda p: flip(p, draw.random()),
            lambda p: flip(p, 0),
            lambda p: flip(p, 1),
            lambda p: os.truncate(p, p.stat().st_size // 2),
            lambda p: os.truncate(p, 0),
            lambda p: p.unlink(),
        ):
            damage(path)
            found, damaged = newest_whole(root)
            assert found == root / "step-000002", path
            assert [d[0] for d in damaged] == [newest]
            path.write_bytes(content)
    assert newest_whole(root) == (newest, [])


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(folder: Path, whole: Path) -> None:
    flip(folder / "checkpoints/step-000004/optimizer.safetensors", 0.7)
    run = api.resume(folder)
    assert run.done == 2
    (note,) = run.notes
    assert note.endswith(
        "step-000004 is damaged: optimizer.safetensors is not as it was written (its sha256 differs); "
        "going on from step-000002"
    )
    said: list[str] = []
    api.train_run(run, folder, say=said.append)
    assert said[0] == note
    assert rows(whole) == rows(folder)
    for step in ("step-000004", "step-000005"):
        same_files(whole, folder, step)
    assert (folder / "checkpoints/damaged-step-000004").is_dir()


def test_with_no_usable_checkpoint_the_reason_is_said(folder: Path) -> None:
    for step in ("step-000002", "step-000004"):
        flip(folder / "checkpoints" / step / "state.json", 0.5)
    with pytest.raises(UserError, match=r"step-000004 is damaged: state\.json .* no other checkpoint can be used"):
        api.resume(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="4 steps are recorded, but its checkpoints are gone"):
        api.resume(folder)


def test_a_checkpoint_of_another_version_is_named_and_not_passed_over(folder: Path) -> None:
    newest = folder / "checkpoints/step-000004"
    files.seal(newest, {"format": 99})
    with pytest.raises(UserError, match="checkpoint format 99, this version reads 1 to 3"):
        api.resume(folder)


def test_a_checkpoint_of_format_1_still_loads(folder: Path) -> None:
    """As they were written before there was a manifest: fewer keys, no hashes."""
    newest = folder / "checkpoints/step-000004"
    before = torch.cat([p.detach().flatten() for p in api.resume(folder).parameters])
    state = json.loads((newest / "state.json").read_text())
    old = {key: state[key] for key in ("done", "problems", "best", "algorithm")} | {"format": 1}
    (newest / "state.json").write_text(json.dumps(old))
    (newest / "manifest.json").unlink()
    run = api.resume(folder)
    assert run.done == 4
    assert torch.equal(before, weights(run))
    api.train_run(run, folder)
    (newest / "state.json").write_text('{"format": 2}')
    assert newest_whole(folder / "checkpoints")[0] == folder / "checkpoints/step-000005"


def edit(folder: Path, **changes: str) -> None:
    text = (folder / "config.toml").read_text()
    for key, value in changes.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    (folder / "config.toml").write_text(text)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "learning_rate",
            "0.5",
            r"learning_rate is 0.5, but up to step 4 the run was trained with 0.001: put",
        ),
        ("seed", "9", "training.seed is 9"),
        ("temperature", "0.7", "generation.temperature is 0.7"),
        ("max_trace_tokens", "11", "generation.max_trace_tokens is 11"),
        ("rollouts_per_problem", "3", "training.rollouts_per_problem is 3"),
        ("problems", "7", "evaluation.problems is 7"),
        ("nll_weight", "0.25", "algorithm.nll_weight is 0.25"),
    ],
)
def test_a_changed_setting_is_refused_by_name(folder: Path, key: str, value: str, said: str) -> None:
    text = (folder / "config.toml").read_text()
    if f"\n{key} = " not in text:
        (folder / "config.toml").write_text(text.replace("[algorithm]\n", f"[algorithm]\n{key} = {value}\n"))
    edit(folder, **{key: value})
    with pytest.raises(UserError, match=said):
        api.resume(folder)


def test_harmless_settings_may_change_with_a_note_each(folder: Path) -> None:
    edit(folder, steps="6", keep="3", groups_shown="1", tokens_per_pass="8192")
    run = api.resume(folder)
    said = "\n".join(run.notes)
    for text in ("checkpoint.keep = 3 (it was 2)", "report.groups_shown = 1", "training.tokens_per_pass = 8192"):
        assert text in said
    assert "training.steps = 6 (it was 5): the run ends there" in said
    assert len(run.notes) == 4
    assert len(api.train_run(run, folder).reports) == 2


def test_all_that_may_change_is_a_setting() -> None:
    table = load_config(SMALL).model_dump()
    for name in ACCEPTED:
        section, key = name.split(".")
        assert key in table[section] if key else section in table


def test_the_table_of_what_may_change_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.split("### What may change on a resume")[1].split("\n\n")[2]
    promised = [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(promised) == sorted(name + "*" * name.endswith(".") for name in ACCEPTED)


def test_other_problems_are_refused(folder: Path) -> None:
    problems = api.resume(folder).source.problems
    with pytest.raises(UserError, match=r"problems\.train: its problems are not those that the run was trained with"):
        api.resume(folder, problems=problems[:-1])
    with pytest.raises(UserError, match=r"problems\.held_out: its problems are not those"):
        api.resume(folder, held_out=problems[:8])


def test_a_run_that_was_resumed_too_late_touches_nothing(folder: Path) -> None:
    late, first = api.resume(folder), api.resume(folder)
    api.train_run(first, folder)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="the run is at step 5 already; resume it again"):
        api.train_run(late, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before


class Fails(Exception):
    """Raised by the tests."""


def failing(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, at: int) -> None:
    """The ``at``-th call of a function raises."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def wrapped(*arguments: object, **named: object) -> object:
        if next(calls) == at:
            raise Fails(name)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name", "at", "left"),
    [
        (page, "set_rate", 4, ["step-000002", "step-000003"]),  # sampled, and nothing moved: step 3 can be saved
        (page, "add_gradient", 8, ["step-000002", "step-000003"]),  # step 4, after its first update: taken back
        (publish, "follow", 4, ["step-000002", "step-000003"]),
        (page, "held_out_metrics", 3, ["step-000002", "step-000003"]),
    ],
)
def test_an_error_inside_a_step_leaves_only_checkpoints_of_whole_steps(
    tmp_path: Path,
    whole_with_updates: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    at: int,
    left: list[str],
) -> None:
    run = tmp_path / "run"
    api.new_run_folder(run)
    with monkeypatch.context() as patch:
        failing(patch, owner, name, at)
        with pytest.raises(Fails):
            api.train_run(api.build(load_config(UPDATES)), run)
    assert [p.name for p in checkpoints(run / "checkpoints")] == left
    api.train_run(api.resume(run), run)
    assert rows(whole_with_updates) == rows(run)
    same_files(whole_with_updates, run, "step-000005")


def test_an_update_in_which_no_trace_has_weight_breaks_no_figure(tmp_path: Path) -> None:
    """GRPO with all answers wrong: the streams' norms of such an update are not there to be averaged."""
    config = load_config([*SMALL, "algorithm.name=grpo", "rewards.verifier=text", "training.mini_batches=3"])
    report = take_step(api.build(config))
    assert report.metrics["optim/updates"] == 3


@pytest.mark.parametrize("limit", [200, 20_000, 150_000])
def test_a_disk_that_takes_no_more_ends_the_run_with_one_line(tmp_path: Path, folder: Path, limit: int) -> None:
    """The system refuses to write any file beyond a size, as it does with a quota."""
    before = {p: p.read_bytes() for p in (folder / "checkpoints/step-000004").rglob("*") if p.is_file()}
    run = api.resume(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(CannotSaveError, match=r"cannot write there .*File too large.*last good .* step-000004$"):
            api.train_run(run, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert before == {p: p.read_bytes() for p in before}
    assert api.train_run(api.resume(folder), folder).run.done == 5
    assert [report.step for report in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stage", ["writing", "sealed", "old aside", "in place"])
def test_a_folder_that_is_replaced_is_never_lost(tmp_path: Path, stage: str) -> None:
    """Every state in which a kill can leave ``finish``."""
    best = tmp_path / "best"
    for value in ("old", "new"):
        written = files.begin(best)
        (written / "weights").write_text(value)
        if value == "new" and stage == "writing":
            break
        if value == "new" and stage != "in place":
            files.seal(written, {"value": value})
            if stage == "old aside":
                best.rename(tmp_path / ".old-best")
            break
        files.finish(written, best, {"value": value})
    expected = "new" if stage in ("old aside", "in place") else "old"
    found = files.present(best)
    assert found is not None
    assert (found / "weights").read_text() == expected
    files.recover(best)
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert (best / "weights").read_text() == expected
    assert files.damage(best) is None


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.toml: no such file"):
        api.resume(tmp_path)
