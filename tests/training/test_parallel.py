"""Two processes against one: samples, gradients, weights, metrics, checkpoints; and what a rank's death does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from projects import write_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from covrl import api
from covrl.config import to_toml
from covrl.distributed.parts import load_parts, names_in
from covrl.distributed.processes import _portable, _restored
from covrl.distributed.world import deal, part_of
from covrl.guards.bundle import read_bundle
from covrl.records import Output, Scores

sys.path.insert(0, str(Path(__file__).parent))
import many
from worlds import Worlds

Launch = Callable[..., subprocess.CompletedProcess[str]]
"""Starts several processes: :func:`torchrun`, or without its imports the fixture ``worlds``."""

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def torchrun(
    *arguments: str, path: Path | None = None, limit: int = 240, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, on a free port; ``path`` is added to where they find modules."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += arguments
    found_in = os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": found_in}
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)


def make_models(folder: Path) -> None:
    for family in ("gpt2", "llama"):  # tied and untied output layers; only GPT-2 is float64 all through
        save_tiny(family, folder / family)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, worlds: Worlds) -> Path:
    """Models, a run of one process, and what two processes did."""
    folder = tmp_path_factory.mktemp("many")
    make_models(folder)
    many.train(folder, folder / "by-one")
    many.batch(folder)
    many.cut(folder / "by-one", folder / "by-one-cut")
    done = worlds("many", str(folder), path=Path(__file__).parent, limit=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, dict[str, Any]]:
    return torch.load(folder / "two.pt", weights_only=False)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", many.CASES)
def test_two_processes_do_what_one_does(folder: Path, two: dict[str, dict[str, Any]], name: str) -> None:
    _, dtype, training, _ = many.CASES[name]
    one, found = many.observe(folder, name), two[name]
    limit = TOLERANCE[dtype]
    assert found["sharded"] == (training.get("weights") != "replicated")
    assert found["samples"] == one["samples"]
    assert one["gradient"].norm() > 0
    assert apart(found["gradient"], one["gradient"]) <= limit
    assert apart(found["weights"], one["weights"]) <= limit
    for here, there in zip(one["metrics"], found["metrics"], strict=True):
        same_metrics(here, there, limit)


@pytest.mark.parametrize("name", [name for name in many.CASES if "merged" in name])
def test_a_group_that_a_pass_holds_is_read_once_on_its_rank(two: dict[str, dict[str, Any]], name: str) -> None:
    """Without a scoring pass; one that is larger is scored first."""
    scored = [step["tokens/scored"] for step in two[name]["metrics"]]
    trained = [step["tokens/trained"] for step in two[name]["metrics"]]
    if name == "covrl merged in part":
        assert 0 < sum(scored) < sum(trained)
    else:
        assert not any(scored)
        assert sum(trained) > 0


def same_metrics(one: dict[str, float], other: dict[str, float], limit: float) -> None:
    """The work done among them: two processes read what one reads, as often."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert other[key] == pytest.approx(value, rel=100 * limit, abs=limit, nan_ok=True), key


@pytest.mark.parametrize("method", many.OTHERS)
def test_two_processes_have_the_gradient_of_one_in_every_method(
    folder: Path, two: dict[str, dict[str, Any]], method: str
) -> None:
    one, found = many.one_step(folder, method), two["others"][method]
    assert one["gradient"].norm() > 0
    assert apart(found["gradient"], one["gradient"]) <= TOLERANCE["float64"]
    same_metrics(one["metrics"], found["metrics"], TOLERANCE["float64"])


def test_each_process_holds_a_part_of_the_weights(two: dict[str, dict[str, Any]]) -> None:
    assert two["covrl replicated"]["held"] == 1.0
    assert two["covrl"]["held"] < 0.75  # the rest is the tied embedding
    assert two["covrl float32"]["held"] < 0.75


def test_a_batch_is_accumulated_over_several_passes_of_every_rank(two: dict[str, dict[str, Any]]) -> None:
    """Each within the token budget; where weights are sharded all ranks make as many, as each takes part in all."""
    for name in many.CASES:
        passes = two[name]["passes"]
        assert min(passes) > 1 or "idle rank" in name or "merged" in name
        assert len(set(passes)) == 1 or not two[name]["sharded"]


