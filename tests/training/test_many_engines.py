"""Several processes with other engines: on each rank, or servers; against one process, and what is broken on one rank.

vLLM is not installed here: the engines are stand-ins (tests/generation/fake_vllm.py), tensor parallel groups too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from projects import write_rows

from covrl.config import to_toml

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
sys.path.insert(0, str(Path(__file__).parent))
import fake_vllm
import many
import many_engines
from test_parallel import apart, last_words
from worlds import Worlds

OF_THREE = ["servers", "servers evaluated", "servers lora separate"]
"""Cases with two servers that three processes share."""


@pytest.fixture(scope="module")
def servers() -> dict[str, fake_vllm.Server]:
    """By name; :func:`folder` puts them in."""
    return {}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, servers: dict[str, fake_vllm.Server], worlds: Worlds
) -> Iterator[Path]:
    """What two and three processes did. The servers are in the test's own process."""
    folder = tmp_path_factory.mktemp("engines")
    save_tiny("llama", folder / "llama")
    with ExitStack() as stack:
        # what one process does is done in the test's own, which must not keep the stand-in
        stack.enter_context(pytest.MonkeyPatch.context()).setitem(sys.modules, "vllm", fake_vllm)  # ty: ignore
        for name in ("a", "b", "c", "d", "layer", "dying"):
            servers[name] = stack.enter_context(fake_vllm.serve(str(folder / "llama")))
        servers["layer"].llm.broken = "one layer"  # ty: ignore[invalid-attribute-access]
        at = {name: server.address for name, server in servers.items()}
        table = {"servers": f"{at['a']},{at['b']}", "bases": f"{at['c']},{at['d']}"}
        table |= {"one layer": f"{at['a']},{at['layer']}", "dies": f"{at['a']},{at['dying']}"}
        (folder / "servers.json").write_text(json.dumps(table))
        servers["dying"].die_at = "/v1/completions"
        for processes, names in ((2, [*many_engines.CASES, *many_engines.FAULTS]), (3, ["vllm", *OF_THREE])):
            done = worlds("many_engines", str(folder), *names, path=Path(__file__).parent, processes=processes)
            assert done.returncode == 0, done.stderr[-6000:]
        yield folder


def of_ranks(folder: Path, name: str, processes: int = 2) -> list[Any]:
    return torch.load(folder / f"engines-{processes}.pt", weights_only=False)[name]


ALL = [*((name, 2) for name in many_engines.CASES), ("vllm", 3), *((name, 3) for name in OF_THREE)]


@pytest.mark.parametrize(("name", "processes"), ALL)
def test_several_processes_do_what_one_does(name: str, processes: int, folder: Path) -> None:
    """The same samples, gradient and weights; each engine has the trainer's weights on every step.

    Also where each rank reads its own part of the model's files, and none the whole.
    """
    ranks = of_ranks(folder, name, processes)
    mixed = "mixed" in name
    one = many_engines.observe(folder, "vllm" if name == "vllm together" else name)
    for rank in ranks:
        assert rank["sharded"] == ("replicated" not in name)
        assert mixed or rank["samples"] == one["samples"]
        assert mixed or apart(rank["gradient"], one["gradient"]) <= 1e-5
        assert mixed or apart(rank["weights"], one["weights"]) <= 1e-5
        for number, metrics in enumerate(rank["metrics"]):
            if "ahead" in name and number:  # of the weights before
                assert metrics["sampler/staleness_mean"] == 1
                assert metrics["sampler/unused_share"] == 0
                continue
            assert mixed or metrics["sampler/gap_max"] < 1e-3
            assert mixed or metrics["guard/publish_gap"] < 1e-3
            assert metrics["sampler/gap_mean"] < 0.1


@pytest.mark.parametrize("processes", [2, 3])
def test_held_out_problems_are_shared_by_ranks_and_servers(processes: int, folder: Path) -> None:
    """The figures of every step are those of one process, on all ranks."""
    one = many_engines.observe(folder, "servers evaluated")["metrics"]
    for rank in of_ranks(folder, "servers evaluated", processes):
        for mine, expected in zip(rank["metrics"], one, strict=True):
            figures = {key: value for key, value in expected.items() if key.startswith("eval/")}
            assert len(figures) >= 3
            assert {k: v for k, v in mine.items() if k in figures} == pytest.approx(figures, rel=1e-4, nan_ok=True)


def test_adapters_go_to_the_servers_alone(folder: Path, servers: dict[str, fake_vllm.Server]) -> None:
    """The first rank sends them, and both servers are asked."""
    del folder
    for name in ("c", "d"):
        paths = [path for path, _, _ in servers[name].seen]
        assert "/collective_rpc" not in paths
        assert paths.count("/v1/load_lora_adapter") > 0
        assert paths.count("/v1/completions") > 10


