"""What the group family and its kin climb in expectation: production gradients over all groups against the objective.

Rewards are 1 or 0 and P is the chance of a right response. A group of G has k right ones with probability
C(G,k)·P^k·(1−P)^(G−k), and dividing by the deviation weighs it by 1/(s_k + ε), so in expectation GRPO does not climb P
but F(P) with F'(P) = w(P), the documented bias:

    w(P) = 1/G · Σ_{k=1}^{G−1} C(G,k)·P^(k−1)·(1−P)^(G−k−1) · k(G−k)/G / (s_k + ε),    s_k² = k(G−k)/(G(G−1))

On fixed lengths every method below has such a closed form. Each is compared twice: by autograd over the enumerated
world (the whole vector), and by finite differences of its value, with no autograd at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations_with_replacement, product
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.algorithms.reinforce_pp import ReinforcePP
from covrl.records import Problem, Rollout, Scores
from covrl.training.run import Run
from exact import test_family as likelihood
from exact import world
from exact.test_group_family import FAMILY, MAX_TOKENS, Plain, detached, make_run, plain, response, stated

Ids = tuple[int, ...]
RIGHT = {(1,), (0, 1), (1, 2), (2, 1), (0, 2), (1, 0)}


def right(ids: Ids) -> float:
    return float(ids in RIGHT)


def groups_of(items: Sequence[Any], count: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Every group up to its order, which has no part in any credit, and how many orders it has."""
    for members in combinations_with_replacement(items, count):
        repeats = math.prod(math.factorial(n) for n in Counter(map(id, members)).values())
        yield members, math.factorial(count) // repeats


def expected(run: Run, traces: Sequence[Ids], group: int, groups: int = 1) -> Tensor:
    """The gradient in expectation over all steps of ``groups`` groups, given that a group was admitted."""
    chance = {ids: math.exp(float(plain(run, ids).policy.sum().detach())) for ids in traces}
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-12)
    total, mass = torch.zeros_like(world.get_weights(run)), 0.0
    every = [(members, count * math.prod(chance[m] for m in members)) for members, count in groups_of(traces, group)]
    for batch, orders in groups_of(every, groups):
        weight = orders * math.prod(p for _, p in batch)
        rollouts = [[response(run, ids, right(ids), i) for i, ids in enumerate(members)] for members, _ in batch]
        found = world.gradient_of_groups(run, [(world.PROBLEM, group) for group in rollouts])
        if found is not None:
            total, mass = total + weight * found, mass + weight
    return total / mass


def chance_of_right(run: Run, traces: Sequence[Ids]) -> Tensor:
    return torch.stack([plain(run, ids).policy.sum().exp() for ids in traces if right(ids)]).sum()


def climbed(p: Tensor, group: int, epsilon: float, tokens: int = 1) -> Tensor:
    """F(P): w(P) of the module's docstring, integrated by Gauss-Legendre's rule, which is exact for a polynomial.

    ``tokens`` is how often a deviation over tokens counts each response (REINFORCE++); 1 for one over responses.
    """
    total = torch.zeros((), dtype=torch.float64)
    for node, weight in ((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)):  # exact up to degree five
        x = p * (1 + node) / 2
        total = total + weight / 2 * p * slope(x, group, epsilon, tokens)
    return total


