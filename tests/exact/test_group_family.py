"""The group family through the production path: against the stated loss in plain loops, and against what it claims.

Responses are traces of the three-token world with a reward each (as a user's reward function would give it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.models.model import LanguageModel
from covrl.records import Group, Rollout
from covrl.training.gradient import add_gradient
from covrl.training.losses import only_written
from covrl.training.reading_plan import reading_plan
from covrl.training.run import Run
from covrl.training.scores import score_groups
from exact import world

MAX_TOKENS = 2
REWARDS = {ids: float(7 * i % 5) / 4 for i, ids in enumerate(product(range(3), repeat=2))}


def make_run(name: str, seed: int = 1, group: int = 2, **settings: Any) -> Run:
    run = world.make_run(seed, name=name, **settings)
    run.algorithm.group_size = group
    run.algorithm.setup = replace(run.algorithm.setup, max_tokens=MAX_TOKENS) if name != "rover" else None
    if run.algorithm.models:
        reference = world.tiny_model(seed + 50).requires_grad_(False)
        run.models["reference"] = LanguageModel(reference)
    return run


def response(run: Run, ids: tuple[int, ...], reward: float | None, index: int = 0, source: str = "prior") -> Rollout:
    made = world.rollout(run, ids, source, appended=False)
    return replace(made, reward=reward, request=replace(made.request, index=index))


@dataclass
class Plain:
    """One response through the models' own forwards: log-probs ``[T]`` and whole distributions ``[T, V]``."""

    policy: Tensor
    policy_all: Tensor
    reference: Tensor
    reference_all: Tensor


def plain(run: Run, ids: tuple[int, ...]) -> Plain:
    row, at = torch.tensor([[world.A, *ids]]), torch.tensor(ids)[:, None]
    policy = torch.log_softmax(run.models["policy"].model(row).logits[0, :-1], -1)
    other = run.models.get("reference", run.models["policy"]).model
    reference = torch.log_softmax(other(row).logits[0, :-1], -1).detach()
    return Plain(policy.gather(1, at)[:, 0], policy, reference.gather(1, at)[:, 0], reference)


FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "grpo, token mean, k3": ("grpo", {"aggregation": "token_mean", "kl": "k3", "kl_weight": 0.3}),
    "grpo, k2": ("grpo", {"kl": "k2", "kl_weight": 0.3}),
    "grpo, exact kl, entropy": ("grpo", {"kl": "exact", "kl_weight": 0.3, "entropy_weight": 0.2}),
    "grpo, k1 in the reward": ("grpo", {"kl": "k1", "kl_in": "reward", "kl_weight": 0.3}),
    "grpo, dual clip": ("grpo", {"dual_clip": 1.05}),
    "dr_grpo": ("dr_grpo", {}),
    "dapo": ("dapo", {"overlong_buffer": 1, "overlong_weight": 0.4}),
    "rloo": ("rloo", {}),
    "rloo with ratio, k1 in the reward": (
        "rloo",
        {"surrogate": "clip", "kl": "k1", "kl_in": "reward", "kl_weight": 0.2},
    ),
    "gspo": ("gspo", {"clip_low": 0.03, "clip_high": 0.04}),
    "cispo": ("cispo", {"clip_high": 0.05}),
    "psr": ("psr", {}),
    "nsr": ("nsr", {}),
    "nsr, kept": ("nsr", {"denominator": "kept", "entropy_weight": 0.2, "kl": "k3", "kl_weight": 0.3}),
    "psr, kept": ("psr", {"denominator": "kept", "entropy_weight": 0.2}),
    "w_reinforce, k3, sequence mean": ("w_reinforce", {"kl": "k3", "kl_weight": 0.3, "aggregation": "sequence_mean"}),
    "w_reinforce": ("w_reinforce", {}),
    "dash": ("dash", {}),
    "dash, paper": ("dash", {"filter": "paper", "tau": 0.1}),
    "rapo": ("rapo", {"alpha": 0.2}),
    "rapo, phi0 0": ("rapo", {"alpha": 0.2, "phi0": 0.0}),
    "rapo, capped": ("rapo", {"alpha": 0.2, "largest_weight": 1.1}),
    "rapo, fkl_iw": ("rapo", {"alpha": 0.2, "penalty": "fkl_iw"}),
    "rapo, fkl_full": ("rapo", {"alpha": 0.2, "penalty": "fkl_full", "phi0": 0.6}),
    "rapo, rkl_k2": ("rapo", {"alpha": 0.2, "penalty": "rkl_k2"}),
    "rapo, rkl_k1_reward": ("rapo", {"alpha": 0.2, "penalty": "rkl_k1_reward"}),
    "rapo, none": ("rapo", {"penalty": "none"}),
    "reinforce_pp": ("reinforce_pp", {"kl_weight": 0.3}),
    "reinforce_pp, group baseline, no kl": ("reinforce_pp", {"kl": "none", "baseline": "group"}),
    "rover": ("rover", {}),
    "rover, std, b .5, scale 2": ("rover", {"advantage": "std", "next_weight": 0.5, "scale": 2.0}),
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "grpo": {"aggregation": "sequence_mean"},
    "dr_grpo": {"advantage": "mean", "aggregation": "constant"},
    "dapo": {"clip_high": 0.28},
    "rloo": {"advantage": "leave_one_out", "surrogate": "plain", "aggregation": "sequence_sum"},
    "gspo": {"ratio": "sequence", "aggregation": "sequence_mean"},
    "cispo": {"surrogate": "cispo"},
    "psr": {"signed": (1.0, 0.0)},
    "nsr": {"signed": (0.0, 1.0)},
    "w_reinforce": {"signed": (0.1, 1.0)},
    "dash": {"aggregation": "constant", "kl": "k3", "kl_weight": 0.04, "epsilon": 1e-4},
    "rapo": {"entropy_weight": 1e-3, "alpha": 1e-3, "phi0": 0.5, "largest_weight": 10.0, "penalty": "fkl_f"},
    "reinforce_pp": {"kl": "k1", "kl_in": "reward", "kl_weight": 0.01},
}


