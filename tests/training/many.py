"""The runs that tests/training/test_parallel.py compares: on one process in the test's own, on two by worlds.py."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from projects import LETTERS
from torch.distributed.tensor import DTensor

from covrl import api
from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.algorithms.base import LossTokens
from covrl.config import RunConfig
from covrl.distributed.processes import join_world
from covrl.distributed.sharding import whole
from covrl.errors import NonFiniteError, OutOfMemoryError, RunInterruptedError, UserError
from covrl.generation.base import Draw
from covrl.models import spread
from covrl.planning.machine import Memory
from covrl.records import Problem
from covrl.rewards.steps import StepsToScore
from covrl.training import fit as fitting
from covrl.training import loop
from covrl.training.gradient import add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(7)]
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: (method, dtype, [training], [algorithm])
    "covrl": ("covrl", "float64", {}, {}),
    "covrl streams": ("covrl", "float64", {"stream_norms_every": 1}, {}),
    "covrl replicated": ("covrl", "float64", {"weights": "replicated", "stream_norms_every": 1}, {}),
    "covrl float32": ("covrl", "float32", {}, {}),
    "covrl recompute": ("covrl", "float64", {"recompute": True}, {}),
    # passes that hold a group, which is then scored in its training forward: one each, and some of them
    "covrl merged": ("covrl", "float64", {"tokens_per_pass": 400}, {}),
    "covrl merged replicated": ("covrl", "float64", {"tokens_per_pass": 400, "weights": "replicated"}, {}),
    "covrl merged idle rank": ("covrl", "float64", {"tokens_per_pass": 400, "problems_per_step": 1}, {}),
    "covrl merged idle rank replicated": (
        "covrl",
        "float64",
        {"tokens_per_pass": 400, "problems_per_step": 1, "weights": "replicated"},
        {},
    ),
    "covrl merged in part": ("covrl", "float64", {"tokens_per_pass": 240}, {}),
    "grpo": ("grpo", "float64", {"mini_batches": 2}, {}),
    "grpo float32": ("grpo", "float32", {}, {}),
    "grpo idle rank": ("grpo", "float64", {"problems_per_step": 1, "rollouts_per_problem": 3}, {}),
    # seven rows in passes of their own
    "grpo uneven ranks": (
        "grpo",
        "float64",
        {"problems_per_step": 1, "rollouts_per_problem": 7, "tokens_per_pass": 40, "weights": "replicated"},
        {},
    ),
    "reinforce_pp": ("reinforce_pp", "float64", {}, {}),
    "reinforce_pp float32": ("reinforce_pp", "float32", {}, {}),
    "rlpr": ("rlpr", "float64", {}, {}),
    "dapo": ("dapo", "float64", {}, {}),
    "rapo": ("rapo", "float64", {}, {}),
}


OTHERS = tuple(method for method in ALGORITHMS if method not in {case[0] for case in CASES.values()})
"""The methods that have no case above: one step of each, in float64."""

MIXED = ("covrl", "mixed", {"recompute": True}, {})
"""bfloat16 products on float32 weights: a rank's share rounds as a batch of its own, so samples are not compared."""

EXHAUSTED = [
    ("sampling", "covrl"),
    *(("scoring", "covrl"), ("block", "covrl"), ("loss", "covrl"), ("loss", "covrl replicated")),
    *(("block", "covrl merged"), ("loss", "covrl merged"), ("loss", "covrl merged replicated")),
]
"""Where memory runs out in which run."""

FAILURES = ("reward", "nan", "loss", "gradient", "loss, merged", "gradient, merged")

STOPPED = {"sampling": ("sampling", (0, 1)), "training": ("training", (0, 1)), "training, one rank": ("training", (1,))}


SMALLER: dict[str, dict[str, Any]] = {
    "cure": {"branches": 2},
    "vineppo": {"continuations": 2},
    "c3po": {"budget": 100},
    "train_long_think_short": {"instruction": "{budget}", "start": 30, "end": 10},
    "a_star_po": {"samples": 2},
}
"""Settings with which a method fits three traces of a problem, or costs less."""


