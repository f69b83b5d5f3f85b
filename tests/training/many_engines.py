"""Runs whose samples other engines draw, on several processes: a stand-in for vLLM on every rank, or fake servers.

tests/training/test_many_engines.py compares them: in one process, and in two or three by worlds.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
import fake_vllm
from many import PROBLEMS, flat, no_weights, reward
from projects import LETTERS

from covrl import api, assembly
from covrl.config import RunConfig
from covrl.distributed.processes import join_world
from covrl.errors import EngineError, TrainingStoppedError, UserError
from covrl.generation import vllm_server
from covrl.generation.base import Draw, rest
from covrl.models import spread
from covrl.training import loop, step
from covrl.training.rollouts import sample
from covrl.training.run import Run

CASES: dict[str, dict[str, Any]] = {
    "vllm": {},
    "vllm replicated": {"training": {"weights": "replicated"}},
    "vllm together": {"generation": {"engine_ranks": 2}},
    "vllm lora": {"lora": {"rank": 2, "alpha": 8}, "training": {"learning_rate": 1e-2}},
    "vllm mixed": {"model": {"dtype": "mixed"}, "guards": {"publish_check_every": 0}},
    "servers": {"generation": {"engine": "servers"}},
    "servers evaluated": {"generation": {"engine": "servers"}, "evaluation": {"every": 1, "verifier": "text"}},
    "servers lora separate": {
        "lora": {"rank": 2, "alpha": 8},
        "generation": {"engine": "bases", "handover": "adapters"},
        "training": {"learning_rate": 1e-2},
    },
    "servers ahead": {"generation": {"engine": "servers", "ahead": 1}},
    "torch, loaded in parts": {"generation": {"engine": "torch"}, "training": {"load": "parts"}},
    "torch, loaded in parts, mixed": {
        "generation": {"engine": "torch"},
        "model": {"dtype": "mixed"},
        "training": {"load": "parts"},
    },
}
"""Settings by name; a number of steps of each run is compared with that of one process."""

FAULTS = [*(f"rank 1: {how}" for how in fake_vllm.ON_RANK), "server: one layer", "server: dies", "rank 1: refuses"]


def config(folder: Path, name: str) -> RunConfig:
    """Two steps of two problems; ``servers`` stands for the addresses in the folder's file."""
    found = json.loads((folder / "servers.json").read_text())
    table: dict[str, Any] = {
        "model": {"path": str(folder / "llama"), "device": "cpu", "dtype": "float32"},
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 12, "max_answer_tokens": 8, "engine": "vllm", "rows_per_pass": 16},
        "training": {
            "rollouts_per_problem": 4,
            "problems_per_step": 2,
            "steps": 2,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "tokens_per_pass": 150,
        },
        "algorithm": {"name": "grpo"},
    }
    for section, values in CASES.get(name, {}).items():
        table.setdefault(section, {}).update(values)
    engine = table["generation"]["engine"] if name in CASES else name
    table["generation"]["engine"] = found.get(engine, engine if engine == "torch" else "vllm")
    return RunConfig.model_validate(table)


def built(folder: Path, name: str) -> Run:
    """A run without the proofs of the model's paths, which take most of the time, but where they differ."""
    sys.modules["vllm"] = fake_vllm
    fake_vllm.LLM.made.clear()
    proving, loading = assembly.prove, spread.load_model
    if "parts" not in name:
        assembly.prove = lambda *_: []  # ty: ignore[invalid-assignment]
    elif "WORLD_SIZE" in os.environ:
        spread.load_model = no_weights  # ty: ignore[invalid-assignment]
    try:
        held_out = PROBLEMS[:5] if "evaluated" in name else None
        return api.build(config(folder, name), PROBLEMS, held_out, reward=reward)
    finally:
        assembly.prove, spread.load_model = proving, loading


def observe(folder: Path, name: str) -> dict[str, Any]:
    """Samples of a fresh run, its first gradient, its weights after two steps, metrics; what each engine did."""
    run = built(folder, name)
    engines = list(fake_vllm.LLM.made)
    run.world.check_same([run.models["policy"].paths, run.models["policy"].noise], "proofs")
    for llm in engines:  # as on an accelerator
        llm.settings["enable_sleep_mode"] = run.generator.backend._sleeps = True  # ty: ignore[unresolved-attribute]
    groups = sample(run, PROBLEMS[:5], Draw(0, 0))
    gradients: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        gradients.append(flat([torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]))

    run.optimizers["policy"].register_step_pre_hook(keep)
    asked = [llm.asked.copy() for llm in engines]
    woken = [llm.woken for llm in engines]
    rest(run.generator)
    with trains_while_sampling():
        reports = list(loop.steps(run))
    return {
        "samples": [r.trace_ids for g in groups for r in g.rollouts],
        "gradient": gradients[0],
        "weights": flat(list(run.parameters)),
        "metrics": [r.metrics for r in reports],
        "sharded": run.world.sharded,
        "asked": asked,
        "woken": [llm.woken - before for llm, before in zip(engines, woken, strict=True)],
        "dtype": [llm.settings["dtype"] for llm in engines],
    }


@contextmanager
def trains_while_sampling() -> Iterator[None]:
    """No step moves the weights before servers have begun with the next one's traces, however slow the machine is."""
    own = step.optimize

    def optimize(run: Run, *given: Any) -> Any:
        job = run.ahead.jobs.get(run.done + 1)
        while job is not None and not (job.done() or run.generator._turns._sampling):  # ty: ignore[unresolved-attribute]
            time.sleep(0.01)
        return own(run, *given)

    step.optimize = optimize  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        step.optimize = own


def refuse(self: Any, method: str, kwargs: dict[str, Any]) -> None:
    """Take the first of the new weights, and no more: other ranks still wait for the rest."""
    next(kwargs["weights_iterator"])
    raise RuntimeError("no room for it")


def fails(folder: Path, what: str, rank: int) -> str:
    """What a run ends with on this rank, where one rank's engine or one server is broken."""
    where, _, how = what.partition(": ")
    own = fake_vllm.LLM.collective_rpc
    try:
        if how == "refuses" and rank == 1:
            fake_vllm.LLM.collective_rpc = refuse  # ty: ignore[invalid-assignment]
        run = built(folder, "vllm" if where == "rank 1" else how)
        fake_vllm.LLM.broken = how if where == "rank 1" and rank == 1 and how != "refuses" else None
        list(loop.steps(run))
    except (UserError, TrainingStoppedError, EngineError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        fake_vllm.LLM.broken, fake_vllm.LLM.collective_rpc = None, own
    return "nothing"


def main(folder: Path, *names: str) -> None:
    world = join_world("cpu")
    vllm_server.PIECE_BYTES = 1  # so every layer is a piece of its own

    def of_all(own: Any) -> list[Any]:
        return world.shared(list, [own] * world.size)

    found = {
        name: of_all(fails(folder, name, world.rank) if name in FAULTS else observe(folder, name)) for name in names
    }
    if world.first:
        torch.save(found, folder / f"engines-{world.size}.pt")
    world.close()