def stated(
    name: str,
    settings: dict[str, Any],
    old: list[Plain],
    new: list[Plain],
    rewards: list[float | None],
    corrections: list[list[float]] | None = None,
) -> Tensor:
    """The loss of one group as the methods' documentation states it, in loops over tokens.

    ``corrections`` are what each token's advantage is multiplied by (the posterior control), 1 by default.
    """
    s = {"advantage": "std", "ratio": "token", "surrogate": "clip", "clip_low": 0.2, "clip_high": 0.2, "kl": "none"}
    s |= {"aggregation": "token_mean", "kl_in": "loss", "kl_weight": 0.0, "entropy_weight": 0.0, "dual_clip": None}
    s |= {"overlong_buffer": 0, "overlong_weight": 1.0, "epsilon": 1e-6, "filter": "exact"}
    s |= DEFAULTS.get(name, {}) | settings
    if name == "rapo":
        extra = {"rkl_k2": ("k2", "loss"), "rkl_k1_reward": ("k1", "reward"), "k3": ("k3", "loss")}.get(s["penalty"])
        if extra:
            s |= {"kl": extra[0], "kl_in": extra[1], "kl_weight": s["alpha"]}
    if name == "rover":
        return stated_rover(settings, old, new, rewards)
    shaped = [None if r is None else r - shaping(s, o, name) for r, o in zip(rewards, old, strict=True)]
    advantages: list[Any] = reinforce_pp(s, shaped, old) if name == "reinforce_pp" else group_advantages(s, shaped)
    if corrections is not None:
        advantages = [
            a if a is None else [at(a, t) * c for t, c in enumerate(row)]
            for a, row in zip(advantages, corrections, strict=True)
        ]
    kept = [
        a is not None and not (s["filter"] == "paper" and abs(float(a[0])) <= s["tau"]) for a in map(listed, advantages)
    ]
    total = torch.zeros((), dtype=torch.float64)
    for o, n, a, r, keep in zip(old, new, advantages, rewards, kept, strict=True):
        if s["filter"] == "paper" and not keep:
            continue
        if s.get("denominator") == "kept" and not (a is not None and float(listed(a)[0])):
            continue
        for t in range(len(n.policy)):
            piece = torch.zeros((), dtype=torch.float64)
            if a is not None:
                piece = piece - surrogate(s, o, n, t, at(a, t))
            piece = piece + penalty(s, n, t, name, r)
            log_all = n.policy_all[t]
            piece = piece + s["entropy_weight"] * (log_all.exp() * log_all).sum()
            total = total + piece / (len(n.policy) if s["aggregation"] == "sequence_mean" else 1)
    tokens, rows = sum(len(o.policy) for o in old), len(old)
    if s.get("denominator") == "kept":
        tokens = sum(
            len(o.policy) for o, a in zip(old, advantages, strict=True) if a is not None and float(listed(a)[0])
        )
    if s["filter"] == "paper":
        rows = sum(kept)
    below = {"token_mean": tokens, "sequence_mean": rows, "sequence_sum": rows, "constant": rows * MAX_TOKENS}
    return total / max(below[s["aggregation"]], 1)


