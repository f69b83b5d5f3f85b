"""PPO against plain autograd and enumeration: GAE, the value loss, a head on the trunk, and REINFORCE as a limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.algorithms.ppo import VALUE, clipped_value_loss
from covrl.models.critic import Critic
from covrl.objectives.returns import generalised_advantages, return_to_go, whitened
from covrl.records import Group, Rollout
from covrl.training.run import Run
from covrl.training.scores import score_groups
from exact import world

LENGTH = 4
GAMMA, LAM = 0.9, 0.8


def reward(rollout: Rollout) -> float:
    """Something that depends on the whole response."""
    return float(rollout.text.count("b")) + 0.5 * (rollout.finish == "closed") - 0.25 * len(rollout.trace_ids)


def rewarded(run: Run, ids: tuple[int, ...], index: int = 0) -> Rollout:
    made = world.rollout(run, ids, "prior", appended=False, index=index)
    return replace(made, reward=reward(made))


def plain_values(run: Run, ids: tuple[int, ...]) -> Tensor:
    """``[T]`` values of the states before each token, one row through the critic's own transformer."""
    critic = run.models["critic"]
    states = critic.model.transformer(torch.tensor([[world.A, *ids]])).last_hidden_state[0]
    return critic.head(states)[:-1, 0]  # ty: ignore[unresolved-attribute]


