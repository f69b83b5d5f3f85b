"""The runs that tests/training/test_parallel.py compares: on one process in the test's own, on two as a script.

torchrun --nproc-per-node 2 tests/training/many.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from covrl import api
from covrl.config import RunConfig
from covrl.errors import NonFiniteError, UserError
from covrl.generation.base import Draw
from covrl.records import Problem
from covrl.training.distributed import join_world
from covrl.training.loop import Run
from covrl.training.sharding import whole

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(7)]
PROMPTS = {
    "user": "{question}",
    "prior_open": " ",
    "posterior_open": "({hint}) ",
    "close": "e",
    "answer_prefix": "",
    "answer_suffix": "t",
}

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: (method, dtype, [training], [algorithm])
    "covrl": ("covrl", "float64", {}, {}),
    "covrl streams": ("covrl", "float64", {"stream_norms_every": 1}, {}),
    "covrl replicated": ("covrl", "float64", {"weights": "replicated", "stream_norms_every": 1}, {}),
    "covrl float32": ("covrl", "float32", {}, {}),
    "covrl recompute": ("covrl", "float64", {"recompute": True}, {}),
    "grpo": ("grpo", "float64", {"mini_batches": 2}, {}),
    "grpo float32": ("grpo", "float32", {}, {}),
    "grpo idle rank": ("grpo", "float64", {"problems_per_step": 1, "rollouts_per_problem": 3}, {}),
    "reinforce_pp": ("reinforce_pp", "float64", {}, {}),
    "reinforce_pp float32": ("reinforce_pp", "float32", {}, {}),
    "rlpr": ("rlpr", "float64", {}, {}),
    "dapo": ("dapo", "float64", {}, {}),
    "rapo": ("rapo", "float64", {}, {}),
}


def reward(problem: Problem, text: str) -> float:
    """Any function of the text that differs within a group."""
    return sum(map(ord, text)) % 3 / 2


def config(folder: Path, name: str) -> RunConfig:
    """Three problems of three traces: neither number can be halved; passes of few tokens, so that there are many."""
    method, dtype, training, algorithm = CASES[name]
    return RunConfig.model_validate(
        {
            "model": {
                "path": str(folder / ("gpt2" if dtype == "float64" else "llama")),
                "device": "cpu",
                "dtype": dtype,
            },
            "prompts": PROMPTS,
            "generation": {"max_trace_tokens": 30, "max_answer_tokens": 20},
            "training": {
                "rollouts_per_problem": 3,
                "problems_per_step": 3,
                "steps": 3,
                "warmup_steps": 0,
                "learning_rate": 1e-3,
                "schedule": "constant",
                "tokens_per_pass": 150,
                "stream_norms_every": 0,
            }
            | training,
            "evaluation": {"every": 2, "verifier": "text"},
            "checkpoint": {"every": 2},
            "algorithm": {"name": method, **algorithm},
        }
    )


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([whole(t).double().flatten() for t in tensors])


def observe(folder: Path, name: str) -> dict[str, Any]:
    """What a run of three steps does: its samples, first gradient, weights and metrics; and who held how much."""
    run: Run = api.build(config(folder, name), PROBLEMS, PROBLEMS[:5], reward=reward)
    groups = run.sample(PROBLEMS[:5], Draw(0, 0))
    run.world.distribute(run)
    gradients: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        gradients.append(flat([torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]))

    run.optimizer.register_step_pre_hook(keep)
    reports = list(run.steps())
    held = [p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in run.parameters]
    return {
        "samples": [r.trace_ids for g in groups for r in g.rollouts],
        "gradient": gradients[0],
        "weights": flat(list(run.parameters)),
        "metrics": [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in reports],
        "held": sum(held) / sum(p.numel() for p in run.parameters),
        "sharded": run.world.sharded,
    }


def train(folder: Path, out: Path) -> None:
    api.train(config(folder, "covrl streams"), PROBLEMS, PROBLEMS[:5], out)


def resume(out: Path) -> Run:
    run = api.resume(out, PROBLEMS, PROBLEMS[:5])
    api.train_run(run, out)
    return run


class Broken:
    """A reward function that fails on the second rank alone, in the second step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, problem: Problem, text: str) -> float:
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls > 5:
            raise ValueError("no such text")
        return reward(problem, text)


def fails(folder: Path, what: str) -> str:
    """What a run ends with on this rank when the second rank alone fails."""
    settings = config(folder, "covrl")
    broken = Broken() if what == "reward" else reward
    run: Run = api.build(settings, PROBLEMS, reward=broken)
    if what == "loss" and not run.world.first:
        own = run.algorithm.loss
        run.algorithm.loss = lambda tokens: {k: v * float("nan") for k, v in own(tokens).items()}  # ty: ignore
    if run.world.first:
        api.new_run_folder(folder / what)
    try:
        api.train_run(run, folder / what)
    except (UserError, NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    found = {name: observe(folder, name) for name in CASES}
    train(folder, folder / "by-two")
    found["resumed"] = {"sharded": resume(folder / "by-one-cut").world.sharded}
    world = join_world("cpu")
    for what in ("reward", "loss"):
        found[f"fails: {what}"] = {"said": world.shared(list, [fails(folder, what)] * world.size)}
    assert world.size == int(os.environ["WORLD_SIZE"])
    if world.first:
        torch.save(found, folder / "two.pt")
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