def listed(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


def at(value: Any, t: int) -> float:
    """The advantage of token t: of the response, or its own."""
    return float(value[t] if isinstance(value, list) else value)


def shaping(s: dict[str, Any], o: Plain, name: str) -> float:
    over = 0.0
    if s["overlong_buffer"]:
        over = min(max((len(o.policy) - (MAX_TOKENS - s["overlong_buffer"])) / s["overlong_buffer"], 0), 1)
    in_reward = s["kl_in"] == "reward" and s["kl"] == "k1" and name != "reinforce_pp"
    return s["overlong_weight"] * over + (s["kl_weight"] * float((o.policy - o.reference).sum()) if in_reward else 0.0)


def group_advantages(s: dict[str, Any], shaped: list[float | None]) -> list[float | None]:
    known = [r for r in shaped if r is not None]
    if "signed" in s:
        right, wrong = s["signed"]
        return [None if r is None else right if r > 0.5 else -wrong for r in shaped]
    mean = sum(known) / max(len(known), 1)
    if len(known) < 2:
        return [None if r is None else 0.0 for r in shaped]
    if s["advantage"] == "leave_one_out":
        return [None if r is None else r - (sum(known) - r) / (len(known) - 1) for r in shaped]
    deviation = math.sqrt(sum((r - mean) ** 2 for r in known) / (len(known) - 1))
    below = deviation + s["epsilon"] if s["advantage"] == "std" else 1.0
    return [None if r is None else (r - mean) / below for r in shaped]


def reinforce_pp(s: dict[str, Any], rewards: list[float | None], old: list[Plain]) -> list[Any]:
    known = [r for r in rewards if r is not None]
    base = sum(known) / max(len(known), 1) if s.get("baseline") == "group" else 0.0
    returns: list[Any] = []
    for r, o in zip(rewards, old, strict=True):
        kl = s["kl_weight"] * (o.policy - o.reference) if s["kl"] == "k1" else 0 * o.policy
        returns.append(None if r is None else [r - base - float(kl[t:].sum()) for t in range(len(kl))])
    flat = [value for row in returns if row is not None for value in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in flat) / max(len(flat) - 1, 1))
    return [None if row is None else [(v - mean) / (deviation + 1e-8) for v in row] for row in returns]


def surrogate(s: dict[str, Any], o: Plain, n: Plain, t: int, a: float) -> Tensor:
    if s["surrogate"] == "plain":
        return a * n.policy[t]
    rho = (n.policy[t] - o.policy[t]).exp()
    if s["surrogate"] == "cispo":
        return min(float(rho.detach()), 1 + s["clip_high"]) * a * n.policy[t]
    if s["ratio"] == "sequence":
        mean = float((n.policy - o.policy).detach().mean().exp())
        rho = mean * (n.policy[t] - n.policy[t].detach()).exp()
    value = torch.minimum(rho * a, rho.clamp(1 - s["clip_low"], 1 + s["clip_high"]) * a)
    if s["dual_clip"] and a < 0:
        value = torch.maximum(value, torch.tensor(s["dual_clip"] * a, dtype=value.dtype))
    return value


def penalty(s: dict[str, Any], n: Plain, t: int, name: str, reward: float | None) -> Tensor:
    if s["kl_in"] == "loss" and s["kl"] in ("k2", "k3"):
        d = n.reference[t] - n.policy[t]
        return s["kl_weight"] * (0.5 * d * d if s["kl"] == "k2" else d.exp() - d - 1)
    if s["kl"] == "exact":
        p, r = n.policy_all[t], n.reference_all[t]
        return s["kl_weight"] * (p.exp() * (p - r)).sum()
    if name == "rapo" and s["penalty"].startswith("fkl"):
        power = s["phi0"] if reward is not None and reward <= 0.5 else 1.0
        target = power * n.reference_all[t] - torch.logsumexp(power * n.reference_all[t], -1)
        if s["penalty"] == "fkl_full":
            return s["alpha"] * (target.exp() * (target - n.policy_all[t])).sum()
        chosen = int((n.policy_all[t] == n.policy[t]).nonzero()[0, 0])
        d = (target[chosen] - n.policy[t]).clamp(-20, math.log(s["largest_weight"]))
        if s["penalty"] == "fkl_iw":
            return -s["alpha"] * float(d.detach().exp()) * n.policy[t]
        return s["alpha"] * (d.exp() * d - d.exp() + 1)
    return torch.zeros((), dtype=torch.float64)


def stated_rover(settings: dict[str, Any], old: list[Plain], new: list[Plain], rewards: list[float | None]) -> Tensor:
    s = {"scale": 1.0, "next_weight": 1.0, "advantage": "mean", "epsilon": 1e-6} | settings
    total = torch.zeros((), dtype=torch.float64)
    for o, n, a in zip(old, new, group_advantages(s, rewards), strict=True):
        for t in range(len(n.policy) if a is not None else 0):
            following = 0.0
            if t + 1 < len(n.policy):
                following = float((n.policy_all[t + 1] - o.policy_all[t + 1]).mean().detach())
            value = s["scale"] * (n.policy[t] - o.policy[t])
            total = total + (value - a - s["next_weight"] * s["scale"] * following) ** 2
    return total / sum(len(o.policy) for o in old)