def plain_gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Σ_l (γλ)^l δ_{t+l}, term by term."""
    count = len(values)
    after = [float(values[t + 1]) if t + 1 < count else 0.0 for t in range(count)]
    deltas = [float(rewards[t]) + gamma * after[t] - float(values[t]) for t in range(count)]
    return torch.tensor(
        [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, count)) for t in range(count)], dtype=values.dtype
    )


def test_gae_is_the_specs_golden_value() -> None:
    """Row NTPO of the catalogue, 3.22."""
    found = generalised_advantages(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.7]), 0.95, 0.95)
    assert found.tolist() == pytest.approx([0.663514, 0.53575, 0.3], abs=1e-6)


def test_gae_at_both_ends() -> None:
    """λ = 1: the discounted return minus the value; λ = 0: one step; nothing of nothing."""
    torch.manual_seed(0)
    rewards, values = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.allclose(generalised_advantages(rewards, values, 1.0, 1.0), return_to_go(rewards) - values)
    after = torch.cat([values[1:], torch.zeros(1, dtype=torch.float64)])
    assert torch.allclose(generalised_advantages(rewards, values, 0.7, 0.0), rewards + 0.7 * after - values)
    assert len(generalised_advantages(torch.zeros(0), torch.zeros(0), 1.0, 1.0)) == 0


def test_whitening_is_over_all_tokens() -> None:
    parts = [torch.tensor([1.0, 2.0]), torch.tensor([6.0])]
    scaled = torch.cat([whitened(parts)(part) for part in parts])
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-7)
    assert float(scaled.std()) == pytest.approx(1, abs=1e-6)
    assert whitened([torch.tensor([3.0])])(torch.tensor([3.0])).tolist() == [0.0]


def test_the_value_loss_stops_to_fall_where_the_value_has_moved_far() -> None:
    old, returns = torch.zeros(3), torch.tensor([1.0, 1.0, 1.0])
    new = torch.tensor([0.1, 0.5, -0.5], requires_grad=True)
    loss = clipped_value_loss(new, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.9**2, 0.5 * 0.8**2, 0.5 * 1.5**2])
    (slope,) = torch.autograd.grad(loss.sum(), new)
    assert slope.tolist() == pytest.approx([-0.9, 0.0, -1.5])  # towards the return beyond the clip: none
    assert clipped_value_loss(new, old, returns, None).tolist() == pytest.approx([0.5 * 0.81, 0.5 * 0.25, 0.5 * 2.25])


@pytest.mark.parametrize("critic", ["copy", "trunk"])
@pytest.mark.parametrize("whiten", [False, True])
def test_the_gradient_is_that_of_the_stated_loss(critic: str, whiten: bool) -> None:
    """Policy and value loss of several responses, from rows that go through the models one at a time."""
    settings: dict[str, Any] = {"gamma": GAMMA, "lam": LAM, "whiten": whiten, "critic": critic, "value_weight": 0.7}
    run = world.make_run(name="ppo", group=4, **settings)
    some = world.responses(LENGTH)[::7][:4]
    rollouts = [rewarded(run, ids, i) for i, ids in enumerate(some)]
    found, made = world.production_gradient(run, rollouts)

    tokens = sum(map(len, some))
    olds = [plain_values(run, ids).detach() for ids in some]
    advantages = []
    for rollout, values in zip(rollouts, olds, strict=True):
        rewards = torch.zeros_like(values)
        rewards[-1] = rollout.reward or 0.0
        advantages.append(plain_gae(rewards, values, GAMMA, LAM))
    returns = [a + v for a, v in zip(advantages, olds, strict=True)]
    if whiten:
        every = torch.cat(advantages)
        advantages = [(a - every.mean()) / (every.std() + 1e-8) for a in advantages]

    def loss() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for ids, advantage, target in zip(some, advantages, returns, strict=True):
            total = total - (advantage * world.plain_log_probs(run, [world.A], ids)).sum()
            total = total + 0.7 * 0.5 * ((plain_values(run, ids) - target) ** 2).sum()
        return total / tokens

    expected = world.gradient_of(run, loss())
    assert world.relative(found, expected) < 1e-9
    assert made.rows == len(some) * 2  # a policy's row and a critic's; on one trunk they are one forward


def test_with_an_undiscounted_return_the_expected_gradient_is_that_of_the_reward_whatever_the_critic() -> None:
    """γ = λ = 1: E[Σ_t (r − V(s_t)) ∇ log π] = ∇ E[r]; the random critic changes each response's part, not the mean."""
    run = world.make_run(name="ppo", group=1, gamma=1.0, lam=1.0, whiten=False, aggregation="sequence_sum")
    policy = sum(p.numel() for p in run.models["policy"].parameters())
    total, expected = torch.zeros(policy, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    without = torch.zeros(policy, dtype=torch.float64)
    for ids in world.responses(LENGTH):
        logs = world.plain_log_probs(run, [world.A], ids)
        rollout = rewarded(run, ids)
        chance = float(logs.detach().sum().exp())
        found, _ = world.production_gradient(run, [rollout])
        total += chance * found[:policy]
        expected = expected + logs.sum().exp() * (rollout.reward or 0.0)
        plain = -world.plain_log_probs(run, [world.A], ids).sum()
        without += chance * (rollout.reward or 0.0) * world.gradient_of(run, plain)[:policy]
    slope = world.gradient_of(run, -expected)[:policy]
    assert float(slope.norm()) > 1e-3
    assert world.relative(total, slope) < 1e-9
    assert world.relative(without, slope) < 1e-9


def test_an_unknown_response_trains_nothing_and_counts_in_the_denominator() -> None:
    run = world.make_run(name="ppo", group=2, whiten=False)
    known = rewarded(run, world.responses(LENGTH)[3], 0)
    unknown = replace(rewarded(run, world.responses(LENGTH)[9], 1), reward=None, correct="unknown")
    both, made = world.production_gradient(run, [known, unknown])
    alone, _ = world.production_gradient(run, [known])
    share = len(known.trace_ids) / (len(known.trace_ids) + len(unknown.trace_ids))
    assert world.relative(both, share * alone) < 1e-9
    assert made.dropped == 1


def test_a_value_is_that_of_the_state_before_its_token() -> None:
    run = world.make_run(name="ppo", group=1)
    ids = world.responses(LENGTH)[5]
    (group,) = score_groups(run, [Group(world.PROBLEM, (rewarded(run, ids),))])
    assert torch.allclose(group.scores[0][VALUE], plain_values(run, ids), atol=1e-12)
    assert isinstance(run.models["critic"], Critic)
