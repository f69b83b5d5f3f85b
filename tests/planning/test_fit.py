"""What fits the machine: its memory as files say it, the choice as arithmetic, and a run that keeps its numbers."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from projects import write_rows

from covrl import api
from covrl.config import RunConfig, check
from covrl.errors import UserError
from covrl.generation.engine import TorchGenerator
from covrl.planning.fitting import Needs, logits_that_fit, power_of_two, rows_that_fit, tokens_that_fit, trace_too_large
from covrl.planning.machine import Memory, main_memory, memory_of
from covrl.scoring.pack import read
from covrl.training import fit as fitting
from covrl.training import loop
from covrl.training import needs as needs_module
from covrl.training.needs import key_value_bytes, measured
from covrl.training.run import Run

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\nHugePages_Total:  0\n"
V2, V1 = "0::/user/job\n", "9:name=systemd:/\n4:cpu,memory:/user/job\n0::/\n"


def machine(folder: Path, files: dict[str, str], meminfo: str = MEMINFO) -> Path:
    """A root with these files, and 16 GiB of which half is free."""
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V2_JOB, V1_JOB = "sys/fs/cgroup/user/job/", "sys/fs/cgroup/memory/user/job/"
MACHINES: dict[str, tuple[dict[str, str], int, int]] = {
    # name: (files, total in GiB, free in GiB)
    "no groups": ({}, 16, 8),
    "v2, no limit": ({"proc/self/cgroup": V2, V2_JOB + "memory.max": "max\n"}, 16, 8),
    "v2": (
        {"proc/self/cgroup": V2, V2_JOB + "memory.max": f"{6 * GIB}\n", V2_JOB + "memory.current": f"{2 * GIB}\n"},
        6,
        4,
    ),
    "v2, files can be dropped": (
        {
            "proc/self/cgroup": V2,
            V2_JOB + "memory.max": f"{6 * GIB}\n",
            V2_JOB + "memory.current": f"{5 * GIB}\n",
            V2_JOB + "memory.stat": f"anon 1\ninactive_file {3 * GIB}\n",
        },
        6,
        4,
    ),
    "v2, a parent's limit": ({"proc/self/cgroup": V2, "sys/fs/cgroup/user/memory.max": f"{2 * GIB}"}, 2, 2),
    "v2, a container that sees its own group at the root": (
        {"proc/self/cgroup": "0::/elsewhere/of/the/host\n", "sys/fs/cgroup/memory.max": f"{3 * GIB}"},
        3,
        3,
    ),
    "v2, more than there is": ({"proc/self/cgroup": V2, V2_JOB + "memory.max": f"{64 * GIB}"}, 16, 8),
    "v1": (
        {
            "proc/self/cgroup": V1,
            V1_JOB + "memory.limit_in_bytes": f"{4 * GIB}\n",
            V1_JOB + "memory.usage_in_bytes": f"{3 * GIB}\n",
            V1_JOB + "memory.stat": f"inactive_file 0\ntotal_inactive_file {1 * GIB}\n",
        },
        4,
        2,
    ),
    "v1, no limit": ({"proc/self/cgroup": V1, V1_JOB + "memory.limit_in_bytes": "9223372036854771712\n"}, 16, 8),
    "a limit of another group": (
        {"proc/self/cgroup": V2, "sys/fs/cgroup/other/memory.max": f"{GIB}", "sys/fs/memory.max": f"{GIB}"},
        16,
        8,
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_memory_is_the_machines_or_what_groups_leave_of_it(tmp_path: Path, name: str) -> None:
    files, total, free = MACHINES[name]
    found = main_memory(machine(tmp_path, files))
    assert (found.total, found.free) == (total * GIB, free * GIB)
    assert ("control group" in found.of) == (total < 16)
    shared = memory_of(torch.device("cpu"), 4, tmp_path)
    assert (shared.total, shared.free) == (total * GIB // 4, free * GIB // 4)


def test_a_machine_without_these_files_still_has_a_size(tmp_path: Path) -> None:
    found = main_memory(tmp_path)
    assert found.total == found.free >= GIB


NEEDS = Needs(
    weights=GIB // 2,
    optimizer=GIB,
    gradients=GIB // 2,
    apart=0,
    fixed=0,
    token=1 << 20,
    recomputed=1 << 16,
    logits=0,
    ready=GIB // 4,
    row=4 << 20,
    trace=400,
    group=0,
)  # 2 GiB for all but tokens: 1,024 of them take one more


@pytest.mark.parametrize(
    ("memory", "group", "tokens", "rows"),
    [
        (64.0, 0, 2048, 256),  # enough: what is fast
        (64.0, 3200, 4096, 256),  # a whole group, rounded up
        (64.0, 4096, 4096, 256),
        (5.9, 3200, 2048, 256),  # 3.9 GiB hold 3,993 tokens, rounded down
        (3.99, 0, 1024, 256),
        (3.1, 0, 1024, 256),
        (2.3, 0, 256, 128),  # a trace of 400 comes alone anyhow
        (1.0, 0, 256, 1),  # nothing fits: the least, and not an error
    ],
)
def test_the_choice_is_arithmetic(memory: float, group: int, tokens: int, rows: int) -> None:
    needs = replace(NEEDS, group=group)
    assert tokens_that_fit(needs, memory * GIB, 2048) == tokens
    assert rows_that_fit(needs, memory * GIB) == rows
    if tokens > 256:
        assert needs.training(tokens) <= memory * GIB
    if rows > 1:
        assert needs.sampling(rows) <= memory * GIB


def test_chunks_of_logits_are_small_on_a_cpu_and_a_part_of_an_accelerator() -> None:
    assert logits_that_fit("cpu", 1000 * GIB) == 64
    assert [logits_that_fit("cuda", n * GIB) for n in (0.5, 19.2, 64, 112)] == [64, 256, 1024, 1024]


def test_a_method_that_reads_nothing_and_a_large_group_are_no_trouble() -> None:
    assert tokens_that_fit(replace(NEEDS, token=0.0, trace=0), GIB, 2048) == 2048
    assert [power_of_two(n) for n in (-5, 0, 1, 2, 3, 1023.9, 1024)] == [1, 1, 1, 2, 2, 512, 1024]


def test_recomputation_is_proposed_where_a_trace_does_not_fit() -> None:
    assert trace_too_large(NEEDS, Memory(4 * GIB, 0)) is None
    long = replace(NEEDS, trace=8192)
    said = trace_too_large(long, Memory(4 * GIB, 0))
    assert said is not None
    assert said.endswith("set training.recompute = true (about 2.5 GiB then)")
    assert "8,192 tokens in all its prompts, takes about 10.0 GiB, and there is 4.0 GiB of main memory" in said
    both = trace_too_large(long, Memory(3 * GIB, 0))
    assert both is not None
    assert both.endswith("then) and lower generation.max_trace_tokens")
    last = trace_too_large(replace(long, recomputed=None), Memory(3 * GIB, 0))
    assert last is not None
    assert "recompute" not in last


PROMPTS = {
    "user": "{question}",
    "prior_open": "=",
    "posterior_open": "({hint})=",
    "close": "e",
    "answer_prefix": ":",
    "answer_suffix": ";",
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    save_tiny("qwen2", tmp_path / "model", max_position_embeddings=128)
    write_rows(tmp_path / "train.jsonl", [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(7)])
    return {
        "model": {"path": str(tmp_path / "model"), "device": "cpu"},
        "problems": {"train": str(tmp_path / "train.jsonl")},
        "generation": {"max_trace_tokens": 24, "max_answer_tokens": 4},
        "prompts": PROMPTS,
        "training": {"problems_per_step": 3, "rollouts_per_problem": 4, "steps": 2, "stream_norms_every": 0},
        "evaluation": {"every": 0},
    }


def has(monkeypatch: pytest.MonkeyPatch, total: float, free: float | None = None) -> None:
    """Let the machine have so many bytes."""
    there = Memory(int(total), int(total if free is None else free))
    monkeypatch.setattr(fitting, "memory_of", lambda *_: there)


def numbers(run: Run) -> tuple[Any, Any]:
    assert isinstance(run.generator, TorchGenerator)
    found = (run.config.training.tokens_per_pass, run.config.generation.rows_per_pass)
    assert found == (run.limits.tokens, run.generator.rows_per_pass)
    return found


def test_a_run_takes_the_numbers_says_them_and_writes_them(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = check(RunConfig, settings)
    assert (config.training.tokens_per_pass, config.generation.rows_per_pass) == ("auto", "auto")
    has(monkeypatch, 24 * GIB)
    run = api.build(config)
    assert numbers(run) == (2048, 256)
    (said,) = (note for note in run.notes if note.startswith("chosen for 24.0 GiB of main memory"))
    assert "training.tokens_per_pass = 2048 (each takes " in said
    assert "generation.rows_per_pass = 256 (each takes up to " in said
    needs = measured(run)
    has(monkeypatch, (needs.training(600) + 100) / fitting.SHARE)
    run = api.build(config)
    assert numbers(run)[0] == 512
    folder = tmp_path / "run"
    api.new_run_folder(folder)
    api.train_run(run, folder)
    assert "tokens_per_pass = 512\n" in (folder / "config.toml").read_text()
    (state,) = folder.glob("checkpoints/*/state.json")
    assert json.loads(state.read_text())["config"]["training"]["tokens_per_pass"] == 512
    has(monkeypatch, 24 * GIB)
    again = api.resume(folder)
    assert numbers(again)[0] == 512, "another machine's memory changes nothing"
    assert not any("chosen for" in note for note in again.notes)


def test_the_same_command_gives_the_same_bytes(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 24 * GIB)
    ends = []
    for _ in range(2):
        run = api.build(check(RunConfig, settings))
        list(loop.steps(run))
        ends.append([p.detach().numpy().tobytes() for p in run.parameters])
    assert ends[0] == ends[1]


def test_less_free_memory_lowers_the_numbers_and_is_said(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, 24 * GIB)
    needs = measured(api.build(check(RunConfig, settings)))
    has(monkeypatch, 24 * GIB, needs.training(600) - needs.weights)
    run = api.build(check(RunConfig, settings))
    assert numbers(run)[0] == 512
    (said,) = (note for note in run.notes if note.startswith("only "))
    assert "of 24.0 GiB is free now, so training.tokens_per_pass is 512 and not 2048" in said


def test_numbers_that_are_set_are_taken_without_measuring(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(fitting, "measured", never)
    settings["training"]["tokens_per_pass"], settings["generation"]["rows_per_pass"] = 300, "7"
    assert numbers(api.build(check(RunConfig, settings))) == (300, 7)


@pytest.mark.parametrize("value", [0, -3, "many", 2.5, True, None, [1]])
def test_what_is_no_number_is_one_line(settings: dict[str, Any], value: Any) -> None:
    settings["training"]["tokens_per_pass"] = value
    with pytest.raises(UserError, match=r'training.tokens_per_pass: should be an integer of at least 1, or "auto"'):
        check(RunConfig, settings)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_keys_and_values_are_measured(settings: dict[str, Any], dtype: str, size: int) -> None:
    settings["model"]["dtype"] = dtype
    run = api.build(check(RunConfig, settings))
    config = run.models["policy"].model.config
    width = config.hidden_size // config.num_attention_heads
    expected = 2 * config.num_hidden_layers * config.num_key_value_heads * width * size
    assert key_value_bytes(run) == expected
    assert isinstance(run.generator, TorchGenerator)
    run.generator.paths = run.generator.paths._replace(shared=False)
    run.models["policy"].paths = run.models["policy"].paths._replace(shared=False)
    assert key_value_bytes(run) == expected
    run.generator.paths = run.generator.paths._replace(cached=False)
    assert key_value_bytes(run) == 0


def test_nothing_of_a_measurement_stays(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is never gone through backwards is easily held by its own saved results."""
    run = api.build(check(RunConfig, settings))
    alive: list[weakref.ref[Any]] = []

    def watched(*given: Any) -> Any:
        found = read(*given)
        left, seen = [v.grad_fn for v in found.values.values()], set()
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            left += [after for after, _ in node.next_functions]

            def mark(_: Any) -> None:
                """Lives as long as the node."""

            if node.name() != "torch::autograd::AccumulateGrad":
                node.register_prehook(mark)
                alive.append(weakref.ref(mark))
        return found

    monkeypatch.setattr(needs_module, "read", watched)
    measured(run)
    gc.collect()
    assert len(alive) > 50
    assert [ref for ref in alive if ref() is not None] == []


@pytest.mark.parametrize("method", ["covrl", "grpo", "rlpr", "ravr", "nover", "rapo"])
def test_each_kind_of_method_is_measured(settings: dict[str, Any], method: str) -> None:
    settings["algorithm"] = {"name": method}
    settings["training"]["mini_batches"] = 2
    found = measured(api.build(check(RunConfig, settings)))
    assert found.token > 0
    assert found.trace >= 24
    assert found.group == 0, "two updates a batch: groups are scored first"