GROUPS = [
    [((0, 1), 1.0), ((2,), 0.0), ((1, 0), 0.0)],
    [((0, 2), 1.0), ((0, 2), 1.0), ((1, 1), 0.0), ((2,), 1.0)],
    [((1, 2), 0.0), ((0, 1), None), ((0, 0), 1.0)],
    [((2,), 1.0), ((1, 1), 1.0)],
]


@pytest.mark.parametrize("case", FAMILY)
@pytest.mark.parametrize("moved", [False, True])
def test_the_gradient_is_that_of_the_stated_loss(case: str, moved: bool) -> None:
    name, settings = FAMILY[case]
    for number, members in enumerate(GROUPS):
        run = make_run(name, seed=number, **({"resample": False} if name == "dapo" else {}) | settings)
        torch.manual_seed(number)
        before = world.get_weights(run)
        drift = 0.1 * torch.randn_like(before) if moved else None
        rollouts = [response(run, ids, reward, i) for i, (ids, reward) in enumerate(members)]
        old = [detached(plain(run, ids)) for ids, _ in members]
        found, _ = world.production_gradient(run, rollouts, drift)
        world.set_weights(run, before if drift is None else before + drift)
        loss = stated(name, settings, old, [plain(run, ids) for ids, _ in members], [r for _, r in members])
        expected = world.gradient_of(run, loss) if loss.requires_grad else torch.zeros_like(found)
        world.set_weights(run, before)
        assert float((found - expected).norm()) <= 1e-9 * max(float(expected.norm()), 1e-3), f"group {number}"


MASKS = [(True, False), (False, True), (True, True)]
"""Which tokens of a group's responses the policy wrote, in turn; of a single token: that one."""


@pytest.mark.parametrize("case", [case for case in FAMILY if not case.startswith(("rover", "dapo"))])
@pytest.mark.parametrize("moved", [False, True])
def test_tokens_that_the_policy_did_not_write_are_in_no_mean(case: str, moved: bool) -> None:
    """The stated loss over the written tokens alone, which are read after all tokens before them.

    ROVER's targets reach over the next token, and the length penalty counts all of them.
    """
    name, settings = FAMILY[case]
    for number, members in enumerate(GROUPS):
        run = make_run(name, seed=number, **settings)
        torch.manual_seed(number)
        before = world.get_weights(run)
        drift = 0.1 * torch.randn_like(before) if moved else None
        masks = [MASKS[i % 3][: len(ids)] if len(ids) > 1 else (True,) for i, (ids, _) in enumerate(members)]
        rollouts = [
            replace(response(run, ids, reward, i), written=mask)
            for i, ((ids, reward), mask) in enumerate(zip(members, masks, strict=True))
        ]
        old = [masked(detached(plain(run, ids)), mask) for (ids, _), mask in zip(members, masks, strict=True)]
        given = run.algorithm.credit
        run.algorithm.credit = lambda groups, run=run, given=given: only_written(  # ty: ignore[invalid-assignment]
            groups, given(groups), run.algorithm.streams
        )
        found, _ = world.production_gradient(run, rollouts, drift)
        world.set_weights(run, before if drift is None else before + drift)
        new = [masked(plain(run, ids), mask) for (ids, _), mask in zip(members, masks, strict=True)]
        loss = stated(name, settings, old, new, [r for _, r in members])
        expected = world.gradient_of(run, loss) if loss.requires_grad else torch.zeros_like(found)
        world.set_weights(run, before)
        assert float((found - expected).norm()) <= 1e-9 * max(float(expected.norm()), 1e-3), f"group {number}"


def masked(p: Plain, written: tuple[bool, ...]) -> Plain:
    mine = torch.tensor(written)
    return Plain(p.policy[mine], p.policy_all[mine], p.reference[mine], p.reference_all[mine])


def detached(p: Plain) -> Plain:
    return Plain(p.policy.detach(), p.policy_all.detach(), p.reference, p.reference_all)


# The posterior control: thoughts from both prompts, the posterior's corrected by min(p/q, cap) token by token.

MIXED = [((0, 1), 1.0, "prior"), ((2,), 0.0, "prior"), ((1, 0), 1.0, "posterior"), ((0, 0), 0.0, "posterior")]
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "grpo, dual clip, tight cap": ("grpo", {"dual_clip": 1.05, "source_cap": 1.05}),
    "dr_grpo": ("dr_grpo", {}),
    "dapo": ("dapo", {"resample": False, "overlong_buffer": 1, "overlong_weight": 0.4}),
    "rloo": ("rloo", {}),
    "cispo": ("cispo", {"clip_high": 0.05}),
    "reinforce_pp": ("reinforce_pp", {"kl": "none", "kl_weight": 0.0}),
}


