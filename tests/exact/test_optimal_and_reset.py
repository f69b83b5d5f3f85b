"""A*-PO, ProRL, GRPO-λ and RLSP through the production path: their identities by enumeration of the tiny world.

The plain side reads each response by the model's own forward and knows no code of covrl's scoring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.algorithms.base import Reset
from covrl.records import Group, Rollout
from covrl.training.publish import begin_anew
from covrl.training.run import Run
from covrl.training.scores import score_groups
from exact import world
from exact.test_group_family import GROUPS, make_run, plain, response

LENGTH = 2
TRACES = world.fixed_traces(LENGTH)


def reward(ids: tuple[int, ...]) -> float:
    """Something that depends on the whole response."""
    return float(7 * TRACES.index(ids) % 5) / 4


def regression(run: Run, value: float) -> Run:
    """A run of A*-PO that has this V* of the only problem."""
    run.algorithm.load_state_dict({"values": {world.PROBLEM.id: value}})
    return run


def one_row(run: Run, ids: tuple[int, ...]) -> Rollout:
    return response(run, ids, reward(ids))


def on_policy(run: Run) -> Tensor:
    """The expected production gradient, over all responses that the policy can sample."""
    total = torch.zeros_like(world.get_weights(run))
    for ids in TRACES:
        chance = float(plain(run, ids).policy.sum().detach().exp())
        total += chance * world.production_gradient(run, [one_row(run, ids)])[0]
    return total


def objective(run: Run, beta: float) -> Tensor:
    """E[r] − β·KL(π ‖ π_ref), enumerated."""
    total = torch.zeros((), dtype=torch.float64)
    for ids in TRACES:
        read = plain(run, ids)
        log, log_ref = read.policy.sum(), read.reference.sum()
        total = total + log.exp() * (reward(ids) - beta * (log - log_ref))
    return total


@pytest.mark.parametrize("value", [0.0, 0.37, -5.0])
def test_the_on_policy_gradient_of_a_star_po_does_not_depend_on_its_value(value: float) -> None:
    """It is −2β₂·∇(E[r] − β₂·KL), away from the reference too."""
    run = regression(world.make_run(1, "a_star_po", group=1, beta=0.6), value)
    world.check(run, on_policy(run), lambda: -2 * 0.6 * objective(run, 0.6))


def test_at_the_closed_form_optimum_the_residual_is_zero() -> None:
    """β₁ = β₂ and the exact V*: π_ref·exp((r − V*)/β) has mass 1, and every residual is 0 there."""
    beta = 0.4
    run = world.make_run(1, "a_star_po", group=1, beta=beta)
    reference = torch.stack([plain(run, ids).reference.sum() for ids in TRACES])
    rewards = torch.tensor([reward(ids) for ids in TRACES], dtype=torch.float64)
    value = float(beta * torch.logsumexp(reference + rewards / beta, 0))
    best = reference + (rewards - value) / beta
    assert float(best.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    algorithm = regression(run, value).algorithm
    for ids, log, log_ref in zip(TRACES, best, reference, strict=True):
        (scored,) = score_groups(run, [Group(world.PROBLEM, (one_row(run, ids),))])
        ((own,),) = algorithm.credit([scored])
        goal = own.constants["trace", "goal"]  # ty: ignore[invalid-argument-type]
        assert beta * float(log - log_ref) - float(goal[0]) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("moved", [False, True])
def test_the_gradient_of_a_star_po_is_that_of_the_stated_loss(moved: bool) -> None:
    """Of responses of several lengths and an unknown one, on and off policy."""
    for seed, members in enumerate(GROUPS[:3]):
        run = regression(world.make_run(seed, "a_star_po", group=len(members), beta=0.3), 0.2)
        torch.manual_seed(seed)
        before = world.get_weights(run)
        drift = 0.1 * torch.randn_like(before) if moved else None
        rollouts = [response(run, ids, r, i) for i, (ids, r) in enumerate(members)]
        found, _ = world.production_gradient(run, rollouts, drift)
        world.set_weights(run, before if drift is None else before + drift)
        total = torch.zeros((), dtype=torch.float64)
        for ids, r in members:
            if r is not None:
                read = plain(run, ids)
                total = total + (0.3 * (read.policy - read.reference).sum() + 0.2 - r) ** 2
        expected = world.gradient_of(run, total / len(members))
        world.set_weights(run, before)
        assert float(expected.norm()) > 1e-2
        assert world.relative(found, expected) < 1e-9


def test_right_after_a_reset_the_kl_and_its_gradient_are_zero() -> None:
    """Of k2, k3 and the exact one; before it neither is 0."""
    for kl in ("k2", "k3", "exact"):
        run = make_run("prorl", resample=False, kl=kl, kl_weight=0.7)
        rows = [response(run, ids, 1.0, i) for i, ids in enumerate(TRACES[:3])]  # equal rewards: the KL alone
        assert float(world.production_gradient(run, rows)[0].norm()) > 1e-3
        begin_anew(run, Reset(("reference",)))
        assert float(world.production_gradient(run, rows)[0].norm()) < 1e-12
        (scored,) = score_groups(run, [Group(world.PROBLEM, tuple(rows))])
        assert run.algorithm.monitors([scored], run.algorithm.credit([scored]))["kl/nats_per_token"] == 0.0


def test_prorl_without_resets_is_grpo_with_its_switches() -> None:
    same = {"clip_high": 0.4, "kl": "k3", "kl_weight": 0.3, "aggregation": "token_mean"}
    for members in GROUPS[:3]:
        found = []
        for name, more in (("prorl", {"resample": False}), ("grpo", {})):
            run = make_run(name, seed=2, **same, **more)
            torch.manual_seed(3)
            drift = 0.3 * torch.randn_like(world.get_weights(run))
            rollouts = [response(run, ids, r, i) for i, (ids, r) in enumerate(members)]
            found.append(world.production_gradient(run, rollouts, drift)[0])
        assert float(found[1].norm()) > 1e-3
        assert float((found[0] - found[1]).norm()) < 1e-12


Batch = Sequence[Sequence[tuple[tuple[int, ...], float]]]

SURE: Batch = [
    [((0, 1, 2), 1.0), ((0,), 1.0), ((1, 1), 0.0)],
    [((0, 1, 1), 1.0), ((1, 0), 0.0), ((1,), 0.0)],
]
"""Groups in which two of three, and one of three, are right."""


def stated_grpo(run: Run, batch: Batch, rewards: Sequence[Sequence[float]]) -> Tensor:
    """GRPO's loss on policy, of these rewards in the place of the outcomes."""
    total = torch.zeros((), dtype=torch.float64)
    for members, own in zip(batch, rewards, strict=True):
        mean = sum(own) / len(own)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in own) / (len(own) - 1))
        for (ids, _), r in zip(members, own, strict=True):
            ratio = plain(run, ids).policy - plain(run, ids).policy.detach()
            total = total - (ratio.exp() * (r - mean) / (deviation + 1e-6)).mean()
    return total / sum(len(members) for members in batch)


