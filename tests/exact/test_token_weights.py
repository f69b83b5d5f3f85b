"""TEMPO, THR, NTHR, TW-GRPO, STEER, DHPO and C3PO through the production path: against their losses in plain loops,
and against the methods that they are at the ends of their switches.

The plain side reads each response by the model's own forward and knows no code of covrl's scoring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.errors import UserError
from covrl.records import Group
from covrl.scoring.pack import PassLimits
from covrl.training.method_checks import check_method
from covrl.training.reading_plan import reading_plan
from covrl.training.run import Run
from covrl.training.scores import score_groups
from exact import world
from exact.test_group_family import GROUPS, Plain, detached, make_run, plain, response

Members = Sequence[tuple[tuple[int, ...], float | None]]

VERDICTS: list[Members] = [
    [(ids, None if r is None else float(r > 0.5)) for ids, r in members] for members in GROUPS[1:3]
] + [[((0, 1, 2), 1.0), ((0, 1, 1), 0.0), ((0, 1, 2), 0.0), ((0,), 1.0)]]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tempo": ("tempo", {}),
    "tempo, mean, half": ("tempo", {"advantage": "mean", "td_weight": 0.5}),
    "thr": ("thr", {}),
    "thr, explores": ("thr", {"p": -0.4, "mask": False}),
    "nthr": ("nthr", {}),
    "nthr, beta .2": ("nthr", {"beta": 0.2}),
    "tw_grpo": ("tw_grpo", {}),
    "steer": ("steer", {}),
    "steer, linear": ("steer", {"weights": "linear"}),
    "steer, exact": ("steer", {"metric": "exact", "aggregation": "sequence_mean"}),
    "dhpo": ("dhpo", {"sequence_clip_low": 0.03, "sequence_clip_high": 0.04}),
    "dhpo, loss": ("dhpo", {"combine": "loss", "token_share": 0.3, "sequence_clip_low": 0.02}),
    "dhpo, gated": ("dhpo", {"gate": "high_entropy"}),
    "dhpo, gated the other way": ("dhpo", {"gate": "low_entropy"}),
    "c3po": ("c3po", {"budget": 3}),
    "c3po, at the token": ("c3po", {"budget": 4, "cut": "token"}),
}


Slopes = Sequence[Sequence[Tensor]]
"""Of each response, of each token: the gradient of its log-prob in the output layer's rows, ``[K, D]``."""


def stated(case: str, members: Members, slopes: Slopes, old: list[Plain], new: list[Plain]) -> Tensor:
    """The loss of one group as the module of the method states it, token by token."""
    name, given = CASES[case]
    rewards = [r for _, r in members]
    s = {"advantage": "std", "aggregation": "token_mean", "clip_high": 0.28, "floor": 1e-6} | given
    if name in ("thr", "nthr", "c3po"):
        s["clip_high"] = 0.2
    if name == "tw_grpo":
        s["floor"] = 1e-4
    if name == "dhpo":
        s["aggregation"] = "sequence_mean"
    base = advantages(rewards, s)
    credit = {"tempo": tempo, "thr": thr, "nthr": thr}.get(name, lambda *_: base)(name, s, members, slopes, base)
    factors = {"tw_grpo": tw_grpo, "steer": steer}.get(name, lambda *_: None)(s, credit, old, new)
    chosen = budgeted(s, members) if name == "c3po" else None
    total = torch.zeros((), dtype=torch.float64)
    for i, (o, n) in enumerate(zip(old, new, strict=True)):
        for t in range(len(n.policy)):
            a = credit[i] if not isinstance(credit[i], list) else credit[i][t]
            if a is None or (chosen is not None and not chosen[i][t]):
                continue
            value = dhpo(s, o, n, t, a) if name == "dhpo" else clipped(s, name, o, n, t, a)
            value = value * (factors[i][t] if factors is not None else 1.0)
            total = total - value / (len(n.policy) if s["aggregation"] == "sequence_mean" else 1)
    tokens = sum(len(o.policy) for o in old)
    below = {"token_mean": tokens, "sequence_mean": len(old)}[s["aggregation"]]
    return total / (s["budget"] if name == "c3po" else below)


def advantages(rewards: Sequence[float | None], s: dict[str, Any]) -> list[Any]:
    known = [r for r in rewards if r is not None]
    if len(known) < 2:
        return [None if r is None else 0.0 for r in rewards]
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in known) / (len(known) - 1))
    below = deviation + s["floor"] if s["advantage"] == "std" else 1.0
    return [None if r is None else (r - mean) / below for r in rewards]