@pytest.mark.parametrize("case", CONTROLS)
@pytest.mark.parametrize("moved", [False, True])
def test_the_posterior_control_has_the_gradient_of_its_stated_loss(case: str, moved: bool) -> None:
    """p/q is that of the weights that sampled, also when they have moved; the prior's own thoughts have none."""
    name, settings = CONTROLS[case]
    run = make_run(name, seed=1, group=4, posterior_share=0.5, **settings)
    rollouts = [response(run, ids, reward, i, source) for i, (ids, reward, source) in enumerate(MIXED)]
    old = [detached(plain(run, ids)) for ids, _, _ in MIXED]
    raw = [
        (p.policy - world.plain_log_probs(run, (world.A, world.B), ids).detach()).exp().tolist()
        for p, (ids, _, _) in zip(old, MIXED, strict=True)
    ]
    cap = settings.get("source_cap", 2.0)
    corrections = [
        [min(c, cap) if m[2] == "posterior" else 1.0 for c in row] for m, row in zip(MIXED, raw, strict=True)
    ]
    assert {c == cap for row in corrections[2:] for c in row} == {True, False}  # the cap binds, and not always
    torch.manual_seed(0)
    before = world.get_weights(run)
    drift = 0.1 * torch.randn_like(before) if moved else None
    found, _ = world.production_gradient(run, rollouts, drift)
    world.set_weights(run, before if drift is None else before + drift)
    new, rewards = [plain(run, ids) for ids, _, _ in MIXED], [reward for _, reward, _ in MIXED]
    expected = world.gradient_of(run, stated(name, settings, old, new, rewards, corrections))
    assert float(expected.norm()) > 1e-3
    assert world.relative(found, expected) < 1e-9


def expected_of_the_control(length: int) -> tuple[Run, Tensor]:
    """(run, RLOO's production gradient over one thought from each prompt, under a cap that never binds)."""
    run = make_run("rloo", posterior_share=0.5, source_cap=1e9)
    traces = world.fixed_traces(length)
    chances = [
        [math.exp(float(world.plain_log_probs(run, prompt, ids).sum().detach())) for ids in traces]
        for prompt in ((world.A,), (world.A, world.B))
    ]
    total = torch.zeros_like(world.get_weights(run))
    for (i, one), (j, other) in product(enumerate(traces), repeat=2):
        pair = [response(run, one, reward_of(one), 0), response(run, other, reward_of(other), 1, "posterior")]
        total += chances[0][i] * chances[1][j] * world.production_gradient(run, pair)[0]
    return run, total


def reward_of(ids: tuple[int, ...]) -> float:
    return REWARDS[ids] if len(ids) == 2 else REWARDS[ids[0], 0]


def test_the_uncapped_posterior_control_climbs_the_priors_reward_at_one_token() -> None:
    """E_q[(p/q)·A·∇log p] = E_p[A·∇log p]: whichever prompt drew the token, the prior's reward is climbed."""
    run, found = expected_of_the_control(1)
    world.check(run, found, lambda: -enumerated(run, 1, lambda ids, _: reward_of(ids)))


def test_beyond_one_token_the_posterior_control_is_biased() -> None:
    """p/q corrects each token alone: which tokens come before it, and which reward after it, q decides.

    −½ E_p[r] for the prior's thought. For the posterior's, −½ E_q[(r − E_p[r]) Σ_t p_t/q_t · log π_t], with all but
    log π that of the weights that sampled.
    """
    run, found = expected_of_the_control(2)
    old = {ids: plain(run, ids).policy.detach() for ids in world.fixed_traces(2)}
    shown = {ids: world.plain_log_probs(run, (world.A, world.B), ids).detach() for ids in old}
    base = sum(float(p.sum().exp()) * reward_of(ids) for ids, p in old.items())

    def value() -> Tensor:
        total = -0.5 * enumerated(run, 2, lambda ids, _: reward_of(ids))
        for ids, q in shown.items():
            tokens = (old[ids] - q).exp() * plain(run, ids).policy
            total = total - 0.5 * q.sum().exp() * (reward_of(ids) - base) * tokens.sum()
        return total

    world.check(run, found, value)
    climbs = world.gradient_of(run, -enumerated(run, 2, lambda ids, _: reward_of(ids)))
    assert world.relative(found, climbs) > 1e-2


