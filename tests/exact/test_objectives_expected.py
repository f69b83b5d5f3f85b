"""Expected production gradients against enumeration: for every switch, and for the bound itself.

Two kinds of reference:

* the *stated surrogate*: the loss that the documentation states, written again in plain loops over single rows, as an
  expectation over all pairs (prior trace, posterior trace). It contains the documented bias, if any.
* the *bound* J = E_m[log p(y|x,z)] − β·KL(m‖p), differentiated by autograd over the whole enumerated world.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.training.run import Run
from exact import world
from exact.world import Reading

SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "mixture ratio": {"ratio": "mixture"},
    "mixture ratio, alpha .3": {"ratio": "mixture", "alpha": 0.3, "sources": "bernoulli"},
    "uncapped": {"ratio_cap": 1e9},
    "tight cap": {"ratio_cap": 1.05},
    "smooth cap": {"soft_clip": "smooth", "ratio_cap": 1.2},
    "sampled kl": {"kl": "sampled"},
    "detached reference": {"kl_reference": "detached"},
    "sampled kl, detached reference": {"kl": "sampled", "kl_reference": "detached"},
    "kl in return": {"kl_in_return": True},
    "sampled kl in return": {"kl_in_return": True, "kl": "sampled"},
    "beta .1": {"beta": 0.1},
    "no kl": {"beta": 0.0},
    "mean reward": {"reward": "mean"},
    "raised floor": {"floor": -9.0},
    "probability reward": {"reward": "prob"},
    "mean probability reward": {"reward": "mean_prob", "invalid_penalty": 0.2},
    "exact nll": {"nll": "exact"},
    "no nll": {"nll": "off"},
    "half nll": {"nll_weight": 0.5},
    "narrow clip": {"clip": 0.02},
}


def stated_loss(
    settings: dict[str, Any], old: list[Reading], new: list[Reading], sources: list[str], truncated: list[bool]
) -> Tensor:
    """CoVRL's loss of one group, from the documentation and nothing else; ``new`` carries gradient."""
    s = {
        "ratio": "source",
        "ratio_cap": 2.0,
        "clip": 0.3,
        "kl": "exact",
        "beta": 1.0,
        "kl_in_return": False,
        "kl_reference": "live",
        "soft_clip": "cap",
    }
    s |= {
        "reward": "sum",
        "floor": -30.0,
        "invalid_penalty": 1.0,
        "nll": "selective",
        "nll_weight": 1.0,
        "alpha": 0.5,
    } | settings
    forms = {
        "sum": lambda a: a.sum().clamp_min(s["floor"]),
        "mean": lambda a: a.mean(),
        "prob": lambda a: a.sum().exp(),
        "mean_prob": lambda a: a.exp().mean(),
    }
    valid = [float(forms[s["reward"]](r.answer)) for r in old if r.answer is not None]
    rewards = [
        min(valid) - s["invalid_penalty"] if r.answer is None else float(forms[s["reward"]](r.answer)) for r in old
    ]
    advantages = [r - sum(rewards) / len(rewards) for r in rewards]
    policy, kl, nll = [], [], []
    for o, n, source, cut, advantage in zip(old, new, sources, truncated, advantages, strict=True):
        drawn = o.prior if source == "prior" else o.posterior
        k_old, k_new = (_kl(r, drawn, s["kl"], s["kl_reference"] == "detached") for r in (o, n))
        for t in range(len(drawn)):
            below = drawn[t].exp()
            if s["ratio"] == "mixture":
                below = s["alpha"] * o.prior[t].exp() + (1 - s["alpha"]) * o.posterior[t].exp()
            c = float(_m(o, t) / below)
            if s["soft_clip"] == "cap":
                c = min(c, s["ratio_cap"])
            elif c > 1:
                c = 1 + (s["ratio_cap"] - 1) * math.tanh((c - 1) / (s["ratio_cap"] - 1))
            value = advantage - s["beta"] * float(k_old[t + 1 :].sum()) * (s["kl_in_return"] and not cut)
            rho = _m(n, t) / _m(o, t)
            policy.append(-c * torch.minimum(rho * value, rho.clamp(1 - s["clip"], 1 + s["clip"]) * value))
            kl.append(k_new[t] * (not cut))
        if n.answer is not None and s["nll"] == "selective" and source == "prior" and advantage > 0:
            nll.append(-n.answer.mean())
        if n.answer is not None and s["nll"] == "exact":
            nll.append(-n.answer.sum())
    tokens = len(policy)
    rows = tokens if s["nll"] == "exact" else max(sources.count("prior"), 1)
    total = torch.stack(policy).sum() / tokens + s["beta"] * torch.stack(kl).sum() / tokens
    return total + s["nll_weight"] * sum(nll, torch.zeros((), dtype=torch.float64)) / rows