def test_the_gradient_of_grpo_lambda_is_that_of_the_stated_loss() -> None:
    """Of two groups the more accurate one has rewards by length: 3 and 1 tokens, z = ±1."""
    run = make_run("grpo_lambda", group=3, top_share=0.5)
    batch: Any = [(world.PROBLEM, [response(run, ids, r, i) for i, (ids, r) in enumerate(members)]) for members in SURE]
    found = world.gradient_of_groups(run, batch)
    long, short = (1 - 0.6 / (1 + math.exp(-z)) for z in (1.0, -1.0))
    expected = world.gradient_of(run, stated_grpo(run, SURE, [[long, short, 0.0], [1.0, 0.0, 0.0]]))
    assert found is not None
    assert world.relative(found, expected) < 1e-9
    plain_rewards = world.gradient_of(run, stated_grpo(run, SURE, [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert world.relative(plain_rewards, expected) > 1e-2


def test_rlsp_without_exploration_is_ppo() -> None:
    """Of responses whose lack of an answer costs nothing, too."""
    members = GROUPS[0]
    found = []
    for name, more in (("rlsp", {"exploration": 0.0, "no_answer": 0.0}), ("ppo", {}), ("rlsp", {})):
        run = world.make_run(1, name=name, group=len(members), **more)
        rollouts = [response(run, ids, r, i) for i, (ids, r) in enumerate(members)]
        found.append(world.production_gradient(run, rollouts)[0])
    assert float((found[0] - found[1]).norm()) < 1e-12
    assert world.relative(found[2], found[1]) > 1e-2