def expectation(run: Run, length: int, group: int, reward: Callable[[tuple[int, ...]], float]) -> Tensor:
    """The production gradient, weighted by the probability of every group of responses of one length."""
    traces = world.fixed_traces(length)
    chances = [math.exp(float(plain(run, ids).policy.sum().detach())) for ids in traces]
    assert sum(chances) == pytest.approx(1.0, abs=1e-12)
    total = torch.zeros_like(world.get_weights(run))
    for members in product(range(len(traces)), repeat=group):
        chance = math.prod(chances[i] for i in members)
        rollouts = [response(run, traces[i], reward(traces[i]), k) for k, i in enumerate(members)]
        total += chance * world.production_gradient(run, rollouts)[0]
    return total


def enumerated(run: Run, length: int, value: Callable[[tuple[int, ...], Plain], Tensor | float]) -> Tensor:
    """Σ_z π(z)·value(z) over the whole world."""
    total = torch.zeros((), dtype=torch.float64)
    for ids in world.fixed_traces(length):
        p = plain(run, ids)
        total = total + p.policy.sum().exp() * value(ids, p)
    return total


def test_rloo_is_unbiased() -> None:
    run = make_run("rloo")
    found = expectation(run, 2, 2, REWARDS.__getitem__)
    world.check(run, found, lambda: -enumerated(run, 2, lambda ids, _: REWARDS[ids]))


def test_rloo_with_k1_in_the_reward_has_the_gradient_of_the_regularised_reward() -> None:
    run = make_run("rloo", kl="k1", kl_in="reward", kl_weight=0.3)
    value = lambda ids, p: REWARDS[ids] - 0.3 * (p.policy.sum() - p.reference.sum())  # noqa: E731
    world.check(run, expectation(run, 2, 2, REWARDS.__getitem__), lambda: -enumerated(run, 2, value))


def test_dr_grpo_has_the_documented_share_of_the_gradient() -> None:
    """(G−1)/G for the own reward in the mean, 1/L for the constant length."""
    run = make_run("dr_grpo")
    found = expectation(run, 2, 2, REWARDS.__getitem__)
    world.check(run, found, lambda: -0.5 / MAX_TOKENS * enumerated(run, 2, lambda ids, _: REWARDS[ids]))


def test_w_reinforce_with_equal_weights_is_reinforce_on_plus_and_minus_one() -> None:
    run = make_run("w_reinforce", right_weight=1.0, aggregation="sequence_sum")
    right = lambda ids: float(REWARDS[ids] > 0.5)  # noqa: E731
    found = expectation(run, 2, 1, right)
    world.check(run, found, lambda: -enumerated(run, 2, lambda ids, _: 2 * right(ids) - 1))


def one_token_penalty(name: str, reward: float = 1.0, **settings: Any) -> tuple[Run, Tensor]:
    """Expected gradient of the penalty alone: all rewards equal, one token."""
    run = make_run(name, **settings)
    return run, expectation(run, 1, 1, lambda _: reward)


def divergence(run: Run, forward: bool, power: float = 1.0) -> Tensor:
    """∇KL(π‖p) or ∇KL(p‖π) at the first token, p taken to a ``power`` and normalised again."""
    first = plain(run, (0,))
    p, r = first.policy_all[0], torch.log_softmax(power * first.reference_all[0], -1)
    return world.gradient_of(run, ((r.exp() * (r - p)) if forward else (p.exp() * (p - r))).sum())


@pytest.mark.parametrize(
    ("settings", "forward"),
    [
        ({"kl": "k2"}, False),
        ({"kl": "exact"}, False),
        ({"kl": "k3"}, True),
    ],
)
def test_which_divergence_a_kl_loss_really_descends(settings: dict[str, Any], forward: bool) -> None:
    """k3, which GRPO code calls a reverse KL, has the gradient of the forward one."""
    run, found = one_token_penalty("rloo", surrogate="clip", kl_weight=1.0, **settings)
    assert world.relative(found, divergence(run, forward)) < 1e-9
    assert world.relative(found, divergence(run, not forward)) > 1e-2


