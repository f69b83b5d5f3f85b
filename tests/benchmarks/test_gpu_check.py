"""Every part of benchmarks/gpu_check.py runs on a CPU with tiny sizes, before a machine is rented for it."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from transformers import AutoModelForCausalLM

from covrl.cli.app import main

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)

import gpu_check  # noqa: E402
from gpu import commands, common  # noqa: E402
from gpu.cut import cut  # noqa: E402

sys.path.remove(BENCHMARKS)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the check cost no process each."""

    def covrl(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["covrl", *words])
        with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return {}

    monkeypatch.setattr(commands, "covrl", covrl)


@pytest.fixture(scope="module")
def shown() -> dict[str, list[dict[str, Any]]]:
    """The lines of the parts that have run."""
    return {}


@pytest.mark.parametrize("name", gpu_check.LIMITS)
def test_every_part_runs_on_a_cpu(
    name: str, shown: dict[str, Any], in_this_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    code = gpu_check.inside(name, "covrl:digits", tiny=True)
    shown[name] = found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0, [line for line in found if "failed" in line]
    assert len(found) > 1
    assert {line["part"] for line in found} == {name}


def test_what_the_parts_find_is_right_where_it_is_known(shown: dict[str, Any]) -> None:
    """On a CPU in float32 the paths agree; sharded gradients, repeated runs and repeated calls do everywhere."""
    if shown.keys() < gpu_check.LIMITS.keys():
        pytest.skip("the parts have not run")
    noise = [line for line in shown["noise"] if line.get("dtype") == "float32" and "max" in line]
    assert {line["path"] for line in noise} >= {"padded", "shared prompts", "decoding, prompts kept once"}
    assert all(line["mean"] <= line["max"] < 1e-3 for line in noise)
    assert all(line["off"] < 1e-2 for line in shown["heads"][1:])
    assert all(max(line["off"]) < 0.05 and all(line["same_bits"]) for line in shown["attention"][1:])
    assert {line.get("gradient_off", 0) < 1e-2 for line in shown["sharding"]} == {True}
    kinds = [line["logits"] for line in shown["sampling"] if "logits" in line]
    assert len(kinds) == 3
    assert kinds == pytest.approx([kinds[0]] * 3, rel=0.05, abs=5.0)
    assert [line["same_bytes_twice"] for line in shown["commands"] if "same_bytes_twice" in line] == [True]
    assert all(line["mfu"] > 0 for line in shown["steps"][1:])


def test_an_error_is_a_finding_and_a_part_has_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.tried({"n": 1}, lambda: {"ratio": 1 / 0}) == {"n": 1, "failed": "ZeroDivisionError: division by zero"}
    assert gpu_check.limited("a", [sys.executable, "-c", "raise SystemExit(3)"], 60) == 3
    assert gpu_check.limited("b", [sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == "stopped after 0.2 s"
    ends = [json.loads(line)["end"] for line in capsys.readouterr().out.splitlines()]
    assert ends == [3, "stopped after 0.2 s"]
    with pytest.raises(RuntimeError, match=r"ended with 2: .*nowhere\.toml: no such file"):
        commands.covrl("train", "--config", "nowhere.toml")


def test_a_part_of_a_pretrained_model_has_fewer_layers_and_tokens(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "whole", num_hidden_layers=8)
    cut(str(tmp_path / "whole"), tmp_path / "cut")
    whole, part = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert part.config.num_hidden_layers == len(part.model.layers) == 6
    assert part.config.vocab_size == whole.config.vocab_size
    ids = torch.arange(5)[None]
    assert torch.isfinite(part(input_ids=ids).logits.float()).all()
