"""Evaluation through other engines, and by several processes: the same figures, and no run's engine by accident."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import many_eval
import pytest
from models import character_tokenizer, tiny
from projects import write_rows
from worlds import Worlds

from covrl import api
from covrl.cli.eval_run import Order
from covrl.cli.evaluate import run_eval
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator
from covrl.generation.engine import TorchGenerator

sys.path.append(str(Path(__file__).parent.parent / "generation"))
import fake_vllm

RUN = """
[model]
path = "model"
device = "cpu"
dtype = "{dtype}"
[prompts]
user = "{{question}}"
prior_open = "="
posterior_open = "({{hint}})="
close = "e"
answer_prefix = ":"
answer_suffix = ";"
[generation]
max_trace_tokens = 10
max_answer_tokens = 4
rows_per_pass = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, five problems, settings; fake vLLM in the place of the real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)  # ty: ignore
    tokenizer = character_tokenizer()
    tiny("qwen2", len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    write_rows(Path("problems.jsonl"), [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(5)])
    Path("run.toml").write_text(RUN.format(dtype="float32"))
    return tmp_path


def same(one: Any, other: Any, path: str = "") -> None:
    """Equal but for rounding, folders and times."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), path
        for key in one:
            if key != "out":
                same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{path}/{i}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9), path
    else:
        assert one == other, path


def test_two_processes_have_the_figures_of_one(folder: Path, worlds: Worlds) -> None:
    """Of eval, leak and calibrate; rank 0 alone prints and writes, and every problem is there once, in its order."""
    Path("run.toml").write_text(RUN.format(dtype="float64"))
    one = many_eval.figures(folder, folder / "by-one")
    done = worlds("many_eval", str(folder), path=Path(__file__).parent)
    assert done.returncode == 0, done.stderr[-3000:]
    two, other = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert other == {"eval": None, "leak": None, "calibrate": None}
    same(two, one)
    (kept,), (expected,) = (list(Path(f"by-{n}", "samples").rglob("*.jsonl")) for n in ("two", "one"))
    assert kept.read_text() == expected.read_text()


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_eval_leak_and_calibrate_sample_with_another_engine(
    engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the torch engine does not sample")

    monkeypatch.setattr(TorchGenerator, "generate", never)
    with fake_vllm.serve("model") as server:
        address = "vllm" if engine == "vllm" else server.address
        found = many_eval.figures(folder, folder / "out", f"generation.engine={address}")
        again = many_eval.figures(folder, folder / "again", f"generation.engine={address}")
    same(again, found)
    assert found["eval"]["problems"] == 5
    assert 0 <= found["leak"]["rates"]["posterior"]["own_early"] <= 1
    assert found["calibrate"]["traces"] == 15


def test_samples_of_two_engines_are_not_mixed(folder: Path) -> None:
    order = Order(["model"], ["problems.jsonl"], n=1, config=Path("run.toml"))
    run_eval(order, Path("out"), True, None)
    other = Order(["model"], ["problems.jsonl"], n=1, config=Path("run.toml"), settings=["generation.engine=vllm"])
    with pytest.raises(UserError, match="was made with engine = '', and now it is 'vllm'"):
        run_eval(other, Path("out"), True, None)


def test_the_engine_of_a_run_is_not_taken_from_its_folder(folder: Path) -> None:
    """A server that trains would get other weights; typed or in a file that is given, it is taken."""
    Path("some").mkdir()
    engine = '[generation]\nengine = "http://127.0.0.1:1"\nahead = 1'
    Path("some", "config.toml").write_text(Path("run.toml").read_text().replace("[generation]", engine))
    shutil.copytree("model", "some/best")
    assert api.config_for("some").generation.engine == "torch"
    assert api.config_for("some", None, ["generation.engine=vllm"]).generation.engine == "vllm"
    assert api.config_for("model", Path("some/config.toml")).generation.engine == "http://127.0.0.1:1"


def test_ranks_share_the_grading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank grades its share of the answers, and has the verdicts of all."""
    asked: list[int] = []

    class Half(World):
        def shared(self, work: Any, items: Any) -> list[Any]:
            asked.append(len(items))
            return [*work(items[:1]), *("wrong" for _ in items[1:])]

    graded: list[int] = []

    def grade(rows: Any) -> list[Any]:
        graded.append(len(rows))
        return ["right"] * len(rows)

    one = Evaluator(None, None, 1, 1, grade, world=Half())  # ty: ignore
    assert one.verdicts([(None, "a"), (None, "b"), (None, "c")]) == ["right", "wrong", "wrong"]  # ty: ignore
    assert (asked, graded) == ([3], [1])