@pytest.mark.parametrize("form", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_are_no_kl(form: str) -> None:
    """The score function of their values: the reverse KL's gradient is subtracted from, not added to, another one."""
    run = make_run("rloo", kl=form, kl_in="reward", kl_weight=1.0)
    found = expectation(run, 1, 2, lambda _: 1.0)
    reverse = divergence(run, forward=False)
    if form == "k3":  # E_π[(e^d − d − 1) ∇log π] = −∇KL(p‖π) + ∇KL(π‖p)
        expected = reverse - divergence(run, forward=True)
    else:  # E_π[½d² ∇log π] = ∇E_π[½d²] + E_π[d ∇log π], and the latter is −∇KL(π‖p)
        first = plain(run, (0,))
        p, r = first.policy_all[0], first.reference_all[0]
        expected = world.gradient_of(run, 0.5 * (p.exp() * (r - p).square()).sum()) - reverse
    assert world.relative(found, expected) < 1e-9
    assert world.relative(found, reverse) > 1e-2


BARE_PENALTY = {"alpha": 1.0, "entropy_weight": 0.0, "largest_weight": 1e6}


@pytest.mark.parametrize("penalty", ["fkl_iw", "fkl_full"])
def test_rapo_without_tempering_is_the_plain_forward_kl(penalty: str) -> None:
    """φ₀ = 1 holds wrong responses to the base itself. A smaller one does not: they are held to a flatter one."""
    run, found = one_token_penalty("rapo", reward=0.0, penalty=penalty, phi0=1.0, **BARE_PENALTY)
    plainly = divergence(run, forward=True)
    assert world.relative(found, plainly) < 1e-9
    run, found = one_token_penalty("rapo", reward=0.0, penalty=penalty, phi0=0.5, **BARE_PENALTY)
    assert world.relative(found, plainly) > 1e-2
    assert world.relative(found, divergence(run, forward=True, power=0.5)) < 1e-9
    _, found = one_token_penalty("rapo", reward=1.0, penalty=penalty, phi0=0.5, **BARE_PENALTY)
    assert world.relative(found, plainly) < 1e-9  # right ones are held to the base, whatever φ₀


@pytest.mark.parametrize("phi0", [1.0, 0.5])
def test_rapos_formula_has_the_gradient_of_the_squared_log_ratio(phi0: float) -> None:
    run, found = one_token_penalty("rapo", reward=0.0, phi0=phi0, **BARE_PENALTY)
    first = plain(run, (0,))
    r, p = torch.log_softmax(phi0 * first.reference_all[0], -1), first.policy_all[0]
    expected = world.gradient_of(run, (0.5 * r.exp() * (r - p).square()).sum())
    assert world.relative(found, expected) < 1e-9
    assert world.relative(found, divergence(run, forward=True, power=phi0)) > 1e-2


@pytest.mark.parametrize("penalty", ["fkl_f", "fkl_full", "fkl_iw"])
def test_rapo_at_the_tempered_reference_has_no_penalty(penalty: str) -> None:
    """π = p̂ = p^φ₀/Z in every state: GPT-2's logits are linear in its last norm, so φ₀ times that is p^φ₀.

    Value and gradient are zero for each wrong response; those of ``fkl_iw``, a cross-entropy, in expectation.
    """
    run = make_run("rapo", penalty=penalty, phi0=0.5, **BARE_PENALTY)
    policy: Any = run.models["policy"].model
    policy.load_state_dict(run.models["reference"].model.state_dict())
    with torch.no_grad():
        policy.transformer.ln_f.weight *= 0.5
        policy.transformer.ln_f.bias *= 0.5
    wrong, right = (
        [response(run, ids, reward, i) for i, ids in enumerate([(0, 1), (2,), (1, 0)])] for reward in (0.0, 1.0)
    )
    scale = float(world.production_gradient(run, right)[0].norm())  # these are held to p, where π is not
    assert scale > 1e-2
    if penalty == "fkl_iw":
        assert float(expectation(run, 2, 1, lambda _: 0.0).norm()) < 1e-12 * scale
        return
    found, report = world.production_gradient(run, wrong)
    assert abs(report.losses["kl"]) < 1e-14
    assert report.losses["policy"] == 0.0  # an all-wrong group has the penalty and the entropy alone
    assert float(found.norm()) < 1e-12 * scale


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_rapo_stands_still_at_its_closed_form_optimum(beta: float) -> None:
    """A three-armed bandit: with the model at the optimum of E[r] − α·KL(p‖π) + β·H(π) nothing moves (spec A.1)."""
    alpha = 0.4
    run = make_run(
        "rapo",
        advantage="leave_one_out",
        aggregation="sequence_sum",
        penalty="fkl_iw",
        alpha=alpha,
        phi0=1.0,
        entropy_weight=beta,
        largest_weight=1e9,
    )
    reward = lambda ids: float(ids[0] == 1)  # noqa: E731
    base = plain(run, (0,)).reference_all[0].exp()
    optimum = bandit_optimum(base, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), alpha, beta)
    assert float(optimum.sum()) == pytest.approx(1.0, abs=1e-10)
    fit(run, optimum)
    found = expectation(run, 1, 2, reward)
    away = world.gradient_of(run, plain(run, (1,)).policy[0])
    assert float(found.norm()) < 1e-7 * float(away.norm())


