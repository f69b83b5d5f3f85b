"""Two processes against one: samples, gradients, weights, metrics, checkpoints; and what a rank's death does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import character_tokenizer, tiny
from safetensors.torch import load_file

from covrl.config import to_toml
from covrl.records import Output, Scores
from covrl.training.distributed import _portable, _restored
from covrl.training.parallel import deal, part_of

sys.path.insert(0, str(Path(__file__).parent))
import many

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def torchrun(*arguments: str, path: Path | None = None, limit: int = 240) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, on a free port; ``path`` is added to where they find modules."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    found_in = os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": found_in}
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)


def make_models(folder: Path) -> None:
    tokenizer = character_tokenizer()
    for family in ("gpt2", "llama"):  # tied and untied output layers; only GPT-2 is float64 all through
        tiny(family, len(tokenizer)).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)


def cut(folder: Path, copy: Path) -> Path:
    """A copy of a run as if it had been killed behind its second step."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / "step-000003")
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a run of one process, and what two processes did."""
    folder = tmp_path_factory.mktemp("many")
    make_models(folder)
    many.train(folder, folder / "by-one")
    cut(folder / "by-one", folder / "by-one-cut")
    done = torchrun(str(Path(many.__file__)), str(folder))
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
        assert here.keys() == there.keys()
        for key, value in here.items():
            assert there[key] == pytest.approx(value, rel=100 * limit, abs=limit, nan_ok=True), key


def test_each_process_holds_a_part_of_the_weights(two: dict[str, dict[str, Any]]) -> None:
    assert two["covrl replicated"]["held"] == 1.0
    assert two["covrl"]["held"] < 0.75  # the rest is the tied embedding
    assert two["covrl float32"]["held"] < 0.75


def last_state(run: Path) -> torch.Tensor:
    """Weights and moments of a run's last checkpoint, in the order of their names."""
    step = run / "checkpoints" / "step-000003"
    found = load_file(step / "model" / "model.safetensors") | load_file(step / "optimizer.safetensors")
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def test_a_checkpoint_of_one_is_resumed_by_two(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    assert two["resumed"]["sharded"]
    assert apart(last_state(folder / "by-one-cut"), last_state(folder / "by-one")) <= TOLERANCE["float64"]


def test_a_checkpoint_of_two_is_resumed_by_one(folder: Path) -> None:
    many.resume(cut(folder / "by-two", folder / "by-two-cut"))
    assert apart(last_state(folder / "by-two-cut"), last_state(folder / "by-one")) <= TOLERANCE["float64"]


def test_the_folder_of_two_is_that_of_one(folder: Path) -> None:
    """Files, rows of metrics, and names and shapes in checkpoints: nothing is written twice, or only in part."""
    one, other = folder / "by-one", folder / "by-two"
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (one, other)]
    assert names[0] == names[1]
    steps = [[json.loads(line)["step"] for line in (f / "metrics.jsonl").open()] for f in (one, other)]
    assert steps[0] == steps[1]


def test_an_error_of_one_rank_is_the_error_of_all(folder: Path, two: dict[str, dict[str, Any]]) -> None:
    """They end together, with what one process would leave: the checkpoint of the last whole step, and a bundle."""
    for said in two["fails: reward"]["said"]:
        assert said.startswith("UserError: reward function __main__:Broken: problem p")
        assert said.endswith("ValueError: no such text")
    assert [p.name for p in (folder / "reward" / "checkpoints").glob("step-*")] == ["step-000001"]
    for said in two["fails: loss"]["said"]:
        assert said.startswith("NonFiniteError: step 1: the policy loss is nan at ")
    assert (folder / "loss" / "non-finite" / "step-000001").is_dir()


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


def test_when_a_rank_dies_all_end_with_a_message(folder: Path, tmp_path: Path) -> None:
    """And up to there, of two processes one speaks."""
    (tmp_path / "dying.py").write_text(DYING)
    rows = [{"question": p.question, "answer": p.answer} for p in many.PROBLEMS]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.toml").write_text(to_toml(many.config(folder, "covrl")))
    run = ["--config", str(tmp_path / "run.toml"), "--set", f"problems.train={tmp_path / 'problems.jsonl'}"]
    run += ["--out", str(tmp_path / "run"), "--reward", "dying:reward"]
    done = torchrun("-m", "covrl", "train", *run, path=tmp_path, limit=120)
    assert done.returncode != 0
    assert "rank 1 dies now" in done.stderr
    assert "exitcode  : 17" in done.stderr
    assert done.stderr.count("step 1/3") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


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