def test_each_rank_asks_its_own_engine_for_a_share(folder: Path) -> None:
    """Two that hold one copy together ask for the same."""
    (first,), (second,) = (rank["asked"] for rank in of_ranks(folder, "vllm"))
    assert 10 <= min(len(first), len(second)) <= max(len(first), len(second)) < 15, "some are asked again"
    (first,), (second,) = (rank["asked"] for rank in of_ranks(folder, "vllm together"))
    assert first == second
    assert len(first) >= 20


def test_an_engine_wakes_once_a_step(folder: Path) -> None:
    """For a step's samples; where weights are sharded, a second time for the look at it after the publish."""
    for rank in of_ranks(folder, "vllm mixed"):
        assert rank["woken"] == [2], "two steps, no look"
        assert rank["dtype"] == ["bfloat16"]
    assert [rank["woken"] for rank in of_ranks(folder, "vllm replicated")] == [[3], [3]], "the first look, two steps"


@pytest.mark.parametrize("how", fake_vllm.ON_RANK)
def test_one_rank_that_keeps_old_weights_ends_the_run(how: str, folder: Path) -> None:
    for said in of_ranks(folder, f"rank 1: {how}"):
        assert re.match(r"TrainingStoppedError: stopped before step 1: rank 1: (after publish|its weights)", said), said


def test_one_server_that_takes_some_layers_ends_the_run(folder: Path) -> None:
    for said in of_ranks(folder, "server: one layer"):
        assert said.startswith("TrainingStoppedError: stopped before step 1: rank 1: "), said


def test_a_dead_server_is_named_on_all_ranks(folder: Path, servers: dict[str, fake_vllm.Server]) -> None:
    for said in of_ranks(folder, "server: dies"):
        assert said.startswith(f"EngineError: the vLLM server at {servers['dying'].address} does not answer"), said


def test_an_engine_that_stops_in_the_middle_of_the_weights_ends_all_ranks(folder: Path) -> None:
    """The others were putting the next weight together with it."""
    for said in of_ranks(folder, "rank 1: refuses"):
        assert said == "UserError: generation.engine = vllm: vllm cannot take the new weights: no room for it"


def test_servers_get_a_layer_at_a_time_each_once(folder: Path, servers: dict[str, fake_vllm.Server]) -> None:
    del folder
    for name in ("a", "b"):
        loads = [body["kwargs"]["weights_path"] for path, body, _ in servers[name].seen if path == "/collective_rpc"]
        assert len(set(loads[:5])) == 5, "embedding, two layers, norm, output layer"
        assert loads[0].startswith("/dev/shm/") == Path("/dev/shm").is_dir()
        assert not any(Path(path).exists() for path in loads)
    shares = [sum(path == "/v1/completions" for path, _, _ in servers[name].seen) for name in ("a", "b")]
    assert min(shares) > 10


NO_ROOM = """
import os

import torch
from torch.distributed.fsdp import FSDPModule

unshard, begun = FSDPModule.unshard, False

def full(*given, **named):
    if os.environ["RANK"] == "1" and begun:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return unshard(*given, **named)

FSDPModule.unshard = full

def reward(problem, text):
    global begun
    begun = True
    return 0.5
"""


def test_memory_that_runs_out_while_weights_are_put_together_ends_all_ranks(tmp_path: Path, worlds: Worlds) -> None:
    """The others wait for this rank's part. It says why in one line, and torchrun ends them."""
    save_tiny("llama", tmp_path / "llama")
    (tmp_path / "full.py").write_text(NO_ROOM)
    write_rows(tmp_path / "problems.jsonl", [{"question": p.question, "answer": p.answer} for p in many.PROBLEMS])
    (tmp_path / "run.toml").write_text(to_toml(many.config(tmp_path, "covrl float32")))
    run = ["--config", str(tmp_path / "run.toml"), "--set", f"problems.train={tmp_path / 'problems.jsonl'}"]
    run += ["--out", str(tmp_path / "run"), "--reward", "full:reward"]
    done = worlds("-m", "covrl", "train", *run, path=tmp_path, limit=400)
    assert done.returncode != 0
    (said,) = [line for line in last_words(done) if line.startswith("covrl (rank 1)")]
    assert said.startswith("covrl (rank 1): CUDA out of memory: no room for a whole copy of the ")
    assert "[rank" not in done.stderr, "no traceback of the one that waited"