def tempo(name: str, s: dict[str, Any], members: Members, slopes: Slopes, base: list[Any]) -> list[Any]:
    known = [(ids, r) for ids, r in members if r is not None]

    def value(prefix: tuple[int, ...]) -> float:
        below = [r for ids, r in known if ids[: len(prefix)] == prefix]
        return sum(below) / len(below)

    rewards = [r for _, r in known]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    below = deviation + 1e-6 if s["advantage"] == "std" else 1.0
    weight = s.get("td_weight", 1.0)
    return [
        None
        if r is None
        else [base[i] + weight * (value(ids[: t + 1]) - value(ids[:t])) / below for t in range(len(ids))]
        for i, (ids, r) in enumerate(members)
    ]


def output_slopes(run: Run, members: Members) -> Slopes:
    """Slopes in the rows of all tokens of the group, by autograd with the hidden states held still."""
    model, known = run.models["policy"].model, sorted({token for ids, _ in members for token in ids})
    found = []
    for ids, _ in members:
        hidden = model.transformer(torch.tensor([[world.A, *ids]])).last_hidden_state[0, :-1].detach()
        weight = model.lm_head.weight.detach().clone().requires_grad_()
        logs = torch.log_softmax(hidden @ weight.T, -1)
        found.append([torch.autograd.grad(logs[t, y], weight, retain_graph=True)[0][known] for t, y in enumerate(ids)])
    return found


def thr(name: str, s: dict[str, Any], members: Members, slopes: Slopes, base: list[Any]) -> list[Any]:
    right = [i for i, (_, r) in enumerate(members) if r == 1.0]
    wrong = [i for i, (_, r) in enumerate(members) if r == 0.0]
    if not right or not wrong:
        return base
    share = {i: 1 / len(slopes[i]) if name == "thr" else 1.0 for i in right}
    score = [
        [sum(share[i] * float((one * other).sum()) for i in right for other in slopes[i]) for one in own]
        for own in slopes
    ]
    tau = s.get("beta", 1.0) * min(sum(score[i]) / len(score[i]) for i in right)
    accuracy = len(right) / (len(right) + len(wrong))

    def factor(i: int, value: float) -> float:
        if name == "nthr":
            return 2 * abs(0.5 - accuracy) if i in wrong and value > tau else 1.0
        if s.get("mask", True) and abs(value) <= tau:
            return 0.0
        return 1 + s.get("p", 0.1) * math.copysign(1.0, value if i in right else -value)

    return [None if a is None else [a * factor(i, v) for v in score[i]] for i, a in enumerate(base)]


def tw_grpo(s: dict[str, Any], credit: list[Any], old: list[Plain], new: list[Plain]) -> list[list[float]]:
    longest = max(len(o.policy) for o in old)
    uniform = torch.full((3,), -math.log(3), dtype=torch.float64)
    found = []
    for t in range(longest):
        rows = [o.policy_all[t] if t < len(o.policy) else uniform for o in old]
        mean = torch.stack(rows).mean(0)
        found.append(sum(float(((mean - row).exp() - (mean - row) - 1).sum()) for row in rows) / len(rows))
    room = max(found) - min(found)
    weights = [1.0 if room == 0 else 1 + 0.7 * (d - min(found)) / room for d in found]
    return [weights for _ in old]


def steer(s: dict[str, Any], credit: list[Any], old: list[Plain], new: list[Plain]) -> list[list[float]]:
    def change(reading: Plain, t: int) -> float:
        logs, log_x = reading.policy_all[t].detach(), float(reading.policy[t].detach())
        entropy, x = -float((logs.exp() * logs).sum()), math.exp(log_x)
        if s.get("metric") == "exact":
            return abs(x * (log_x + entropy) - float((logs.exp() ** 2 * (logs + entropy)).sum()))
        return abs((1 - x) * (log_x + entropy))

    before = [abs(a or 0.0) * change(o, t) for a, o in zip(credit, old, strict=True) for t in range(len(o.policy))]
    least, most = min(before), max(before)

    def weight(i: int, t: int) -> float:
        rho = math.exp(float((new[i].policy[t] - old[i].policy[t]).detach()))
        omega = rho * abs(credit[i] or 0.0) * change(new[i], t)
        if s.get("weights") == "linear":
            height = min(max((omega - least) / (most - least), 0), 1) if most > least else 0.5
            return 1.2 - 0.4 * height
        return min(max(math.exp(omega * math.log(0.8) / max(most, 0.02)), 0.8), 1.0)

    return [[weight(i, t) for t in range(len(o.policy))] for i, o in enumerate(old)]