def test_bfloat16_products_on_float32_weights_give_one_gradient(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    """With activations computed again. Two ranks round otherwise than one, by a few units of bfloat16's 2^-8."""
    one, found = many.mixed(folder), two["mixed"]
    assert found["sharded"]
    assert one["kinds"] == found["kinds"] == {"torch.float32"}
    assert apart(found["gradient"], one["gradient"]) <= 2e-2
    assert apart(found["weights"], one["weights"]) <= 1e-2


def last_state(run: Path) -> torch.Tensor:
    """Weights and moments of a run's last checkpoint, in the order of their names."""
    step = run / "checkpoints" / "step-000003"
    found = load_file(step / "model" / "model.safetensors")
    parts = step / "optimizer" if (step / "optimizer").is_dir() else step
    shapes = {f"{name}.{kind}": value for name, value in found.items() for kind in ("exp_avg", "exp_avg_sq")}
    moments = {name: torch.zeros_like(value) for name, value in shapes.items() if name in names_in(parts)}
    assert len(moments) == len(shapes)
    load_parts(moments, parts)
    found |= moments
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def test_a_checkpoint_of_one_is_resumed_by_two(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert two["resumed"]["sharded"]
    assert apart(last_state(folder / "by-one-cut"), last_state(folder / "by-one")) <= TOLERANCE["float64"]


def test_a_checkpoint_of_two_is_resumed_by_one(folder: Path) -> None:
    many.resume(many.cut(folder / "by-two", folder / "by-two-cut"))
    assert apart(last_state(folder / "by-two-cut"), last_state(folder / "by-one")) <= TOLERANCE["float64"]


def test_a_checkpoint_of_two_is_resumed_by_two_bit_for_bit(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert two["resumed"]["sharded"]
    assert torch.equal(last_state(folder / "again-by-two"), last_state(folder / "by-two"))
    assert not torch.equal(last_state(folder / "by-two"), last_state(folder / "by-one")), "or the bound says little"


def test_ranks_that_see_different_checkpoints_read_none(two: dict[str, dict[str, Any]]) -> None:
    """Both would take part in reading, each of another step; they say so before."""
    said = "the processes read different checkpoints; they need one shared folder"
    assert two["lagging"]["said"] == [said, said]


def files(run: Path) -> dict[str, Path]:
    return {str(p.relative_to(run)): p for p in sorted(run.rglob("*")) if p.is_file()}


def test_the_folder_of_two_is_that_of_one_with_the_optimizer_in_parts(folder: Path) -> None:
    """Nothing is written twice, or only in part; the model is a plain folder with the same description."""
    one, other = files(folder / "by-one"), files(folder / "by-two")
    parts = [name for name in other if "/optimizer/" in name]
    assert len(parts) == 2 * 2, "two checkpoints of two ranks"
    assert other.keys() - set(parts) == {name for name in one if not name.endswith("optimizer.safetensors")}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        for where in ("best", "checkpoints/step-000003/model"):
            assert other[f"{where}/{name}"].read_bytes() == one[f"{where}/{name}"].read_bytes()
    steps = [[json.loads(line)["step"] for line in found["metrics.jsonl"].open()] for found in (one, other)]
    assert steps[0] == steps[1]
    sizes = [other[name].stat().st_size for name in parts if "step-000003" in name]
    whole = one["checkpoints/step-000003/optimizer.safetensors"].stat().st_size
    assert max(sizes) < 0.75 * whole
    assert sum(sizes) < 1.1 * whole
    loaded = AutoModelForCausalLM.from_pretrained(folder / "by-two" / "best", dtype="auto").state_dict()
    expected = AutoModelForCausalLM.from_pretrained(folder / "by-one" / "best", dtype="auto").state_dict()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)
    # of the whole model: AdamW makes steps of the rounding in the keys' biases, whose gradient is zero
    one_by_one = [torch.cat([found[n].double().flatten() for n in expected]) for found in (loaded, expected)]
    assert apart(*one_by_one) <= TOLERANCE["float64"]


def test_a_torn_part_is_detected_and_the_checkpoint_before_is_used(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "by-two", run)
    part = sorted((run / "checkpoints" / "step-000003" / "optimizer").iterdir())[-1]
    part.write_bytes(part.read_bytes()[:-1])
    resumed = api.resume(run, many.PROBLEMS, many.PROBLEMS[:5])
    assert resumed.done == 2
    assert any("step-000003 is damaged: optimizer/" in note for note in resumed.notes)
    part.unlink()
    assert api.resume(run, many.PROBLEMS, many.PROBLEMS[:5]).done == 2


def test_an_error_of_one_rank_is_the_error_of_all(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    """They end together, with what one process would leave: the checkpoint of the last whole step, and a bundle."""
    for said in two["fails: reward"]["said"]:
        assert said.startswith("UserError: reward function many:Broken: problem p")
        assert said.endswith("ValueError: no such text")
    assert [p.name for p in (folder / "reward-2" / "checkpoints").glob("step-*")] == ["step-000001"]
    for said in two["fails: loss"]["said"] + two["fails: loss, merged"]["said"]:
        assert said.startswith("NonFiniteError: step 1: the policy loss is nan at ")
    assert (folder / "loss-2" / "non-finite" / "step-000001").is_dir()


@pytest.mark.parametrize("what", ["nan", "gradient", "gradient, merged"])
def test_what_is_not_finite_is_named_as_one_process_names_it(
    folder: Path, two: dict[str, dict[str, Any]], what: str
) -> None:
    expected = many.fails(folder, what)
    assert expected.startswith("NonFiniteError: step ")
    out = what.replace(", ", "")
    found = [said.replace(f"{out}-2", f"{out}-1") for said in two[f"fails: {what}"]["said"]]
    assert found == [expected] * 2
    if what != "nan":
        assert "from the policy loss at problem p" in expected
        assert ", rollout 1 (" in expected
    bundles = [next((folder / f"{out}-{ranks}" / "non-finite").iterdir()) for ranks in (1, 2)]
    names = [[c.name for c in read_bundle(bundle)[1]] for bundle in bundles]
    assert names[0] == names[1]
    assert len(names[0]) == 1


@pytest.mark.parametrize(("where", "name"), many.EXHAUSTED)
def test_a_rank_that_runs_out_of_memory_tries_again_with_the_others(
    two: dict[str, dict[str, Any]], where: str, name: str
) -> None:
    """With half the tokens a pass; the run is then that of nobody running out."""
    plain = two[name]["weights"]
    tokens = many.CASES[name][2].get("tokens_per_pass", 150)
    for rank in two[f"memory: {where}, {name}"]["ranks"]:
        assert rank["left"] == 0, "the fault came"
        (said,) = rank["said"]
        half = f"training.tokens_per_pass = {tokens // 2} instead of {tokens}"
        if where == "sampling":  # a rank has five rows at most
            half = "generation.rows_per_pass = 4 instead of 256"
        assert re.match(f"out of memory(?: while sampling)?: done again with {half}", said)
        assert apart(rank["weights"], plain) <= TOLERANCE["float64"]


def test_ranks_agree_on_what_fits_the_one_with_least_memory(two: dict[str, dict[str, Any]]) -> None:
    """Only the first rank measures, and only the second has little memory."""
    first, second = two["fitted"]["ranks"]
    assert first == second
    tokens, rows, (said,) = first
    assert tokens < 2048
    assert rows < 256
    assert said.startswith("chosen for 4.0 MiB of main memory")


def test_ranks_that_run_out_of_memory_twice_end_together(two: dict[str, dict[str, Any]]) -> None:
    """So they can still write a checkpoint of the last whole step."""
    for rank in two["memory: twice"]["ranks"]:
        assert rank["agreed"]
        assert rank["done"] == 1
        assert rank["said"][0].startswith("CUDA out of memory: with training.tokens_per_pass = 75 ")


@pytest.mark.parametrize("name", many.STOPPED)
def test_sigterm_leaves_the_pass_on_all_ranks_and_a_checkpoint(
    folder: Path, two: dict[str, dict[str, Any]], name: str
) -> None:
    for rank in two[f"stopped: {name}"]["ranks"]:
        assert rank["said"] == "interrupted inside step 2, of which nothing was kept"
        assert rank["passes"] <= 3, "none is begun after the one in which the signal came"
    assert [p.name for p in (folder / f"stopped {name} at").iterdir()] == ["step-000001"]
    assert torch.equal(last_state(folder / f"stopped {name}"), last_state(folder / "by-two"))


DYING = """
import os, sys

seen = 0

def reward(problem, text):
    global seen
    seen += 1
    if os.environ["RANK"] == "1" and seen > 5:  # inside the second step
        print("rank 1 dies now", file=sys.stderr, flush=True)
        os._exit(17)
    return 0.5
"""


def last_words(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if re.match(r"covrl( \(rank \d+\))?: ", line)]


def write_project(folder: Path, project: Path) -> None:
    rows = [{"question": p.question, "answer": p.answer} for p in many.PROBLEMS]
    write_rows(project / "problems.jsonl", rows)
    (project / "run.toml").write_text(to_toml(many.config(folder, "covrl")))


def train_by(
    launch: Launch, folder: Path, project: Path, module: str, code: str, *more: str, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """``covrl train`` on two processes with the reward function of a module of this code."""
    (project / f"{module}.py").write_text(code)
    write_project(folder, project)
    run = ["--config", str(project / "run.toml"), "--set", f"problems.train={project / 'problems.jsonl'}"]
    run += ["--out", str(project / "run"), "--reward", f"{module}:reward", *more]
    return launch("-m", "covrl", "train", *run, path=project, limit=400, processes=processes)


def test_when_a_rank_dies_all_end_with_a_message(folder: Path, tmp_path: Path) -> None:
    """And up to there, of two processes one speaks."""
    done = train_by(torchrun, folder, tmp_path, "dying", DYING)
    assert done.returncode != 0
    assert "rank 1 dies now" in done.stderr
    assert "exitcode  : 17" in done.stderr
    assert done.stderr.count("step 1/3") == 1
    assert "[rank" not in done.stderr, "what the other says, if torchrun does not end it before, is one line too"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


NAMED = """
import asyncio

async def slow(problem, text):
    await asyncio.sleep(0.01 * (len(text) % 3))
    return len(text)

def total(problems, texts):
    return [len(text) / 2 for text in texts]

async def stuck(problem, text):
    await asyncio.sleep(60 * (problem.id[-1] in "13579"))
    return 0.0
"""


def test_several_reward_functions_on_two_processes(tmp_path: Path, worlds: Worlds) -> None:
    """Each rank asks them for its share; all hold all values. What hangs on one ends both, in one line."""
    (tmp_path / "named.py").write_text(NAMED)
    make_models(tmp_path)
    write_project(tmp_path, tmp_path)
    run = ["-m", "covrl", "train", "--config", str(tmp_path / "run.toml"), "--set", "training.steps=1"]
    run += ["--set", f"problems.train={tmp_path / 'problems.jsonl'}", "--reward", "slow=named:slow"]
    run += ["--reward", "total=named:total", "--set", "reward.total.batched=true", "--set", "reward.total.weight=-2"]
    done = worlds(*run, "--out", str(tmp_path / "two"), path=tmp_path, limit=400, processes=2)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "two" / "metrics.jsonl").read_text())["metrics"]
    assert metrics["reward/slow"] == 2 * metrics["reward/total"] > 0
    run += ["--reward", "stuck=named:stuck", "--set", "reward.stuck.timeout_s=1"]
    done = worlds(*run, "--out", str(tmp_path / "stuck"), path=tmp_path, limit=400, processes=2)
    assert done.returncode != 0
    (said,) = [line for line in last_words(done) if "reward function" in line]
    assert re.search(r"^covrl: reward function named:stuck: problem \S+, rollout \d+ \(\w+\): ran into its time", said)


PREEMPTED = """
import os, signal

seen = 0

def reward(problem, text):
    global seen
    seen += 1
    if seen == 12:  # inside the second step
        os.kill(os.getppid(), signal.SIGTERM)  # as a scheduler signals torchrun, and nobody else
    return 0.5
"""


def test_sigterm_to_torchrun_alone_leaves_a_checkpoint_of_the_last_whole_step(folder: Path, tmp_path: Path) -> None:
    """It hands the signal on, and waits for the process to end."""
    more = ("--set", "training.steps=200")
    done = train_by(torchrun, folder, tmp_path, "preempted", PREEMPTED, *more, processes=1)
    assert done.returncode != 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))
    assert 1 <= len(steps) < 200
    said = last_words(done)[-1]
    assert re.search(r"interrupted (inside|after) step \d+.*; continue with: covrl train --resume", said)
    newest = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    assert newest == f"step-{len(steps):06d}"


