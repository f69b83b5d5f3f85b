"""LoRA runs that tests/training/test_lora_parallel.py compares: in one process, and in two by worlds.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from projects import LETTERS
from torch import Tensor
from torch.distributed.tensor import DTensor

from covrl import api
from covrl.config import RunConfig
from covrl.distributed.processes import join_world
from covrl.errors import UserError
from covrl.records import Problem
from covrl.training import loop

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(7)]
CASES: dict[str, dict[str, Any]] = {
    "covrl": {"algorithm": {"name": "covrl"}, "training": {"stream_norms_every": 1}},
    "following": {"algorithm": {"name": "nover", "sync_every": 1}, "training": {"recompute": True}},
    "frozen": {"algorithm": {"name": "grpo", "kl": "k3", "kl_weight": 0.5}, "training": {"weights": "replicated"}},
    "critic": {"algorithm": {"name": "ppo"}},
    "four bits": {
        "algorithm": {"name": "covrl"},
        "model": {"path": "llama", "dtype": "float32"},
        "lora": {"four_bit_base": True},
        "training": {"weights": "replicated"},
    },
    "bfloat16": {"algorithm": {"name": "covrl"}, "model": {"dtype": "bfloat16"}},
}


def reward(problem: Problem, text: str) -> float:
    """Any function of the text that differs within a group."""
    return sum(map(ord, text)) % 3 / 2


def config(folder: Path, name: str, **more: Any) -> RunConfig:
    case = CASES[name] | more
    model = {"path": "model", "device": "cpu", "dtype": "float64"} | case.get("model", {})
    table = {
        "model": model | {"path": str(folder / model["path"])},
        "lora": {"rank": 3} | case.get("lora", {}),
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 20, "max_answer_tokens": 8},
        "training": {
            "rollouts_per_problem": 3,
            "problems_per_step": 3,
            "steps": 3,
            "warmup_steps": 0,
            "learning_rate": 1e-2,
            "schedule": "constant",
            "tokens_per_pass": 150,
            "stream_norms_every": 0,
        }
        | case.get("training", {}),
        "evaluation": {"every": 2, "verifier": "none"},
        "checkpoint": {"every": 2},
        "algorithm": case["algorithm"],
    }
    return RunConfig.model_validate(table)


def observe(folder: Path, name: str) -> dict[str, Any]:
    """What three steps do: gradients, adapters of all models, metrics; and which part of the weights is held here."""
    run = api.build(config(folder, name), PROBLEMS, PROBLEMS[:5], reward=reward)
    gradients: list[Tensor] = []

    def keep(*_: Any) -> None:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]
        gradients.append(torch.cat([g.double().flatten() for g in parts]))

    run.optimizers["policy"].register_step_pre_hook(keep)
    reports = list(loop.steps(run))
    every = list(run.models["policy"].model.parameters())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in every)
    adapters = [p.detach().double().flatten() for m in run.models.values() for p in m.own_weights()]
    return {
        "gradients": gradients,
        "adapters": torch.cat(adapters),
        "metrics": [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in reports],
        "held": held / sum(p.numel() for p in every),
        "sharded": run.world.sharded,
    }


def train(folder: Path, out: Path) -> None:
    api.train(config(folder, "covrl"), PROBLEMS, PROBLEMS[:5], out)


def resume(out: Path) -> None:
    api.train_run(api.resume(out, PROBLEMS, PROBLEMS[:5]), out)


def main(folder: Path) -> None:
    found = {name: observe(folder, name) for name in CASES}
    train(folder, folder / "by-two")
    resume(folder / "by-one-cut")
    try:
        api.build(config(folder, "covrl", model={"compile": True}), PROBLEMS)
    except UserError as error:
        found["compile"] = {"said": str(error)}
    world = join_world("cpu")
    if world.first:
        torch.save(found, folder / "two.pt")
    world.close()
