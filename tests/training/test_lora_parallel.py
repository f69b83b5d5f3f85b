"""LoRA on two processes against one: the base in parts, every adapter whole."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import many_lora
from worlds import Worlds

pytest.importorskip("peft")

TOLERANCE = {"bfloat16": 0.2, "four bits": 1e-4}
"""Of what is float64 all through, 1e-10. Of a bfloat16 base: matrices of other shapes round otherwise. One of 4 bits,
whose codes the first process makes for all, computes in float32 here."""


def cut(run: Path, copy: Path) -> Path:
    """A copy of a run as if it had been killed behind its second step."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-000003")
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, worlds: Worlds) -> Path:
    """A model, a run of one process, and what two processes did."""
    folder = tmp_path_factory.mktemp("many")
    save_tiny("gpt2", folder / "model")
    save_tiny("llama", folder / "llama")
    many_lora.train(folder, folder / "by-one")
    cut(folder / "by-one", folder / "by-one-cut")
    done = worlds("many_lora", str(folder), path=Path(__file__).parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, dict[str, Any]]:
    return torch.load(folder / "two.pt", weights_only=False)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", many_lora.CASES)
def test_two_processes_do_what_one_does(folder: Path, two: dict[str, dict[str, Any]], name: str) -> None:
    one, found, limit = many_lora.observe(folder, name), two[name], TOLERANCE.get(name, 1e-10)
    assert found["sharded"] == (name not in ("frozen", "four bits"))
    assert found["held"] < 0.8 if found["sharded"] else found["held"] == 1  # the rest: tied embedding, adapters
    assert one["gradients"][0].norm() > 0
    assert apart(found["gradients"][0], one["gradients"][0]) <= limit
    if name in TOLERANCE:
        return
    for here, there in zip(one["gradients"], found["gradients"], strict=True):
        assert apart(there, here) <= limit
    assert apart(found["adapters"], one["adapters"]) <= limit
    for here, there in zip(one["metrics"], found["metrics"], strict=True):
        assert there == pytest.approx(here, rel=100 * limit, abs=limit, nan_ok=True)


def last_state(run: Path) -> Tensor:
    """Adapters and moments of a run's last checkpoint, in the order of their names."""
    step = run / "checkpoints" / "step-000003"
    found = {name: t for file in step.rglob("*.safetensors") for name, t in load_file(file).items()}
    return torch.cat([found[name].double().flatten() for name in sorted(found)])


def test_checkpoints_of_one_are_resumed_by_two_and_those_of_two_by_one(folder: Path) -> None:
    whole = last_state(folder / "by-one")
    assert apart(last_state(folder / "by-one-cut"), whole) <= 1e-10  # two went on with it
    many_lora.resume(cut(folder / "by-two", folder / "by-two-cut"))
    assert apart(last_state(folder / "by-two-cut"), whole) <= 1e-10
    assert (folder / "by-two" / "best" / "adapter_config.json").is_file()


def test_compiling_shards_is_refused_in_one_line(two: dict[str, dict[str, Any]]) -> None:
    assert two["compile"]["said"] == (
        'model.compile does not go with sharded weights: set training.weights = "replicated"'
    )