TORN = """
import os, signal

from covrl.checkpoints import checkpoint

save = checkpoint.save_parts

def half(tensors, folder):
    if os.environ.get("RANK") == "1" and "step-000003" in str(folder):
        (folder.parent / "optimizer").mkdir(exist_ok=True)
        (folder / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    save(tensors, folder)

checkpoint.save_parts = half

def reward(problem, text):
    return 0.5
"""


def test_a_rank_killed_while_it_writes_its_part_costs_only_time(
    folder: Path, worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has no name before all ranks have written; one process goes on from the one before."""
    done = train_by(worlds, folder, tmp_path, "torn", TORN)
    # torchrun names the process that it sees end first: the killed one, or the other, which says why
    assert re.search(r"exitcode +: -9|another process of the run has ended", done.stderr)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000002"]
    monkeypatch.syspath_prepend(str(tmp_path))
    resumed = api.resume(tmp_path / "run", reward="torn:reward")
    assert resumed.done == 2
    api.train_run(resumed, tmp_path / "run")
    whole = api.train(resumed.config, out=tmp_path / "whole")
    assert apart(last_state(tmp_path / "run"), last_state(whole.folder)) <= TOLERANCE["float64"]
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-000002", "step-000003"]


FULL = """
import os

import torch

backward, calls = torch.Tensor.backward, 0

def full(*given, **named):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls > 1:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return backward(*given, **named)

torch.Tensor.backward = full

def reward(problem, text):
    return 0.5
"""


def test_a_rank_that_runs_out_of_memory_where_others_wait_ends_all_with_the_arithmetic(
    folder: Path, worlds: Worlds, tmp_path: Path
) -> None:
    """In a backward pass on sharded weights: there is no second try, and nobody waits for ever."""
    done = train_by(worlds, folder, tmp_path, "full", FULL)
    assert done.returncode != 0
    (said,) = [line for line in last_words(done) if line.startswith("covrl (rank 1)")]
    assert said.startswith("covrl (rank 1): CUDA out of memory: with training.tokens_per_pass = 150 ")
    assert f"continue with: covrl train --resume {tmp_path / 'run'}" in said
    assert "[rank" not in done.stderr, "no traceback of those that waited"


def test_what_is_wrong_for_all_ranks_is_said_once(folder: Path, worlds: Worlds, tmp_path: Path) -> None:
    write_project(folder, tmp_path)
    wrong = ["--config", str(tmp_path / "run.toml"), "--set", "model.path=/nowhere"]
    done = worlds("-m", "covrl", "train", *wrong, limit=400)
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    assert last_words(done) == ["covrl: model.path: there is no folder /nowhere"]
    assert done.stdout == ""
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_deal_is_a_partition_of_close_loads() -> None:
    generator = torch.Generator().manual_seed(0)
    for ranks in (1, 2, 3, 8):
        for count in (0, 1, 2, 7, 40):
            sizes = torch.randint(1, 50, (count,), generator=generator).tolist()
            shares = deal(sizes, ranks)
            assert sorted(i for share in shares for i in share) == list(range(count))
            loads = [sum(sizes[i] for i in share) for share in shares]
            assert max(loads) - min(loads) <= max(sizes, default=0)
    assert deal([3, 1, 2], 1) == [[0, 1, 2]]


def test_contiguous_shares_cover_everything_once() -> None:
    for size in (1, 2, 3, 5):
        for length in (0, 1, 4, 17):
            shares = [list(range(length))[part_of(length, rank, size)] for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(length))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_scores_travel_without_what_they_are_views_of() -> None:
    whole = torch.arange(1000, dtype=torch.float64)
    output, wide = Output("trace", "prior"), Output("trace", "top")
    sent = [Scores({output: whole[5:8], wide: whole[10:16].view(3, 2)}, 7), Scores({}, 0)]
    part = _portable(sent)
    assert part.flat.numel() == 9
    back = _restored(part)
    assert [s.tokens for s in back] == [7, 0]
    assert back[0][output].tolist() == [5, 6, 7]
    assert back[0][wide].tolist() == [[10, 11], [12, 13], [14, 15]]
    assert _restored(_portable([1, 2])) == [1, 2]
