"""The verifier-free family through the production path, by enumeration.

* *exact*: the expected gradient over all traces is the gradient of the objective that the method claims;
* *stated*: for groups of traces, with the weights moved, it is that of the documented loss in plain loops;
* *reductions*: CoVRL with one prompt for both roles becomes JEPO and VeriFree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.covrl import ANSWER, CoVRL, CoVRLConfig
from covrl.records import Credit, Problem, Rollout, ScoredGroup, Scores
from covrl.training.run import Run
from exact import world
from exact.world import CLOSE, A, B

Traces = list[tuple[tuple[int, ...], bool]]


def fixed(length: int) -> Traces:
    return [(ids, True) for ids in world.fixed_traces(length)]


def stopping(length: int) -> Traces:
    return [(ids, False) for ids in world.stopping_traces(length)]


@dataclass
class Plain:
    """One trace through the models' own forwards: log π(z), log π_ref(z) (sums), log π(y|x,z) if it has an answer."""

    trace: Tensor
    reference: Tensor
    answer: Tensor | None


def plain(run: Run, ids: tuple[int, ...], appended: bool) -> Plain:
    closed = appended or ids[-1] == CLOSE
    before = (A, *ids, *((CLOSE,) if appended else ()))
    model = "reference" if "reference" in run.models else "policy"
    return Plain(
        world.plain_log_probs(run, (A,), ids).sum(),
        world.plain_log_probs(run, (A,), ids, model).sum().detach(),
        world.plain_log_probs(run, before, (B, CLOSE)).sum() if closed else None,
    )


def expected_gradient(run: Run, traces: Traces, count: int) -> Tensor:
    """Production gradient in expectation over ``count`` independent traces of the prior."""
    chances = [float(plain(run, *trace).trace.detach().exp()) for trace in traces]
    assert sum(chances) == pytest.approx(1.0, abs=1e-12)
    total = torch.zeros_like(world.get_weights(run))
    for picked in product(range(len(traces)), repeat=count):
        rollouts = [world.rollout(run, traces[k][0], "prior", traces[k][1], index=i) for i, k in enumerate(picked)]
        total += math.prod(chances[k] for k in picked) * world.production_gradient(run, rollouts)[0]
    return total


def expected_probability(run: Run, traces: Traces, count: int) -> Tensor:
    """E[ π(y|x,z) ], 0 for a trace that does not close."""
    del count
    found = [plain(run, *trace) for trace in traces]
    return torch.stack([r.trace.exp() * r.answer.exp() for r in found if r.answer is not None]).sum()


def jensen_bound(run: Run, traces: Traces, count: int) -> Tensor:
    """E[ log of the mean of π(y|x,z) over ``count`` traces ]."""
    found = [plain(run, *trace) for trace in traces]
    total = torch.zeros((), dtype=torch.float64)
    for picked in product(found, repeat=count):
        answers = torch.stack([r.answer for r in picked if r.answer is not None])
        chance = torch.stack([r.trace for r in picked]).sum().exp()
        total = total + chance * (torch.logsumexp(answers, 0) - math.log(count))
    return total


def latro_objective(run: Run, traces: Traces, count: int, beta: float, answer_constant: bool) -> Tensor:
    """E[ log π(y|x,z) ] − β KL(π‖π_ref); with ``answer_constant`` the likelihood is a number at each trace."""
    del count
    total = torch.zeros((), dtype=torch.float64)
    for trace in traces:
        r = plain(run, *trace)
        assert r.answer is not None
        answer = r.answer.detach() if answer_constant else r.answer
        total = total + r.trace.exp() * (answer - beta * (r.trace - r.reference))
    return total


def latro(answer_constant: bool) -> Callable[[Run, Traces, int], Tensor]:
    return lambda run, traces, count: latro_objective(run, traces, count, 0.3, answer_constant)