def bandit_optimum(base: Tensor, rewards: Tensor, alpha: float, beta: float) -> Tensor:
    """q* of spec A.1: α·p/(λ−r) without entropy, c/W(c·exp((λ+β−r)/β)) with it; λ by bisection."""

    def at(level: float) -> Tensor:
        if beta == 0:
            return alpha * base / (level - rewards)
        c = alpha * base / beta
        return c / lambert(c * ((level + beta - rewards) / beta).exp())

    low, high = (float(rewards.max()) + 1e-12 if beta == 0 else -20.0), 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle).sum()) > 1 else (low, middle)
    return at(high)


def lambert(x: Tensor) -> Tensor:
    """The principal branch of Lambert's W for positive arguments, by Newton's method on w + log w = log x."""
    log_x = x.log()
    w = torch.where(log_x > 1, log_x, x.clamp_max(1.0))
    for _ in range(100):
        w = w * (1 + log_x - w.log()) / (1 + w)
    return w


def fit(run: Run, target: Tensor) -> None:
    """Move the model until its first token has the distribution ``target``."""
    optimizer = torch.optim.LBFGS(
        run.parameters, max_iter=400, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (target * (target.log() - plain(run, (0,)).policy_all[0])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(plain(run, (0,)).policy_all[0].exp(), target, atol=1e-8)


def test_the_first_rover_step_is_twice_mean_centred_reinforce() -> None:
    rover, dr_grpo = make_run("rover"), make_run("dr_grpo", aggregation="token_mean")
    members = [((0, 1), 1.0), ((1, 0), 0.0), ((2,), 0.0)]
    found, expected = (
        world.production_gradient(run, [response(run, ids, r, i) for i, (ids, r) in enumerate(members)])[0]
        for run in (rover, dr_grpo)
    )
    assert world.relative(found, 2 * expected) < 1e-12


def test_gspo_with_one_update_is_grpo() -> None:
    members = [((0, 1), 1.0), ((1, 0), 0.0), ((2,), 0.0)]
    found, expected = (
        world.production_gradient(run, [response(run, ids, r, i) for i, (ids, r) in enumerate(members)])[0]
        for run in (make_run("gspo"), make_run("grpo"))
    )
    assert world.relative(found, expected) < 1e-12


@pytest.mark.parametrize("kl", ["none", "k3"])
def test_dash_drops_rows_exactly(kl: str) -> None:
    """Rows without any weight are not read; with a KL every row has one, and its gradient is not lost."""
    settings = {"kl": kl, "kl_weight": 0.3 if kl != "none" else 0.0}
    run = make_run("dash", **settings)
    alike = [response(run, ids, 1.0, i) for i, ids in enumerate([(0, 1), (1, 0), (2,)])]
    gradient, report = world.production_gradient(run, alike)
    assert report.rows == (0 if kl == "none" else 3)
    assert bool(gradient.any()) == (kl != "none")
    paper = make_run("dash", filter="paper", **settings)
    assert not world.production_gradient(paper, alike)[0].any()


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("aggregation", ["constant", "token_mean", "sequence_mean"])
def test_dash_exact_is_the_loss_over_all_rows(aggregation: str, moved: bool) -> None:
    """A batch of groups with and without signal: the latter's rows are not read, and count in the denominator."""
    settings = {"kl": "none", "kl_weight": 0.0, "aggregation": aggregation}
    run = make_run("dash", **settings)
    batch = [
        [((0, 1), 1.0), ((2,), 0.0), ((1, 0), 0.0)],
        [((1, 1), 1.0), ((2,), 1.0)],
        [((0, 0), 0.0), ((0, 1), 0.0), ((2,), 0.0)],
        [((1, 2), 0.0), ((2,), 1.0)],
    ]
    groups = score_groups(
        run,
        [Group(world.PROBLEM, tuple(response(run, ids, r, i) for i, (ids, r) in enumerate(rows))) for rows in batch],
    )
    old = [[detached(plain(run, ids)) for ids, _ in rows] for rows in batch]
    if moved:
        torch.manual_seed(6)
        before = world.get_weights(run)
        world.set_weights(run, before + 0.1 * torch.randn_like(before))
    report = add_gradient(
        run.algorithm,
        run.models,
        groups,
        run.algorithm.credit(groups),
        run.limits,
        reading_plan(run.algorithm, on_policy=False),
    )
    assert report.dropped == 5
    assert report.rows == 5
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in run.parameters])
    sizes = {"constant": lambda rows: len(rows) * MAX_TOKENS, "sequence_mean": len}
    size = sizes.get(aggregation, lambda rows: sum(len(ids) for ids, _ in rows))
    parts = [
        size(rows) * stated("dash", settings, o, [plain(run, ids) for ids, _ in rows], [r for _, r in rows])
        for rows, o in zip(batch, old, strict=True)
    ]
    expected = world.gradient_of(run, torch.stack(parts).sum() / sum(map(size, batch)))
    assert world.relative(found, expected) < 1e-12