def _m(r: Reading, t: int) -> Tensor:
    return 0.5 * r.prior[t].exp() + 0.5 * r.posterior[t].exp()


def _kl(r: Reading, drawn: Tensor, form: str, detached: bool) -> Tensor:
    if form == "exact":
        return r.kl_detached if detached else r.kl
    m, p, s = 0.5 * r.prior.exp() + 0.5 * r.posterior.exp(), r.prior.exp(), drawn.detach().exp()
    below = p.detach() if detached else p
    cap = (10 * s / m.detach()).clamp_max(1.0)
    return cap * (m * (m / below).log() - m + below) / s


def both_expectations(
    run: Run, settings: dict[str, Any], length: int, drift: Tensor | None
) -> tuple[Tensor, Callable[[], Tensor]]:
    """(production gradient, stated loss), weighted by the probability of each (prior trace, posterior trace).

    With ``drift`` the weights move after sampling, and are left there. The loss is that of the weights at its call.
    """
    traces = world.stopping_traces(length)
    old = [world.plain_reading(run, z, appended=False).detached() for z in traces]
    production = torch.zeros_like(world.get_weights(run))
    for i, first in enumerate(traces):
        for j, second in enumerate(traces):
            chance = math.exp(float(old[i].prior.sum() + old[j].posterior.sum()))
            pair = [world.rollout(run, first, "prior", False), world.rollout(run, second, "posterior", False)]
            if any(r.valid for r in pair):
                production += chance * world.production_gradient(run, pair, drift)[0]
    if drift is not None:
        world.set_weights(run, world.get_weights(run) + drift)

    def stated() -> Tensor:
        new = [world.plain_reading(run, z, appended=False) for z in traces]
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(traces)):
            for j in range(len(traces)):
                chance = math.exp(float(old[i].prior.sum() + old[j].posterior.sum()))
                cut = [new[k].answer is None for k in (i, j)]
                if not all(cut):
                    pair_loss = stated_loss(settings, [old[i], old[j]], [new[i], new[j]], ["prior", "posterior"], cut)
                    total = total + chance * pair_loss
        return total

    return production, stated


@pytest.mark.parametrize("name", SWITCHES)
def test_expected_gradient_is_the_stated_one(name: str) -> None:
    run = world.make_run(seed=1, **SWITCHES[name])
    production, stated = both_expectations(run, SWITCHES[name], length=2, drift=None)
    assert world.relative(production, world.gradient_of(run, stated())) < 1e-9


@pytest.mark.parametrize("name", ["default", "sampled kl", "narrow clip", "mixture ratio", "exact nll"])
def test_expected_gradient_is_the_stated_one_after_the_weights_moved(name: str) -> None:
    run = world.make_run(seed=2, **SWITCHES[name])
    torch.manual_seed(0)
    drift = 0.15 * torch.randn_like(world.get_weights(run))
    production, stated = both_expectations(run, SWITCHES[name], length=2, drift=drift)
    assert world.relative(production, world.gradient_of(run, stated())) < 1e-9


@pytest.mark.parametrize("name", ["default", "sampled kl", "kl in return"])
def test_expected_gradient_agrees_with_finite_differences_of_the_stated_loss(name: str) -> None:
    """No autograd on the reference side."""
    run = world.make_run(seed=1, **SWITCHES[name])
    world.check(run, *both_expectations(run, SWITCHES[name], length=2, drift=None))


def test_longer_traces() -> None:
    run = world.make_run(seed=3)
    production, stated = both_expectations(run, {}, length=3, drift=None)
    assert world.relative(production, world.gradient_of(run, stated())) < 1e-9


def enumerate_bound(run: Run, length: int, beta: float, score_weight: float) -> Tensor:
    """−(score_weight·E_m[R as a constant] + E_m[log p(y|x,z)] as the answer's gradient) + β·KL(m‖p), differentiable.

    All traces have ``length`` tokens and an answer. KL is the whole sequence's, m's own weights included.
    """
    readings = [world.plain_reading(run, z, appended=True) for z in world.fixed_traces(length)]
    total = torch.zeros((), dtype=torch.float64)
    for r in readings:
        assert r.answer is not None
        log_m = (0.5 * r.prior.exp() + 0.5 * r.posterior.exp()).log().sum()
        m, reward = log_m.exp(), r.answer.sum()
        total = total - score_weight * m * reward.detach() - m.detach() * reward
        total = total + beta * m * (log_m - r.prior.sum())
    return total


