"""The gradient of a step: invariances, dropped rows, denominators, guards. Real models, real rollouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import FAMILIES, character_tokenizer, tiny
from projects import MARKS
from torch import Tensor

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.config import RunConfig
from covrl.distributed.world import World
from covrl.errors import NonFiniteError
from covrl.generation.base import Draw
from covrl.generation.engine import TorchGenerator
from covrl.models.model import LanguageModel
from covrl.problems.source import ProblemSource
from covrl.prompts import Prompts
from covrl.records import Credit, Problem, ScoredGroup
from covrl.scoring.pack import PassLimits
from covrl.training import loop
from covrl.training.gradient import add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import response_tokens, sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8), foil=str(i * 8 + 1)) for i in range(5)]


def make_run(
    family: str = "gpt2", dtype: str = "float64", training: dict[str, Any] | None = None, **algorithm: Any
) -> Run:
    tokenizer = character_tokenizer()
    config = RunConfig.model_validate(
        {
            "model": {"path": "unused", "dtype": dtype},
            "prompts": MARKS,
            "generation": {"max_trace_tokens": 24, "max_answer_tokens": 8},
            "training": {
                "rollouts_per_problem": 4,
                "problems_per_step": 5,
                "steps": 4,
                "warmup_steps": 0,
                "learning_rate": 1e-3,
            }
            | (training or {}),
            "algorithm": {"name": "covrl", **algorithm},
        }
    )
    prompts = Prompts(tokenizer, config.prompts)
    model = tiny(family, len(tokenizer)).to(getattr(torch, dtype))
    return Run(
        config,
        make_algorithm(config.algorithm, Setup(prompts, 4, 5, response_tokens(prompts, config.generation))),
        {"policy": LanguageModel(model)},
        TorchGenerator(model, tokenizer, 64),
        prompts,
        ProblemSource(PROBLEMS, 0),
    )


def credited(run: Run) -> tuple[list[ScoredGroup], list[list[Credit]]]:
    kept = run.algorithm.admit(score_groups(run, sample(run, PROBLEMS, Draw(0, 0)))).kept
    assert {r.finish for g in kept for r in g.rollouts} >= {"closed", "length"}
    return kept, run.algorithm.credit(kept)


def gradient(
    run: Run, limits: PassLimits, groups: list[ScoredGroup], credits: list[list[Credit]], **options: Any
) -> Tensor:
    for p in run.parameters:
        p.grad = None
    add_gradient(
        run.algorithm, run.models, groups, credits, limits, reading_plan(run.algorithm, on_policy=False), **options
    )
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in run.parameters])


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [("gpt2", "float64", 1e-10), *((family, "float32", 1e-5) for family in FAMILIES if family != "gpt2")],
)
@pytest.mark.parametrize(
    "settings", [{}, {"kl": "sampled", "ratio": "mixture"}, {"nll": "exact", "kl_in_return": True}]
)
def test_packs_and_chunks_do_not_change_the_gradient(
    family: str, dtype: str, tolerance: float, settings: dict[str, Any]
) -> None:
    run = make_run(family, dtype, **settings)
    groups, credits = credited(run)
    whole = gradient(run, PassLimits(1 << 20, 1 << 30), groups, credits)
    assert float(whole.norm()) > 0
    for limits in (PassLimits(1, 1), PassLimits(150, 4 * 97 * 3), PassLimits(700, 1 << 20)):
        other = gradient(run, limits, groups, credits)
        assert float((other - whole).norm() / whole.norm()) < tolerance


def test_the_order_of_groups_does_not_change_the_gradient() -> None:
    run = make_run()
    groups, credits = credited(run)
    limits = PassLimits(200, 1 << 20)
    forward = gradient(run, limits, groups, credits)
    backward = gradient(run, limits, groups[::-1], credits[::-1])
    assert float((forward - backward).norm() / forward.norm()) < 1e-10


def test_measuring_streams_does_not_change_the_gradient_and_the_parts_add_up() -> None:
    run = make_run()
    groups, credits = credited(run)
    limits = PassLimits(200, 1 << 20)
    plain = gradient(run, limits, groups, credits)
    measured = gradient(run, limits, groups, credits, measure_streams=True)
    assert float((plain - measured).norm() / plain.norm()) < 1e-10
    report = add_gradient(
        run.algorithm,
        run.models,
        groups,
        credits,
        limits,
        reading_plan(run.algorithm, on_policy=False),
        measure_streams=True,
    )
    assert set(report.norms) == {"policy", "kl", "nll"}
    assert all(norm > 0 for norm in report.norms.values())
    assert sum(report.norms.values()) >= float(plain.norm())


def test_traces_without_weight_are_dropped_before_the_forward_and_still_counted_below() -> None:
    run = make_run(beta=0.0)
    groups, credits = credited(run)
    idle = [[Credit() if i % 2 else c for i, c in enumerate(row)] for row in credits]
    zeros = [
        [
            Credit({k: torch.zeros_like(v) for k, v in c.weights.items()}, c.constants) if i % 2 else c
            for i, c in enumerate(row)
        ]
        for row in credits
    ]
    limits = PassLimits(1 << 20, 1 << 30)
    report = add_gradient(run.algorithm, run.models, groups, idle, limits, reading_plan(run.algorithm, on_policy=False))
    assert report.dropped >= sum(len(row) // 2 for row in credits)
    assert torch.equal(gradient(run, limits, groups, idle), gradient(run, limits, groups, zeros))
    kept_only = [ScoredGroup(g.problem, g.rollouts[::2], g.scores[::2]) for g in groups]
    fewer_below = gradient(run, limits, kept_only, [row[::2] for row in credits])
    assert float(fewer_below.norm()) > float(gradient(run, limits, groups, idle).norm())


class OneOfTwo(World):
    """One of two ranks that hold whole weights, without the other: its losses and gradient stay its own."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_denominators_come_from_the_batch_of_all_ranks() -> None:
    """So the losses and gradients of two ranks' shares add up to those of one process."""
    run = make_run()
    groups, credits = credited(run)
    limits = PassLimits(1 << 20, 1 << 30)
    made_of = (run.algorithm, run.models, groups, credits, limits, reading_plan(run.algorithm, on_policy=False))
    one = add_gradient(*made_of)
    shares = [add_gradient(*made_of, world=OneOfTwo(rank)) for rank in (0, 1)]
    for name, loss in one.losses.items():
        assert sum(share.losses[name] for share in shares) == pytest.approx(loss)
    whole = gradient(run, limits, groups, credits)
    parts = [gradient(run, limits, groups, credits, world=OneOfTwo(rank)) for rank in (0, 1)]
    assert float((parts[0] + parts[1] - whole).norm() / whole.norm()) <= 1e-5