def clipped(s: dict[str, Any], name: str, o: Plain, n: Plain, t: int, a: float) -> Tensor:
    rho = (n.policy[t] - o.policy[t]).exp()
    value = torch.minimum(rho * a, rho.clamp(0.8, 1 + s["clip_high"]) * a)
    return torch.maximum(value, torch.tensor(10.0 * a, dtype=value.dtype)) if name == "steer" and a < 0 else value


def dhpo(s: dict[str, Any], o: Plain, n: Plain, t: int, a: float) -> Tensor:
    rho = (n.policy[t] - o.policy[t]).exp()
    s_t = (n.policy - o.policy).detach().mean().exp() * (n.policy[t] - n.policy[t].detach()).exp()
    low, high = s.get("sequence_clip_low", 3e-4), s.get("sequence_clip_high", 4e-4)
    rho_c, s_c = rho.clamp(0.8, 1.28), s_t.clamp(1 - low, 1 + high)
    w = s.get("token_share", 0.5)
    if "gate" in s:
        entropies = -(o.policy_all.exp() * o.policy_all).sum(-1)
        room = float(entropies.max() - entropies.min())
        w = 0.5 if room == 0 else float((entropies[t] - entropies.min()) / room)
        w = w if s["gate"] == "high_entropy" else 1 - w
    if s.get("combine") == "loss":
        return w * torch.minimum(rho * a, rho_c * a) + (1 - w) * torch.minimum(s_t * a, s_c * a)
    return torch.minimum((w * rho + (1 - w) * s_t) * a, (w * rho_c + (1 - w) * s_c) * a)


def budgeted(s: dict[str, Any], members: Members) -> list[list[bool]]:
    used, found = 0, []
    for ids, _ in members:
        token = s.get("cut") == "token"
        found.append([used + t < s["budget"] if token else used < s["budget"] for t in range(len(ids))])
        used += len(ids)
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("moved", [False, True])
def test_the_gradient_of_a_group_is_that_of_the_stated_loss(case: str, moved: bool) -> None:
    name, settings = CASES[case]
    seen = 0.0
    for number, members in enumerate(VERDICTS):
        run = make_run(name, seed=number, **settings)
        torch.manual_seed(number)
        before = world.get_weights(run)
        drift = 0.1 * torch.randn_like(before) if moved else None
        rollouts = [response(run, ids, reward, i) for i, (ids, reward) in enumerate(members)]
        old = [detached(plain(run, ids)) for ids, _ in members]
        slopes = output_slopes(run, members) if run.algorithm.by_verdict else []
        found, _ = world.production_gradient(run, rollouts, drift)
        world.set_weights(run, before if drift is None else before + drift)
        loss = stated(case, members, slopes, old, [plain(run, ids) for ids, _ in members])
        expected = world.gradient_of(run, loss) if loss.requires_grad else torch.zeros_like(found)
        world.set_weights(run, before)
        seen = max(seen, float(expected.norm()))
        assert float((found - expected).norm()) <= 1e-9 * max(float(expected.norm()), 1e-3), f"group {number}"
    assert seen > 1e-2


# name, settings, and the method that it then is, of which the gradient is compared on and off policy
SAME: dict[str, tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "tempo without differences": (
        ("tempo", {"td_weight": 0.0}),
        ("grpo", {"aggregation": "token_mean", "clip_high": 0.28}),
    ),
    "thr without mask and sign": (("thr", {"p": 0.0, "mask": False}), ("grpo", {"aggregation": "token_mean"})),
    "nthr above all scores": (("nthr", {"beta": 1e6}), ("grpo", {"aggregation": "token_mean"})),
    "tw_grpo with alpha 1": (
        ("tw_grpo", {"alpha": 1.0, "advantage": "mean"}),
        ("grpo", {"aggregation": "token_mean", "clip_high": 0.28, "advantage": "mean"}),
    ),
    "steer with weight 1": (
        ("steer", {"least_weight": 1.0}),
        ("grpo", {"aggregation": "token_mean", "clip_high": 0.28, "dual_clip": 10.0}),
    ),
    "steer linear with weight 1": (
        ("steer", {"weights": "linear", "least_weight": 1.0, "largest_weight": 1.0}),
        ("grpo", {"aggregation": "token_mean", "clip_high": 0.28, "dual_clip": 10.0}),
    ),
    "dhpo of the token": (("dhpo", {"token_share": 1.0}), ("grpo", {"clip_high": 0.28})),
    "dhpo of the sequence": (("dhpo", {"token_share": 0.0}), ("gspo", {})),
    "dhpo of the token, loss": (("dhpo", {"token_share": 1.0, "combine": "loss"}), ("grpo", {"clip_high": 0.28})),
    "dhpo of the sequence, loss": (("dhpo", {"token_share": 0.0, "combine": "loss"}), ("gspo", {})),
}