def drawn_from_composite(run: Run, length: int) -> Tensor:
    """Production gradient, in expectation over two independent traces that were drawn from m itself."""
    traces = world.fixed_traces(length)
    readings = [world.plain_reading(run, z, appended=True).detached() for z in traces]
    chances = [float((0.5 * r.prior.exp() + 0.5 * r.posterior.exp()).prod()) for r in readings]
    assert sum(chances) == pytest.approx(1.0, abs=1e-12)
    total = torch.zeros_like(world.get_weights(run))
    for i, first in enumerate(traces):
        for j, second in enumerate(traces):
            pair = [world.rollout(run, first, "prior", True), world.rollout(run, second, "posterior", True)]
            total += chances[i] * chances[j] * world.production_gradient(run, pair)[0]
    return total


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_traces_of_the_composite_give_the_gradient_of_the_bound(length: int, beta: float) -> None:
    """With c = 1, exact KL in the loss and in the return, and the exact NLL, nothing of ∇J is missing.

    The baseline holds the own reward, so the score term is (G−1)/G = ½ of the whole; a token mean divides by length.
    """
    settings = {"ratio": "mixture", "kl_in_return": True, "nll": "exact", "beta": beta}
    run = world.make_run(seed=4, **settings)
    found = drawn_from_composite(run, length) * length
    expected = world.gradient_of(run, enumerate_bound(run, length, beta, score_weight=0.5))
    # A_t = A − β Σ_{u>t} k_u is charged in full, so only the reward's score term is halved.
    assert world.relative(found, expected) < 1e-9


def test_one_token_traces_from_the_two_prompts_give_the_gradient_of_the_bound() -> None:
    """Source-conditional ratios without cap are unbiased where no prefix is weighted: at length 1."""
    run = world.make_run(seed=5, ratio_cap=1e12, nll="exact")
    traces = world.fixed_traces(1)
    readings = [world.plain_reading(run, z, appended=True).detached() for z in traces]
    found = torch.zeros_like(world.get_weights(run))
    for i, first in enumerate(traces):
        for j, second in enumerate(traces):
            chance = math.exp(float(readings[i].prior.sum() + readings[j].posterior.sum()))
            pair = [world.rollout(run, first, "prior", True), world.rollout(run, second, "posterior", True)]
            found += chance * world.production_gradient(run, pair)[0]
    expected = world.gradient_of(run, enumerate_bound(run, 1, beta=1.0, score_weight=0.5))
    assert world.relative(found, expected) < 1e-9


def test_without_the_return_the_documented_half_of_the_kl_is_missing() -> None:
    """KL as a loss alone is not the gradient of the sequence KL beyond one token (spec 9.1): the difference is real."""
    run = world.make_run(seed=4, ratio="mixture", nll="exact", kl_in_return=False)
    found = drawn_from_composite(run, 2) * 2
    expected = world.gradient_of(run, enumerate_bound(run, 2, 1.0, score_weight=0.5))
    assert world.relative(found, expected) > 1e-2


def test_the_enumerated_bound_agrees_with_finite_differences() -> None:
    """The reference side is itself checked: autograd over the world against central differences."""
    run = world.make_run(seed=6)
    weights = world.get_weights(run)
    gradient = world.gradient_of(run, enumerate_bound(run, 2, 1.0, score_weight=0.0))
    torch.manual_seed(1)
    direction = torch.randn_like(weights)
    frozen = [world.plain_reading(run, z, True).detached() for z in world.fixed_traces(2)]
    values = []
    for sign in (1, -1):
        world.set_weights(run, weights + sign * 1e-5 * direction)
        total = 0.0
        for old, z in zip(frozen, world.fixed_traces(2), strict=True):
            r = world.plain_reading(run, z, True)
            assert r.answer is not None
            log_m = (0.5 * r.prior.exp() + 0.5 * r.posterior.exp()).log().sum().item()
            m_old = float((0.5 * old.prior.exp() + 0.5 * old.posterior.exp()).prod())
            total += -m_old * r.answer.sum().item() + math.exp(log_m) * (log_m - r.prior.sum().item())
        values.append(total)
    world.set_weights(run, weights)
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)


@pytest.mark.parametrize(
    "name", [n for n in SWITCHES if "detached" not in n]
)  # a constant on purpose has no difference
def test_backward_agrees_with_finite_differences_of_the_loss(name: str) -> None:
    """The chunked head, packing and streams: the gradient is that of the loss the step reports, weights moved."""
    run = world.make_run(seed=7, **SWITCHES[name])
    torch.manual_seed(2)
    drift = 0.1 * torch.randn_like(world.get_weights(run))
    pair = [world.rollout(run, (0, 1, 2), "prior", False), world.rollout(run, (1, 2), "posterior", False)]
    gradient, _ = world.production_gradient(run, pair, drift)
    direction = torch.randn_like(gradient)
    up, down = (
        sum(world.production_gradient(run, pair, drift + sign * 1e-6 * direction)[1].losses.values())
        for sign in (1, -1)
    )
    assert (up - down) / 2e-6 == pytest.approx(float(gradient @ direction), rel=1e-5, abs=1e-8)