def slope(x: Tensor, group: int, epsilon: float, tokens: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for k in range(1, group):
        apart = k * (group - k) / group
        deviation = math.sqrt(apart * tokens / (group * tokens - 1))
        total = total + math.comb(group, k) * x ** (k - 1) * (1 - x) ** (group - k - 1) * apart / (deviation + epsilon)
    return total / group


@dataclass
class Claim:
    """A method under ``settings``; ``value`` of (run, its traces) is what its expected step descends."""

    name: str
    settings: dict[str, Any]
    length: int
    group: int
    value: Callable[[Run, Sequence[Ids]], Tensor]
    groups: int = 1


def standard(group: int, epsilon: float = 1e-6, below: float = 1.0, tokens: int = 1) -> Any:
    """−F(P), divided by what a response's tokens are divided by."""
    return lambda run, traces: -climbed(chance_of_right(run, traces), group, epsilon, tokens) / below


def linear(right_weight: float, wrong_weight: float, below: float) -> Any:
    """λ·L_PSR + μ·L_NSR = −λP + μ(1−P)."""
    return lambda run, traces: (
        (-right_weight * chance_of_right(run, traces) + wrong_weight * (1 - chance_of_right(run, traces))) / below
    )


def of_chance(function: Callable[[Tensor], Tensor]) -> Any:
    return lambda run, traces: function(chance_of_right(run, traces))


def first(run: Run) -> Plain:
    return plain(run, (0,))


def dash_with_kl(run: Run, traces: Sequence[Ids]) -> Tensor:
    """k3 as a loss descends the forward KL; one token of the two that a response could have."""
    p, r = first(run).policy_all[0], first(run).reference_all[0]
    return standard(2, 1e-4, 2.0)(run, traces) + 0.3 * (r.exp() * (r - p)).sum() / 2


def rapo_value(run: Run, traces: Sequence[Ids]) -> Tensor:
    """−F + α·½ Σ_v p̂_v(log p̂_v − log π)² − β·H, with p̂_v the base at right tokens and its root at wrong ones."""
    p, r = first(run).policy_all[0], first(run).reference_all[0]
    flat = torch.log_softmax(0.5 * r, -1)
    target = torch.stack([r[v] if right((v,)) else flat[v] for v in range(3)])
    squared = 0.5 * (target.exp() * (target - p).square()).sum()
    return standard(2)(run, traces) + 0.4 * squared + 0.2 * (p.exp() * p).sum()


C2 = 0.5 / (math.sqrt(0.5) + 1e-4)
NO_KL = {"kl": "none", "kl_weight": 0.0}
CLAIMS: dict[str, Claim] = {
    "grpo, G 4": Claim("grpo", {}, 1, 4, standard(4)),
    "grpo, two tokens": Claim("grpo", {}, 2, 2, standard(2, below=2)),
    "gspo, G 4": Claim("gspo", {}, 1, 4, standard(4)),
    "cispo, G 4": Claim("cispo", {}, 1, 4, standard(4)),
    "dash, constant length": Claim("dash", NO_KL, 1, 4, standard(4, 1e-4, MAX_TOKENS)),
    "dash, k3": Claim("dash", {"kl_weight": 0.3}, 1, 2, dash_with_kl),
    # Two groups of two: one is dropped with probability 1 − m, m = 2P(1−P), and its rows leave the divisor: the
    # expected step is (2 − m) times the unfiltered one, so what is climbed is c·∫ 2 − 2P + 2P² dP.
    "dash, paper": Claim(
        "dash",
        NO_KL | {"filter": "paper"},
        1,
        2,
        of_chance(lambda p: -C2 / MAX_TOKENS * (2 * p - p**2 + 2 / 3 * p**3)),
        2,
    ),
    # Groups that are all alike are drawn again: the step is divided by P(mixed), 3P(1−P) for three. w is constant
    # there, 2/√3 up to ε, so what is climbed is the log-odds.
    "dapo, resampled": Claim(
        "dapo", {}, 1, 3, of_chance(lambda p: -2 / 3 / (math.sqrt(1 / 3) + 1e-6) / 3 * (p.log() - (1 - p).log()))
    ),
    "dapo, all groups": Claim("dapo", {"resample": False}, 1, 4, standard(4)),
    "reinforce_pp": Claim("reinforce_pp", {"kl": "none"}, 1, 4, standard(4, 1e-8)),
    "reinforce_pp, two tokens": Claim("reinforce_pp", {"kl": "none"}, 2, 2, standard(2, 1e-8, 2, tokens=2)),
    "psr": Claim("psr", {}, 2, 1, linear(1, 0, 2)),
    "nsr": Claim("nsr", {}, 2, 1, linear(0, 1, 2)),
    "w_reinforce": Claim("w_reinforce", {}, 2, 1, linear(0.1, 1, 2)),
    "w_reinforce, G 2": Claim("w_reinforce", {}, 1, 2, linear(0.1, 1, 1)),
    # Of two rows both or one count below: E = [(1−P)² + 2P(1−P)]/(1−P) = 1 + P times NSR's step, 2 − P times PSR's.
    "nsr, kept": Claim("nsr", {"denominator": "kept"}, 1, 2, of_chance(lambda p: -(p + p**2 / 2))),
    "psr, kept": Claim("psr", {"denominator": "kept"}, 1, 2, of_chance(lambda p: -(2 * p - p**2 / 2))),
    "rover": Claim("rover", {}, 2, 2, of_chance(lambda p: -2 * 0.5 * p / 2)),  # twice, (G−1)/G, and the mean's 1/L
    "rapo": Claim("rapo", {"alpha": 0.4, "entropy_weight": 0.2, "largest_weight": 1e6}, 1, 2, rapo_value),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_the_expected_step_descends_the_documented_objective(case: str) -> None:
    claim = CLAIMS[case]
    run = make_run(claim.name, seed=3, group=claim.group, **claim.settings)
    traces = world.fixed_traces(claim.length)
    found = expected(run, traces, claim.group, claim.groups)
    world.check(run, found, lambda: claim.value(run, traces))


def test_dividing_by_the_deviation_is_a_bias() -> None:
    """w(P) is no constant beyond three responses: GRPO's step is not Dr.GRPO's, rescaled."""
    chances = torch.tensor([0.02, 0.5], dtype=torch.float64)
    two, three, eight = ([float(slope(p, g, 0.0, 1)) for p in chances] for g in (2, 3, 8))
    assert two[0] == pytest.approx(two[1], rel=1e-12)
    assert three[0] == pytest.approx(three[1], rel=1e-12)
    assert eight[0] > 1.2 * eight[1]


# Unequal lengths: what a sum is divided by weighs responses by their lengths.


def by_length(how: str, one: Ids, other: Ids) -> float:
    """What the tokens of ``one`` are divided by in a group of the two."""
    if how == "sequence_mean":
        return 2 * len(one)
    return len(one) + len(other) if how == "token_mean" else 2 * MAX_TOKENS


def pairs_against_a_frozen_partner(run: Run, traces: Sequence[Ids], how: str, size: float) -> Callable[[], Tensor]:
    """−2·Σ A·[π(right)·π̄(wrong)/below(right) − π̄(right)·π(wrong)/below(wrong)], π̄ the weights that sampled.

    Its gradient is the expected step's. It is no objective: the partner's chance does not move.
    """
    frozen = {ids: float(plain(run, ids).policy.sum().detach().exp()) for ids in traces}

    def value() -> Tensor:
        live = {ids: plain(run, ids).policy.sum().exp() for ids in traces}
        total = torch.zeros((), dtype=torch.float64)
        for good, bad in product(traces, repeat=2):
            if right(good) and not right(bad):
                up = live[good] * frozen[bad] / by_length(how, good, bad)
                down = frozen[good] * live[bad] / by_length(how, bad, good)
                total = total - 2 * size * (up - down)
        return total

    return value


@pytest.mark.parametrize(
    ("name", "settings", "how", "size"),
    [
        ("grpo", {}, "sequence_mean", 0.5 / (math.sqrt(0.5) + 1e-6)),
        ("gspo", {}, "sequence_mean", 0.5 / (math.sqrt(0.5) + 1e-6)),
        ("dapo", {"resample": False}, "token_mean", 0.5 / (math.sqrt(0.5) + 1e-6)),
        ("cispo", {}, "token_mean", 0.5 / (math.sqrt(0.5) + 1e-6)),
        ("dash", NO_KL, "constant", C2),
        ("dr_grpo", {}, "constant", 0.5),
    ],
)
def test_unequal_lengths_weigh_as_documented(name: str, settings: dict[str, Any], how: str, size: float) -> None:
    run, traces = make_run(name, seed=4, **settings), world.stopping_traces(2)
    found = expected(run, traces, 2)
    value = pairs_against_a_frozen_partner(run, traces, how, size)
    world.check(run, found, value)
    wrong_way = pairs_against_a_frozen_partner(run, traces, "constant" if how != "constant" else "token_mean", size)
    other = world.gradient_of(run, wrong_way())
    unit = float(found @ other / other.norm() / found.norm())
    assert unit < 0.9999  # another sum has another direction, not only another size


SECOND = replace(world.PROBLEM, id="second", question="b")


def test_reinforce_pp_normalises_over_the_questions_of_a_batch() -> None:
    """Two questions of two one-token responses: each climbs its own P with a weight that depends on the other's.

    With k₁ and k₂ right ones, mean m = (k₁+k₂)/4 and deviation s over the four:  Σ_{k₁,k₂} Pr(k₁,k₂) · 1/(4s) ·
    [k₁(1−m)/P₁ + (2−k₁)m/(1−P₁)] ∇P₁, and so for P₂. Statistics by group would drop the other's part.
    """
    run, traces = make_run("reinforce_pp", seed=3, kl="none"), world.fixed_traces(1)
    questions = {world.A: world.PROBLEM, world.B: SECOND}
    chance = {
        (q, ids): math.exp(float(world.plain_log_probs(run, (q,), ids).sum().detach()))
        for q in questions
        for ids in traces
    }
    total = torch.zeros_like(world.get_weights(run))
    for (one, n), (two, m) in product(list(groups_of(traces, 2)), repeat=2):
        batch = [(world.A, one), (world.B, two)]
        weight = n * m * math.prod(chance[q, ids] for q, members in batch for ids in members)
        groups = [(questions[q], [answered(run, questions[q], ids, i) for i, ids in enumerate(z)]) for q, z in batch]
        found = world.gradient_of_groups(run, groups)
        assert found is not None
        total += weight * found
    frozen = {q: sum(chance[q, ids] for ids in traces if right(ids)) for q in questions}
    assert abs(frozen[world.A] - frozen[world.B]) > 0.05
    weights = {q: batch_weight(frozen[q], frozen[world.A + world.B - q]) for q in questions}

    def value() -> Tensor:
        parts = [
            -weights[q] * world.plain_log_probs(run, (q,), ids).sum().exp()
            for q in questions
            for ids in traces
            if right(ids)
        ]
        return torch.stack(parts).sum()

    world.check(run, total, value)
    alone = {q: float(slope(torch.tensor(frozen[q]), 2, 1e-8, 1)) / 2 for q in questions}
    assert all(abs(weights[q] / alone[q] - 1) > 0.01 for q in questions)


def batch_weight(p: float, other: float) -> float:
    total = 0.0
    for k, j in product(range(3), repeat=2):
        chance = math.comb(2, k) * p**k * (1 - p) ** (2 - k) * math.comb(2, j) * other**j * (1 - other) ** (2 - j)
        m = (k + j) / 4
        s = math.sqrt(((k + j) * (1 - m) ** 2 + (4 - k - j) * m**2) / 3)
        total += chance * (k * (1 - m) / p + (2 - k) * m / (1 - p)) / (4 * (s + 1e-8))
    return total


def answered(run: Run, problem: Problem, ids: Ids, index: int) -> Rollout:
    made = world.rollout(run, ids, "prior", appended=False, problem=problem, index=index)
    return replace(made, reward=right(ids))


# REINFORCE++ as it comes: the KL to go in the reward, mean and deviation over the batch's tokens.


def right_less_kl(run: Run, traces: Sequence[Ids], beta: float) -> Tensor:
    """−E[r] + β·KL(π‖π_ref) of whole responses."""
    total = torch.zeros((), dtype=torch.float64)
    for ids in traces:
        p = plain(run, ids)
        total = total - p.policy.sum().exp() * (right(ids) - beta * (p.policy - p.reference).sum())
    return total


def test_reinforce_pp_by_default_takes_the_step_of_its_whitened_loss() -> None:
    """Steps on three questions of one response each: the documented loss, in expectation over all such steps.

    Mean and deviation are those of the few tokens of the batch, so the step is not one of E[r] − β·KL, rescaled.
    """
    run, traces = make_run("reinforce_pp", seed=3, group=1), world.stopping_traces(2)
    found = expected(run, traces, 1, groups=3)
    old = {ids: detached(plain(run, ids)) for ids in traces}
    every = [
        (batch, orders * math.prod(math.exp(float(old[ids].policy.sum())) for ids in batch))
        for batch, orders in groups_of(traces, 3)
    ]

    def value() -> Tensor:
        new = {ids: plain(run, ids) for ids in traces}
        parts = [
            chance * stated("reinforce_pp", {}, [old[z] for z in batch], [new[z] for z in batch], marks(batch))
            for batch, chance in every
        ]
        return torch.stack(parts).sum()

    world.check(run, found, value)
    climbs = world.gradient_of(run, right_less_kl(run, traces, 0.01))
    assert 0 < float(found @ climbs / found.norm() / climbs.norm()) < 0.9999


def marks(batch: Sequence[Ids]) -> list[float | None]:
    return [right(ids) for ids in batch]


class Unwhitened(ReinforcePP):
    """REINFORCE++ before its batch's mean and deviation."""

    def _moments(self, returns: Sequence[Tensor]) -> tuple[float, float]:
        return 0.0, 1.0 - 1e-8


class OfTheResponse(Unwhitened):
    """The same with the whole response's KL at each token, as the rest of the family takes it off the reward."""

    def _to_go(self, rollout: Rollout, scores: Scores) -> Tensor:
        return super()._to_go(rollout, scores)[:1].expand(len(rollout.trace_ids))


@pytest.mark.parametrize(("weight", "less_noise"), [(0.01, False), (0.3, True)])
def test_the_kl_to_go_is_that_of_the_response_in_expectation(weight: float, less_noise: bool) -> None:
    """Before the whitening both climb E[r] − β·KL(π‖π_ref), of responses of unequal lengths.

    Neither always has less noise. The KL of the tokens before is noise where the KL is large; where the reward is, it
    is a small baseline, and before the whitening there is no other.
    """
    traces, noise = world.stopping_traces(2), []
    for form in (Unwhitened, OfTheResponse):
        run = make_run("reinforce_pp", seed=3, group=1, kl_weight=weight, aggregation="sequence_sum")
        run.algorithm = form(run.algorithm.config, run.algorithm.setup)
        run.algorithm.group_size = 1
        chances = [math.exp(float(plain(run, ids).policy.sum().detach())) for ids in traces]
        rows = [world.production_gradient(run, [response(run, ids, right(ids))])[0] for ids in traces]
        found = torch.stack([chance * row for chance, row in zip(chances, rows, strict=True)]).sum(0)
        world.check(run, found, lambda run=run: right_less_kl(run, traces, weight))
        squares = sum(chance * float(row @ row) for chance, row in zip(chances, rows, strict=True))
        noise.append(squares - float(found @ found))
    assert abs(noise[0] / noise[1] - 1) > 0.02
    assert (noise[0] < noise[1]) == less_noise


# The verifier-free methods whose step is no gradient of one objective: the stated loss, in expectation.


@cache
def stated_in_expectation(case: str) -> tuple[Run, Tensor, Callable[[], Tensor]]:
    """(run, production gradient, Σ chance of a group × its stated loss, all but the new log-probs frozen)."""
    settings: dict[str, Any] = {"rlpr": {"filter": 0.0}}.get(case, {})
    run = world.make_run(seed=13, name=case, group=4, **settings)
    judge = "reference" if case == "nover" else "policy"
    prompt, source = ((world.A, world.B), "posterior") if case == "ravr" else ((world.A,), "prior")
    traces = {
        "rlpr": world.responses(2),
        "ravr": world.stopping_traces(2),
        "nover": [
            (2, 2),
            (0, 2, 2),
            (1, 2, 1, 2),
            (1, 1, 2, 0, 2),
            (0, 1, 2, 0),
        ],  # given that it is one of these; no two thoughts alike, as the stated loss does not share places
    }[case]
    rows = [world.rollout(run, ids, source, False) for ids in traces]
    beside = [world.rollout(run, ids, "prior", False, index=2 + i) for i, ids in enumerate([(1, 0, 2), (0, 2)])]
    beside = beside if case == "ravr" else []
    raw = [math.exp(float(world.plain_log_probs(run, prompt, ids).sum().detach())) for ids in traces]
    assert case == "nover" or sum(raw) == pytest.approx(1.0, abs=1e-12)
    every = [
        (members, count * math.prod(raw[i] / sum(raw) for i in members))
        for members, count in groups_of(range(len(rows)), 2)
    ]
    total = torch.zeros_like(world.get_weights(run))
    for members, chance in every:
        rollouts = [with_index(rows[i], k) for k, i in enumerate(members)] + beside
        total += chance * world.production_gradient(run, rollouts)[0]
    read = lambda: [likelihood.read(run, r, judge) for r in [*rows, *beside]]  # noqa: E731
    old = [likelihood.detached(r) for r in read()]
    stated = getattr(likelihood, f"state_{case}")

    def value() -> Tensor:
        new, tail = read(), list(range(len(rows), len(rows) + len(beside)))
        parts = []
        for members, chance in every:
            places = [*members, *tail]
            parts.append(chance * stated([old[i] for i in places], [new[i] for i in places], settings))
        return torch.stack(parts).sum()

    return run, total, value


def with_index(rollout: Rollout, index: int) -> Rollout:
    return replace(rollout, request=replace(rollout.request, index=index))


@pytest.mark.parametrize("case", ["rlpr", "ravr", "nover"])
def test_the_expected_step_is_that_of_the_stated_loss(case: str) -> None:
    world.check(*stated_in_expectation(case))


def test_rlprs_step_is_not_the_gradient_of_its_reward() -> None:
    """Its documented bias: the reward is a constant of each response, and two of them are compared by order alone."""
    run, found, _ = stated_in_expectation("rlpr")
    base = float(world.plain_log_probs(run, (world.A, world.CLOSE), (world.B, world.CLOSE), "reference").exp().mean())
    value = torch.zeros((), dtype=torch.float64)
    for ids in world.responses(2):
        r = likelihood.read(run, world.rollout(run, ids, "prior", False), "policy")
        raw = torch.zeros((), dtype=torch.float64) if r.answer is None else r.answer.exp().mean()
        value = value - r.prior.sum().exp() * (0.9 * (raw - base).clamp_min(0) + 0.1 * r.said)
    climbs = world.gradient_of(run, value)
    assert 0 < float(found @ climbs / found.norm() / climbs.norm()) < 0.98


# The loss that a step reports is the one whose gradient it takes, where nothing in it is a constant on purpose.
CONSTANT_ON_PURPOSE = ("cispo", "rapo, fkl_iw", "rover", "rover, std, b .5, scale 2")


@pytest.mark.parametrize("case", [case for case in FAMILY if case not in CONSTANT_ON_PURPOSE])
def test_the_gradient_is_that_of_the_reported_loss(case: str) -> None:
    name, settings = FAMILY[case]
    run = make_run(name, seed=2, **({"resample": False} if name == "dapo" else {}) | settings)
    torch.manual_seed(1)
    drift = 0.1 * torch.randn_like(world.get_weights(run))
    rollouts = [response(run, ids, r, i) for i, (ids, r) in enumerate([((0, 1), 1.0), ((2,), 0.0), ((1, 0), 0.0)])]
    gradient, _ = world.production_gradient(run, rollouts, drift)
    direction = gradient / gradient.norm() + torch.nn.functional.normalize(torch.randn_like(gradient), dim=0)
    reported = lambda w: sum(world.production_gradient(run, rollouts, drift + w * direction)[1].losses.values())  # noqa: E731
    assert world.slope_at_zero(reported, 4e-3) == pytest.approx(float(gradient @ direction), rel=1e-8)