def test_policy_and_kl_share_a_denominator_and_the_nll_counts_all_prior_traces() -> None:
    run = make_run()
    groups, credits = credited(run)
    below = {s.name: s.denominator(groups) for s in run.algorithm.streams}
    rollouts = [r for g in groups for r in g.rollouts]
    assert below["policy"] == below["kl"] == sum(len(r.trace_ids) for r in rollouts)
    assert below["nll"] == sum(r.source == "prior" for r in rollouts)
    selected = sum("nll" in c.weights for row in credits for c in row)
    assert 0 < selected < below["nll"]


def test_a_loss_that_is_not_finite_names_stream_and_problem_and_takes_no_step() -> None:
    run = make_run()
    groups, credits = credited(run)
    spoiled = credits[1][0]
    credits[1][0] = Credit(spoiled.weights | {"policy": spoiled.weights["policy"] * float("nan")}, spoiled.constants)
    before = [p.detach().clone() for p in run.parameters]
    with pytest.raises(NonFiniteError, match=f"policy loss is nan .*{groups[1].problem.id}"):
        gradient(run, PassLimits(1, 1 << 20), groups, credits)
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_scores_do_not_depend_on_packing() -> None:
    run = make_run()
    sampled = sample(run, PROBLEMS, Draw(0, 0))
    wide = score_groups(run, sampled)
    run.limits = PassLimits(1, 1)
    for a, b in zip(wide, score_groups(run, sampled), strict=True):
        for x, y in zip(a.scores, b.scores, strict=True):
            assert x.values.keys() == y.values.keys()
            assert all(torch.allclose(x.values[k], y.values[k], rtol=1e-10, atol=1e-12) for k in x.values)


def test_on_policy_scores_agree_with_the_sampler() -> None:
    run = make_run()
    for group in score_groups(run, sample(run, PROBLEMS, Draw(0, 0))):
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            own = scores["trace", rollout.source]
            assert torch.allclose(own, torch.tensor(rollout.log_probs, dtype=torch.float64), atol=1e-10)


def test_training_is_the_same_with_and_without_marks() -> None:
    """CoVRL reads no verdict and no label: marking traces changes not one bit of its training."""
    ends = []
    for marked in (False, True):
        run = make_run()
        if marked:
            run.verify = lambda problem, rollout: "right" if rollout.request.index % 2 else "wrong"
            run.label = lambda problem, rollout: "sound" if rollout.request.index % 2 else "odd"
        for _ in loop.steps(run):
            pass
        ends.append(torch.cat([p.detach().flatten() for p in run.parameters]))
    assert torch.equal(ends[0], ends[1])


def test_mini_batches_take_several_optimizer_steps_and_cover_all_groups() -> None:
    run = make_run(training={"mini_batches": 2, "steps": 1})
    report = take_step(run)
    assert {float(s["step"]) for s in run.optimizers["policy"].state.values()} == {2.0}
    assert report.metrics["groups/kept"] >= 2


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not() -> None:
    def end(seed: int) -> Tensor:
        run = make_run("qwen2", "float32", training={"seed": seed})
        for _ in loop.steps(run):
            pass
        return torch.cat([p.detach().flatten() for p in run.parameters])

    assert torch.equal(end(0), end(0))
    assert not torch.equal(end(0), end(1))