def of_group(one: tuple[str, dict[str, Any]], members: Members, drift: float) -> Tensor:
    name, settings = one
    run = make_run(name, seed=3, **settings)
    torch.manual_seed(7)
    moved = drift * torch.randn_like(world.get_weights(run)) if drift else None
    rollouts = [response(run, ids, reward, i) for i, (ids, reward) in enumerate(members)]
    return world.production_gradient(run, rollouts, moved)[0]


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_at_the_ends_of_its_switches_it_is_another_method(case: str, drift: float) -> None:
    mine, other = SAME[case]
    total = 0.0
    for members in VERDICTS:
        expected = of_group(other, members, drift)
        total += float(expected.norm())
        assert float((of_group(mine, members, drift) - expected).norm()) <= 1e-12
    assert total > 1e-2


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_a_budget_of_all_tokens_is_grpos_token_mean(drift: float) -> None:
    for members in VERDICTS:
        budget = sum(len(ids) for ids, _ in members)
        expected = of_group(("grpo", {"aggregation": "token_mean"}), members, drift)
        assert float((of_group(("c3po", {"budget": budget}), members, drift) - expected).norm()) <= 1e-12


def test_tempos_differences_sum_to_the_centred_reward_in_every_group_of_the_world() -> None:
    """All pairs of responses that sampling can return, enumerated through the production credit; equal ones: 0."""
    run = make_run("tempo", advantage="mean")
    for one, other in product(world.responses(2), repeat=2):
        rewards = (1.0, 0.0)
        rollouts = [response(run, ids, r, i) for i, (ids, r) in enumerate(zip((one, other), rewards, strict=True))]
        (scored,) = score_groups(run, [Group(world.PROBLEM, tuple(rollouts))])
        for own, r in zip(run.algorithm.credit([scored])[0], rewards, strict=True):
            weights = own.weights["policy"]
            expected = 0.0 if one == other else r - 0.5
            assert float(weights.sum()) - len(weights) * (r - 0.5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["thr", "nthr", "tw_grpo"])
def test_a_reading_of_a_group_does_not_depend_on_passes_chunks_or_the_order_of_its_responses(name: str) -> None:
    run = make_run(name)
    rollouts = [response(run, ids, reward, i) for i, (ids, reward) in enumerate(VERDICTS[-1])]
    output = ("trace", run.algorithm.group_readings[0].output)
    (whole,) = score_groups(run, [Group(world.PROBLEM, tuple(rollouts))])
    for limits in (PassLimits(1, 1), PassLimits(7, 24), PassLimits(1 << 20, 1 << 20)):
        run.limits = limits
        (turned,) = score_groups(run, [Group(world.PROBLEM, tuple(rollouts[::-1]))])
        for one, other in zip(whole.scores, turned.scores[::-1], strict=True):
            assert torch.allclose(one[output], other[output], atol=1e-12)
            assert one.tokens == other.tokens
    assert any(bool(s[output].any()) for s in whole.scores)
    assert not any(s[output].requires_grad for s in whole.scores)


def test_a_group_reading_is_made_before_credit_whatever_else_credit_looks_at() -> None:
    """With a KL in the reward credit needs the policy's scores; no pass credits a group then."""
    run = make_run("thr", kl="k1", kl_in="reward", kl_weight=0.2)
    assert run.algorithm.credit_scope == "group"
    assert run.algorithm.credit_reads == "all"
    assert reading_plan(run.algorithm, on_policy=True) == reading_plan(run.algorithm, on_policy=False)
    rollouts = [response(run, ids, reward, i) for i, (ids, reward) in enumerate(VERDICTS[-1])]
    assert float(world.production_gradient(run, rollouts)[0].norm()) > 1e-3


def test_a_group_reading_of_a_context_that_is_not_there_is_one_line() -> None:
    algorithm = make_run("thr").algorithm
    algorithm.group_readings = tuple(r._replace(context="posterior") for r in algorithm.group_readings)
    with pytest.raises(UserError, match="the group reading 'influence' is in the context 'posterior'; there is prior"):
        check_method(algorithm)