EXACT: dict[str, tuple[str, dict[str, Any], Traces, int, Callable[[Run, Traces, int], Tensor]]] = {
    "verifree, two traces": ("verifree", {}, fixed(2), 2, expected_probability),
    "verifree, three traces": ("verifree", {}, fixed(1), 3, expected_probability),
    "verifree, cut traces": ("verifree", {}, stopping(2), 2, expected_probability),
    "jepo": ("jepo", {}, fixed(2), 2, lambda run, traces, _: jensen_bound(run, traces, 1)),
    "jepo, three traces": ("jepo", {}, fixed(1), 3, lambda run, traces, _: jensen_bound(run, traces, 1)),
    "jepo, multi, two": ("jepo", {"bound": "multi"}, fixed(2), 2, jensen_bound),
    "jepo, multi, three": ("jepo", {"bound": "multi"}, fixed(1), 3, jensen_bound),
    "latro, sft 1": ("latro", {"sft_penalty": 1.0, "beta": 0.3}, fixed(2), 2, latro(answer_constant=False)),
    "latro, released": ("latro", {"beta": 0.3}, fixed(2), 2, latro(answer_constant=True)),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_expected_gradient_is_that_of_the_claimed_objective(case: str) -> None:
    name, settings, traces, count, objective = EXACT[case]
    run = world.make_run(seed=11, name=name, group=count, **settings)
    expected = world.gradient_of(run, -objective(run, traces, count))
    assert world.relative(expected_gradient(run, traces, count), expected) < 1e-9


@pytest.mark.parametrize("case", ["verifree, cut traces", "jepo", "jepo, multi, two", "latro, sft 1"])
def test_the_expected_gradient_agrees_with_finite_differences(case: str) -> None:
    """The enumerated objectives themselves are checked: no autograd on the reference side."""
    name, settings, traces, count, objective = EXACT[case]
    run = world.make_run(seed=12, name=name, group=count, **settings)
    world.check(run, expected_gradient(run, traces, count), lambda: -objective(run, traces, count))


def test_the_released_latro_misses_the_answers_part() -> None:
    run = world.make_run(seed=11, name="latro", beta=0.3)
    whole = world.gradient_of(run, -latro_objective(run, fixed(2), 2, 0.3, answer_constant=False))
    assert world.relative(expected_gradient(run, fixed(2), 2), whole) > 0.05


def test_two_samples_are_a_tighter_bound_than_one() -> None:
    run = world.make_run(seed=11)
    one, two = (jensen_bound(run, fixed(2), n).item() for n in (1, 2))
    assert one < two < math.log(expected_probability(run, fixed(2), 1).item())


# The stated losses, in plain loops: what the docstrings say and nothing else. ``r`` are old numbers, ``n`` new tensors.


@dataclass
class Read:
    """One rollout, read plainly: log-probs of its tokens ``[T]`` and of the reference answer ``[A]``, and its form."""

    prior: Tensor
    posterior: Tensor
    kl: Tensor
    reference: Tensor
    answer: Tensor | None
    direct: Tensor
    source: str
    finish: str
    thought: int
    said: bool


def read(run: Run, rollout: Rollout, judge: str) -> Read:
    """``judge`` is the model that reads the answer and the empty thought."""
    ids, response = rollout.trace_ids, run.algorithm.samples == "response"
    thought = ids[: ids.index(CLOSE) + 1] if response and CLOSE in ids else ids
    closed = thought[-1] == CLOSE
    other = "reference" if "reference" in run.models else "policy"
    rows = [
        torch.log_softmax(run.models["policy"].model(torch.tensor([[*p, *ids]])).logits[0], -1) for p in ((A,), (A, B))
    ]
    p, q = (row[-len(ids) - 1 : -1] for row in rows)
    return Read(
        prior=world.plain_log_probs(run, (A,), ids),
        posterior=world.plain_log_probs(run, (A, B), ids),
        kl=(q.exp() * (q - p)).sum(-1),
        reference=world.plain_log_probs(run, (A,), ids, other).detach(),
        answer=world.plain_log_probs(run, (A, *thought), (B, CLOSE), judge) if closed else None,
        direct=world.plain_log_probs(run, (A, CLOSE), (B, CLOSE), other),
        source=rollout.source,
        finish=rollout.finish,
        thought=len(thought),
        said=ids.count(CLOSE) == 2,
    )


def loo(values: Sequence[float]) -> list[float]:
    return [v - (sum(values) - v) / (len(values) - 1) for v in values]


def deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def clipped(new: Tensor, old: Tensor, value: float, low: float, high: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for n, o in zip(new, old, strict=True):
        rho = (n - o).exp()
        total = total - torch.minimum(rho * value, rho.clamp(1 - low, 1 + high) * value)
    return total


def k3(new: Tensor, reference: Tensor) -> Tensor:
    return ((reference - new).exp() - (reference - new) - 1).sum()


def state_verifree(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    rewards = [0.0 if r.answer is None else math.exp(float(r.answer.sum())) for r in old]
    total = torch.zeros((), dtype=torch.float64)
    for n, reward, a in zip(new, rewards, loo(rewards), strict=True):
        total = total - a * n.prior.sum()
        if n.answer is not None:
            total = total - s.get("nll_weight", 1.0) * reward * n.answer.sum()
    return total / len(old)


def state_jepo(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    found = [float(r.answer.sum()) for r in old if r.answer is not None]
    values = [min(found) - s.get("invalid_penalty", 1.0) if r.answer is None else float(r.answer.sum()) for r in old]
    total, count, multi = torch.zeros((), dtype=torch.float64), len(old), s.get("bound") == "multi"
    for i, n in enumerate(new):
        rest = [v for j, v in enumerate(values) if j != i]
        if multi:
            whole = math.log(sum(map(math.exp, values)) / count)
            a, share = whole - math.log(sum(map(math.exp, rest)) / (count - 1)), None
        else:
            a, share = values[i] - sum(rest) / (count - 1), 1.0
        total = total - a * n.prior.sum() / (1 if multi else count)
        if n.answer is not None:
            share = math.exp(values[i]) / sum(map(math.exp, found)) if share is None else share / count
            total = total - s.get("nll_weight", 1.0) * share * n.answer.sum()
        total = total + s.get("kl_weight", 0.0) * k3(n.prior, n.reference) / count
    return total


def state_latro(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    beta = s.get("beta", 0.05)
    found = [None if r.answer is None else float(r.answer.sum() - beta * (r.prior - r.reference).sum()) for r in old]
    finished = [v for v in found if v is not None]
    stand_in = min(finished) - 1 if s.get("unfinished") == "worst" else 2 * sum(finished) / len(finished)
    rewards = [stand_in if v is None else v for v in found]
    total = torch.zeros((), dtype=torch.float64)
    for n, a in zip(new, loo(rewards), strict=True):
        total = total - a * n.prior.sum()
        if n.answer is not None:
            total = total - s.get("sft_penalty", 0.0) * n.answer.sum()
    return total / len(old)


def state_rationalise(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    even = s.get("weights") == "uniform"
    raw = [0.0 if r.answer is None else 1.0 if even else math.exp(float(r.answer.sum())) for r in old]
    total = torch.zeros((), dtype=torch.float64)
    for n, w in zip(new, raw, strict=True):
        if n.answer is not None:
            total = total - w / sum(raw) * (n.prior.sum() + s.get("nll_weight", 1.0) * n.answer.sum())
    return total


def state_ravr(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    average = s.get("utility") == "geometric"
    utility = [
        0.0 if r.answer is None else math.exp(float(r.answer.mean() if average else r.answer.sum())) for r in old
    ]
    base = [u for u, r in zip(utility, old, strict=True) if r.source == "prior"]
    mine = [i for i, r in enumerate(old) if r.source == "posterior"]
    gains = [utility[i] - sum(base) / len(base) for i in mine]
    rewards = [max(g, 0.0) for g in gains] if s.get("clip_gain", True) else gains
    mean = sum(rewards) / len(rewards)
    below = deviation(rewards) + 1e-6 if s.get("advantage", "std") == "std" else 1.0
    total, tokens = torch.zeros((), dtype=torch.float64), sum(len(old[i].prior) for i in mine)
    for i, reward in zip(mine, rewards, strict=True):
        a = (reward - mean) / below
        weight = 1.0 if s.get("kl_weighting") == "none" else utility[i]
        clip = s.get("clip", 0.2)
        total = total + clipped(new[i].posterior, old[i].posterior, a, clip, clip) / tokens
        total = total + s.get("beta", 1.0) * weight * new[i].kl.sum() / tokens
        answer = new[i].answer
        if answer is not None:
            total = total - s.get("nll_weight", 0.0) * answer.sum() / len(mine)
    return total


def state_rlpr(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    del s
    base = float(old[0].direct.exp().mean())
    raw = [0.0 if r.answer is None else float(r.answer.exp().mean()) for r in old]
    rewards = [0.9 * max(0.0, v - base) + 0.1 * r.said for v, r in zip(raw, old, strict=True)]
    mean, std = sum(rewards) / len(rewards), deviation(rewards)
    parts = [
        clipped(n.prior, r.prior, (v - mean) / (std + 1e-6), 0.2, 0.27)
        for n, r, v in zip(new, old, rewards, strict=True)
    ]
    return torch.stack(parts).sum() / sum(len(r.prior) for r in old)


def state_nover(old: list[Read], new: list[Read], s: dict[str, Any]) -> Tensor:
    formed = [i for i, r in enumerate(old) if r.said]
    norm = {i: max(1.0, 1 + math.log10(old[i].thought)) if s.get("length_norm", True) else 1.0 for i in formed}
    ppl = {i: math.exp(-float(old[i].answer.mean()) / norm[i]) for i in formed}  # ty: ignore
    rewards = [0.0] * len(old)
    for place, i in enumerate(sorted(formed, key=lambda i: ppl[i])):
        longer = [j for j in formed if old[j].thought > old[i].thought and ppl[j] > ppl[i]]
        short = len(longer) / (len(formed) - 1) if len(formed) > 1 else 0.0
        rewards[i] = (len(formed) - place) / len(formed) + short + 1.0
    mean, clip = sum(rewards) / len(rewards), s.get("clip", 0.2)
    total = torch.zeros((), dtype=torch.float64)
    for n, r, reward in zip(new, old, rewards, strict=True):
        if s.get("mask_truncated", True) and r.finish == "length":
            continue
        total = total + clipped(n.prior, r.prior, reward - mean, clip, clip)
        total = total + s.get("beta", 0.1) * k3(n.prior, n.reference)
    return total / sum(len(r.prior) for r in old)


Stated = Callable[[list[Read], list[Read], dict[str, Any]], Tensor]
THOUGHTS = [[(0, 2), (1, 2), (1, 0, 2)], [(0, 2), (0, 1, 1), (2,)], [(1, 1), (1, 1, 2), (2,)]]
RESPONSES = [
    [(0, 2, 1, 2), (2, 1, 2), (1, 1, 2, 0, 2)],
    [(0, 1, 1, 0), (1, 2, 1, 1), (0, 1, 2, 2)],
    [(2, 2), (0, 0, 2, 1, 2), (1, 0, 0, 1)],
]
STATED: dict[str, tuple[str, dict[str, Any], Stated]] = {
    "verifree": ("verifree", {}, state_verifree),
    "verifree, half nll": ("verifree", {"nll_weight": 0.5}, state_verifree),
    "jepo": ("jepo", {}, state_jepo),
    "jepo, kl": ("jepo", {"kl_weight": 0.3, "invalid_penalty": 0.2, "nll_weight": 0.7}, state_jepo),
    "jepo, multi": ("jepo", {"bound": "multi"}, state_jepo),
    "jepo, multi, kl": ("jepo", {"bound": "multi", "kl_weight": 0.3}, state_jepo),
    "latro": ("latro", {}, state_latro),
    "latro, worst": ("latro", {"beta": 0.4, "sft_penalty": 0.5, "unfinished": "worst"}, state_latro),
    "rationalise": ("rationalise", {}, state_rationalise),
    "rationalise, uniform": ("rationalise", {"weights": "uniform", "nll_weight": 0.4}, state_rationalise),
    "ravr": ("ravr", {}, state_ravr),
    "ravr, switches": (
        "ravr",
        {"clip_gain": False, "advantage": "mean", "kl_weighting": "none", "beta": 0.3, "clip": 0.05, "nll_weight": 0.2},
        state_ravr,
    ),
    "ravr, geometric": ("ravr", {"utility": "geometric"}, state_ravr),
    "rlpr": ("rlpr", {"filter": 0.0}, state_rlpr),
    "nover": ("nover", {}, state_nover),
    "nover, switches": (
        "nover",
        {"length_norm": False, "mask_truncated": False, "clip": 0.03, "beta": 0.5},
        state_nover,
    ),
}


@pytest.mark.parametrize("case", STATED)
@pytest.mark.parametrize("moved", [False, True])
def test_the_gradient_of_a_group_is_that_of_the_stated_loss(case: str, moved: bool) -> None:
    name, settings, stated = STATED[case]
    run = world.make_run(seed=13, name=name, group=4, **settings)
    before = world.get_weights(run)
    torch.manual_seed(4)
    drift = 0.15 * torch.randn_like(before) if moved else None
    judge = "reference" if name == "nover" else "policy"
    for traces in RESPONSES if run.algorithm.samples == "response" else THOUGHTS:
        source = getattr(run.algorithm, "source", "prior") if name != "ravr" else "posterior"
        rollouts = [world.rollout(run, ids, source, appended=False, index=i) for i, ids in enumerate(traces)]
        if name == "ravr":
            extra = [(1, 0, 2), (0, 0)]
            rollouts += [world.rollout(run, z, "prior", False, index=len(traces) + i) for i, z in enumerate(extra)]
        production, _ = world.production_gradient(run, rollouts, drift)
        old = [detached(read(run, r, judge)) for r in rollouts]
        if drift is not None:
            world.set_weights(run, before + drift)
        new = [read(run, r, judge) for r in rollouts]
        expected = world.gradient_of(run, stated(old, new, settings))
        world.set_weights(run, before)
        assert float(expected.norm()) > 1e-6
        assert world.relative(production, expected) < 1e-9


def detached(r: Read) -> Read:
    parts = {k: v.detach() for k, v in vars(r).items() if isinstance(v, Tensor)}
    return replace(r, **parts)


def test_rationalisation_is_weighted_maximum_likelihood_of_the_prior_in_expectation_over_the_posterior() -> None:
    run = world.make_run(seed=14, name="rationalise")
    traces = world.stopping_traces(2)
    rows = [world.rollout(run, z, "posterior", False) for z in traces]
    chances = [float(world.plain_log_probs(run, (A, B), z).detach().sum().exp()) for z in traces]
    pairs = [(i, j) for i, j in product(range(len(traces)), repeat=2) if rows[i].valid or rows[j].valid]
    found = torch.zeros_like(world.get_weights(run))
    for i, j in pairs:
        found += chances[i] * chances[j] * world.production_gradient(run, [rows[i], rows[j]])[0]
    old = [detached(read(run, r, "policy")) for r in rows]

    def value() -> Tensor:
        new = [read(run, r, "policy") for r in rows]
        parts = [chances[i] * chances[j] * state_rationalise([old[i], old[j]], [new[i], new[j]], {}) for i, j in pairs]
        return torch.stack(parts).sum()

    world.check(run, found, value)


# Reductions. With an empty hint both prompts are the same, so q = p.

GroupsOfTraces = Sequence[Sequence[tuple[int, ...]]]
NO_HINT = Problem(id="tiny", question="a", answer="b", hint="")
WIDE: dict[str, Any] = {"ratio_cap": 1e9, "clip": 1e9, "nll": "exact", "nll_weight": 0.5}
ALIKE = [
    *[((0, 2), (1, 2)), ((0, 2), (1, 1)), ((0, 1, 2), (1, 1, 2)), ((1, 0), (1, 2))],
    *[((2,), (1, 0, 2)), ((0, 1), (2,)), ((0, 2), (2,), (1, 0, 2)), ((0, 1, 1), (1, 2), (2,))],  # unequal, and three
]
BATCHES = [*[(group,) for group in ALIKE], (ALIKE[0], ALIKE[4]), (ALIKE[5], ALIKE[2]), (ALIKE[6], ALIKE[7])]
SECOND = replace(NO_HINT, id="second", question="b")


def wide(count: int) -> dict[str, Any]:
    """Settings under which one factor, :func:`sums_over_means`, makes groups of ``count`` the other method's."""
    return WIDE | {"nll_weight": (count - 1) / count}


def sums_over_means(batch: GroupsOfTraces) -> float:
    """CoVRL divides by tokens and its baseline holds the own reward: ΣT/ΣG for the one, G/(G−1) for the other.

    One factor for the whole batch, as its groups are of one size.
    """
    return sum(len(ids) for group in batch for ids in group) / sum(len(group) - 1 for group in batch)


def one_prompt(run: Run, batch: GroupsOfTraces, sources: Sequence[str]) -> Tensor:
    """The gradient of one step on a group of a question each."""
    groups = [
        (
            problem,
            [world.rollout(run, z, s, False, problem, i) for i, (z, s) in enumerate(zip(group, sources, strict=True))],
        )
        for problem, group in zip((NO_HINT, SECOND)[: len(batch)], batch, strict=True)
    ]
    found = world.gradient_of_groups(run, groups)
    assert found is not None
    return found


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("batch", BATCHES)
def test_covrl_with_one_prompt_is_jepo(batch: GroupsOfTraces, beta: float) -> None:
    """The KL is 0 with a gradient of 0 at q = p, so β has no part in it; the NLL's weight makes one factor do."""
    count = len(batch[0])
    ours = world.make_run(seed=15, beta=beta, group=count, **wide(count))
    theirs = world.make_run(seed=15, name="jepo", group=count)
    found = one_prompt(ours, batch, ("prior", "posterior", "prior")[:count]) * sums_over_means(batch)
    assert world.relative(found, one_prompt(theirs, batch, ("prior",) * count)) < 1e-9


class AsVeriFree(CoVRL):
    """CoVRL with R = π(y|x,z), 0 where there is no answer, and R as the weight of the answer's NLL."""

    def _rewards(self, group: ScoredGroup) -> list[float]:
        return [math.exp(float(s[ANSWER].sum())) if ANSWER in s else 0.0 for s in group.scores]

    def _credit(self, rollout: Rollout, scores: Scores, reward: float, *rest: Any) -> Credit:
        credit = super()._credit(rollout, scores, reward, *rest)
        weights = {k: v * reward if k == "nll" else v for k, v in credit.weights.items()}
        return replace(credit, weights=weights)


@pytest.mark.parametrize("batch", BATCHES)
def test_covrl_with_one_prompt_and_probability_rewards_is_verifree(batch: GroupsOfTraces) -> None:
    count = len(batch[0])
    ours, theirs = (world.make_run(seed=16, group=count, **name) for name in ({}, {"name": "verifree"}))
    ours.algorithm = AsVeriFree(CoVRLConfig.model_validate(wide(count)), Setup(ours.prompts, count))
    found = one_prompt(ours, batch, ("prior", "posterior", "prior")[:count]) * sums_over_means(batch)
    assert world.relative(found, one_prompt(theirs, batch, ("prior",) * count)) < 1e-9


def test_covrl_with_two_prompts_is_neither() -> None:
    """The identities above are not empty: with the hint shown, the gradients differ."""
    ours, theirs = world.make_run(seed=15, **WIDE), world.make_run(seed=15, name="jepo")
    pair = [world.rollout(ours, (0, 2), "prior", False), world.rollout(ours, (1, 2), "posterior", False)]
    other = [world.rollout(theirs, ids, "prior", False) for ids in ((0, 2), (1, 2))]
    found = world.production_gradient(ours, pair)[0] * 4
    assert world.relative(found, world.production_gradient(theirs, other)[0]) > 1e-2