def _one_step_of(method: str) -> tuple[str, tuple[str, str, dict[str, Any], dict[str, Any]]]:
    updates = find_algorithm(method).updates_wanted
    return f"one step of {method}", (method, "float64", {"steps": 1, "mini_batches": updates}, SMALLER.get(method, {}))


def reward(problem: Problem, text: str) -> float:
    """Any function of the text that differs within a group, right or wrong for methods that weigh by verdict."""
    return float(sum(map(ord, text)) % 2)


def step_score(asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
    """A number for each step, from its text."""
    return [tuple(sum(map(ord, step)) % 7 / 7 for step in one.steps) for one in asked]


def config(folder: Path, name: str, steps: int = 3) -> RunConfig:
    """Three problems of three traces: neither number can be halved; passes of few tokens, so that there are many."""
    method, dtype, training, algorithm = (CASES | {"mixed": MIXED} | dict(map(_one_step_of, OTHERS)))[name]
    return RunConfig.model_validate(
        {
            "model": {
                "path": str(folder / ("gpt2" if dtype == "float64" else "llama")),
                "device": "cpu",
                "dtype": dtype,
            },
            "prompts": LETTERS,
            "generation": {"max_trace_tokens": 30, "max_answer_tokens": 20},
            "training": {
                "rollouts_per_problem": 3,
                "problems_per_step": 3,
                "steps": steps,
                "warmup_steps": 0,
                "learning_rate": 1e-3,
                "schedule": "constant",
                "tokens_per_pass": 150,
                "stream_norms_every": 0,
            }
            | training,
            "evaluation": {"every": 3, "verifier": "text"},
            "checkpoint": {"every": 2},
            "algorithm": {"name": method, **algorithm},
        }
    )


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([whole(t).double().flatten() for t in tensors])


def observe(folder: Path, name: str) -> dict[str, Any]:
    """What a run of two steps does: its samples, first gradient, weights and metrics; and who held how much.

    Of three held-out problems one rank has two; they are evaluated after both steps.
    """
    run: Run = api.build(config(folder, name, steps=2), PROBLEMS, PROBLEMS[:3], reward=reward)
    groups = sample(run, PROBLEMS[:5], Draw(0, 0))
    gradients: list[torch.Tensor] = []
    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += run.done == 0 and torch.is_grad_enabled()

    run.models["policy"].model.base_model.register_forward_pre_hook(count)

    def keep(*_: Any) -> None:
        gradients.append(flat([torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]))

    run.optimizers["policy"].register_step_pre_hook(keep)
    reports = list(loop.steps(run))
    held = [p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in run.parameters]
    return {
        "samples": [r.trace_ids for g in groups for r in g.rollouts],
        "gradient": gradients[0],
        "weights": flat(list(run.parameters)),
        "metrics": [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in reports],
        "held": sum(held) / sum(p.numel() for p in run.parameters),
        "sharded": run.world.sharded,
        "passes": run.world.shared(list, [passes[0]] * run.world.size),
    }


def one_step(folder: Path, method: str) -> dict[str, Any]:
    """The gradients of a method's first step, without an evaluation, and the step's metrics."""
    run: Run = api.build(config(folder, f"one step of {method}"), PROBLEMS, reward=reward, step_scorer=step_score)
    found: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        found.append(flat([torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]))

    run.optimizers["policy"].register_step_pre_hook(keep)
    metrics = take_step(run).metrics
    return {"gradient": torch.cat(found), "metrics": {k: v for k, v in metrics.items() if not k.startswith("time/")}}


def batch(folder: Path) -> None:
    """Leave scored groups and their credits for :func:`mixed`."""
    run: Run = api.build(config(folder, "mixed"), PROBLEMS, reward=reward)
    groups = run.algorithm.admit(score_groups(run, sample(run, PROBLEMS, Draw(0, 0)))).kept
    assert groups
    torch.save((groups, run.algorithm.credit(groups)), folder / "batch.pt")


def mixed(folder: Path) -> dict[str, Any]:
    """The gradient of that batch with bfloat16 products, one step, and what everything is held in."""
    run: Run = api.build(config(folder, "mixed"), PROBLEMS, reward=reward)
    groups, credits = torch.load(folder / "batch.pt", weights_only=False)
    add_gradient(
        run.algorithm,
        run.models,
        groups,
        credits,
        run.limits,
        reading_plan(run.algorithm, on_policy=False),
        world=run.world,
    )
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    found = {"gradient": flat(gradients), "sharded": run.world.sharded}
    run.optimizers["policy"].step()
    moments = [v for state in run.optimizers["policy"].state.values() for k, v in state.items() if k != "step"]
    kinds = {str(t.dtype) for t in (*run.parameters, *gradients, *moments)}
    return found | {"weights": flat(list(run.parameters)), "kinds": kinds}


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


def spoil_loss(run: Run, what: str) -> None:
    """A policy loss that is NaN on the second rank alone, or one trace's gradient that is infinite."""
    own = run.algorithm.loss

    def loss(tokens: LossTokens) -> dict[str, torch.Tensor]:
        found = own(tokens)
        value, owner = found["policy"], tokens.owner["trace"]
        if what == "loss" and not run.world.first:
            found["policy"] = value * float("nan")
        if what == "gradient":
            mine = (owner == SPOILED).nonzero()[:, 0]
            found["policy"] = value.index_add(0, mine, torch.sqrt((value[mine] * 0).abs()))  # sqrt'(0) is infinite
        return found

    run.algorithm.loss = loss  # ty: ignore[invalid-assignment]


SPOILED = 4
"""The second trace of the second of three problems."""


def fails(folder: Path, what: str) -> str:
    """What a run ends with on this rank when the second rank alone fails, or one trace has a gradient of infinity."""
    what, _, merged = what.partition(", ")
    settings = config(folder, "covrl merged" if merged else "covrl")
    broken = {"reward": Broken(), "nan": lambda p, text: float("nan") if run.done else 0.5}.get(what, reward)
    run: Run = api.build(settings, PROBLEMS, reward=broken)
    spoil_loss(run, what)
    out = folder / f"{what}{merged}-{run.world.size}"
    if run.world.first:
        api.new_run_folder(out)
    try:
        api.train_run(run, out)
    except (UserError, NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def in_second_step(run: Run, training: bool) -> bool:
    """Whether the second step goes on, in its update or before it."""
    inside = run.in_progress is not None and run.in_progress.before.done == 1 and run.done == 1
    return inside and torch.is_grad_enabled() == training


def exhausted(folder: Path, where: str, name: str, times: int) -> dict[str, Any]:
    """A run in whose second step the second rank alone runs out of memory that often; what it says and comes to."""
    run: Run = api.build(config(folder, name, steps=2), PROBLEMS, reward=reward)
    policy, left = run.models["policy"], [times if run.world.rank else 0]
    owner, method = {
        "scoring": (policy, "states"),
        "block": (policy.model.base_model.h[1].mlp, "forward"),
        "loss": (run.algorithm, "loss"),
        "sampling": (run.generator, "_decode"),
    }[where]
    own = getattr(owner, method)

    def full(*given: Any, **named: Any) -> Any:
        if left[0] and in_second_step(run, where in ("block", "loss")):
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(*given, **named)

    setattr(owner, method, full)
    try:
        warnings = [warning for report in loop.steps(run) for warning in report.warnings]
    except OutOfMemoryError as error:
        return {"said": [str(error)], "agreed": run.world.agreed(error), "done": run.done}
    said = [w for w in warnings if "out of memory" in w]
    return {"said": said, "weights": flat(list(run.parameters)), "left": left[0]}


def fitted(folder: Path) -> tuple[Any, Any, list[str]]:
    """The portions of a run that is to choose them, on ranks of which the second has little memory."""
    settings = config(folder, "covrl").model_dump(mode="json")
    settings["training"]["tokens_per_pass"] = "auto"

    def memory(*_: Any) -> Memory:
        rank = int(os.environ.get("RANK", "0"))
        return Memory(1 << (34 if rank == 0 else 22), 1 << 40)

    there, fitting.memory_of = fitting.memory_of, memory
    try:
        run: Run = api.build(RunConfig.model_validate(settings), PROBLEMS, PROBLEMS[:5], reward=reward)
    finally:
        fitting.memory_of = there
    said = [note for note in run.notes if note.startswith("chosen for")]
    return run.config.training.tokens_per_pass, run.config.generation.rows_per_pass, said


def interrupted(folder: Path, out: Path, during: str, ranks: Sequence[int]) -> dict[str, Any]:
    """A run of which these ranks get SIGTERM in the third pass of the second step's sampling or training."""
    run: Run = api.build(config(folder, "covrl streams"), PROBLEMS, PROBLEMS[:5])
    passes = [0]

    def count(*_: Any) -> None:
        if not in_second_step(run, during == "training"):
            return
        passes[0] += 1
        if passes[0] == 3 and run.world.rank in ranks:
            os.kill(os.getpid(), signal.SIGTERM)

    run.models["policy"].model.base_model.register_forward_pre_hook(count)
    run.world.on_rank0(lambda: api.new_run_folder(out))
    try:
        api.train_run(run, out)
    except RunInterruptedError as error:
        return {"said": str(error), "passes": passes[0]}
    return {"said": "nothing", "passes": passes[0]}


def cut(folder: Path, copy: Path) -> Path:
    """A copy of a run as if it had been killed behind its second step."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / "step-000003")
    return copy


def lagging(out: Path) -> str:
    """What a resume says on this rank where the second does not see the newest checkpoint yet."""
    own = api.newest_whole

    def late(root: Path) -> Any:
        if os.environ["RANK"] == "1":
            return sorted(root.glob("step-*"))[-2], []
        return own(root)

    api.newest_whole = late
    try:
        api.resume(out, PROBLEMS, PROBLEMS[:5])
    except UserError as error:
        return str(error)
    finally:
        api.newest_whole = own
    return "nothing"


def no_weights(*_: Any) -> None:
    raise AssertionError("a rank that is not the first reads no model's weights")


def main(folder: Path) -> None:
    world = join_world("cpu")
    if not world.first:
        spread.load_model = no_weights
    found = {name: observe(folder, name) for name in CASES} | {"mixed": mixed(folder)}
    found["others"] = {method: one_step(folder, method) for method in OTHERS}
    train(folder, folder / "by-two")
    found["resumed"] = {"sharded": resume(folder / "by-one-cut").world.sharded}
    world.on_rank0(lambda: cut(folder / "by-two", folder / "again-by-two"))
    resume(folder / "again-by-two")

    def of_all(own: Any) -> list[Any]:
        return world.shared(list, [own] * world.size)

    found["lagging"] = {"said": of_all(lagging(folder / "by-two"))}
    for what in FAILURES:
        found[f"fails: {what}"] = {"said": of_all(fails(folder, what))}
    for where, name in EXHAUSTED:
        found[f"memory: {where}, {name}"] = {"ranks": of_all(exhausted(folder, where, name, 1))}
    found["fitted"] = {"ranks": of_all(fitted(folder))}
    found["memory: twice"] = {"ranks": of_all(exhausted(folder, "block", "covrl", 2))}
    for name, (during, ranks) in STOPPED.items():
        out = folder / f"stopped {name}"
        found[f"stopped: {name}"] = {"ranks": of_all(interrupted(folder, out, during, ranks))}
        world.on_rank0(lambda out=out: shutil.copytree(out / "checkpoints", folder / f"{out.name} at"))
        resume(out)
    assert world.size == int(os.environ["WORLD_SIZE"])
    if world.first:
        torch.save(found, folder / "two.pt")
    world.close()
