"""Golden values of the group family: credit and loss on hand-made scores, through the trainer's own code.

Each number is either the specification's (marked SPEC: a value that was worked out before this code was written) or
worked out by hand (marked HAND, with the arithmetic). All log-probs are −1 at the weights that sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from algorithms.scored import PROMPTS, Pair, group_of
from torch import Tensor

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import LossTokens, Setup
from covrl.algorithms.rover import MEAN, RETURN, P, with_vocabulary_mean
from covrl.config import AlgorithmTable
from covrl.records import Credit, OffendingRollout, Output, Request, Rollout, ScoredGroup, Scores
from covrl.scoring.pack import Tokens, Unit
from covrl.training.losses import Trained, scaled, token_losses

LONGEST = 10
OLD = -1.0
LONG = (0.1, -0.2, 0.3, 0.0)
"""SPEC: the log-ratios of GSPO's golden line; as ratios 1.105171, .818731, 1.349859, 1 and in the mean 1.051271."""
SHORT = (0.3, -0.4)
"""HAND: e^.3 = 1.349859, e^−.4 = .670320, and in the mean e^−.05 = .951229."""


@dataclass
class Row:
    """One response: its reward (None: unknown), how far each token's log-prob moved, and further values ``[T]``.

    ``old`` are scores of before the update and ``new`` what the training forward reads, besides the log-probs.
    """

    reward: float | None
    drift: Sequence[float]
    old: dict[str, Sequence[float]] = field(default_factory=dict)
    new: dict[str, Sequence[float]] = field(default_factory=dict)


@dataclass
class Played:
    credits: list[list[Credit]]
    losses: dict[str, float]
    slopes: list[list[float]]  # ∂ loss / ∂ log π of each token, row by row


def method(name: str, longest: int = LONGEST, group: int = 8, **settings: Any) -> Any:
    table = AlgorithmTable.model_validate({"name": name, **settings})
    return make_algorithm(table, Setup(PROMPTS, group, max_tokens=longest))


def scored(row: Row, index: int = 0) -> Pair:
    ids = (5,) * len(row.drift)
    request = Request("p", index, (1,), "prior")
    rollout = Rollout(request, ids, (OLD,) * len(ids), "closed", "sampled", "x", reward=row.reward)
    values = {"prior": (OLD,) * len(ids), **row.old}
    return rollout, Scores({Output("trace", n): torch.tensor(v, dtype=torch.float64) for n, v in values.items()})


def made(*groups: Sequence[Row]) -> list[ScoredGroup]:
    return [group_of(*(scored(row, i) for i, row in enumerate(rows))) for rows in groups]


def play(algorithm: Any, *groups: Sequence[Row]) -> Played:
    """Credit, then the trainer's sum over all rows with the streams' coefficients and denominators."""
    batch, flat = made(*groups), [row for rows in groups for row in rows]
    credits = algorithm.credit(batch)
    pairs = [
        (g.problem, *one)
        for g, row in zip(batch, credits, strict=True)
        for one in zip(g.rollouts, g.scores, row, strict=True)
    ]
    trained = {i: Trained(Unit(i, {}), OffendingRollout(*pair), pair[-1]) for i, pair in enumerate(pairs)}
    new = [torch.tensor([OLD + d for d in row.drift], dtype=torch.float64, requires_grad=True) for row in flat]
    values = {Output("trace", "prior"): torch.cat(new)}
    for name in {name for row in flat for name in row.new}:
        values[Output("trace", name)] = torch.cat([torch.tensor(row.new[name], dtype=torch.float64) for row in flat])
    lengths = [(i, len(row.drift)) for i, row in enumerate(flat)]
    owner = torch.cat([torch.full((n,), i) for i, n in lengths])
    scale, streams = scaled(algorithm, batch)
    found = token_losses(algorithm, Tokens(values, {"trace": owner}, {"trace": lengths}), trained, streams, ())
    losses = {name: scale[name] * value.sum() for name, value in found.items()}
    slopes = torch.autograd.grad(sum(losses.values(), torch.zeros(())), new)
    return Played(credits, {k: float(v.detach()) for k, v in losses.items()}, [s.tolist() for s in slopes])


def advantages(name: str, rewards: Sequence[float | None], **settings: Any) -> list[float | None]:
    (found,) = method(name, **settings).credit(made([Row(r, (0.0,), {"reference": (OLD,)}) for r in rewards]))
    return [c.advantage for c in found]


SPEC_REWARDS = (1, 0, 0, 1, 0, 0, 0, 0)
ADVANTAGES: dict[str, tuple[str, dict[str, Any], float, float]] = {
    # SPEC 3.1: (1 − ¼)/(√(3/14) + 1e-6); with verl's floor of 1e-6 the last digit is 2, without any it is 5
    "grpo": ("grpo", {}, 1.620182, -0.540061),
    "dapo": ("dapo", {}, 1.620182, -0.540061),
    "gspo": ("gspo", {}, 1.620182, -0.540061),
    "cispo": ("cispo", {}, 1.620182, -0.540061),
    "rapo": ("rapo", {"penalty": "none"}, 1.620182, -0.540061),
    # HAND: .75/(.462910 + 1e-4) and .25/.463010, DASH's floor (spec B.1)
    "dash": ("dash", {}, 1.619835, -0.539945),
    # HAND: 1 − ¼
    "dr_grpo": ("dr_grpo", {}, 0.75, -0.25),
    # HAND: 1 − 1/7 and 0 − 2/7, the mean of the others
    "rloo": ("rloo", {}, 0.857143, -0.285714),
    # HAND: one token each, so the batch is the group; the floor is 1e-8: .75/.462910 = 1.620185
    "reinforce_pp": ("reinforce_pp", {"kl": "none"}, 1.620185, -0.540062),
    # SPEC: W-REINFORCE advs [0.1, -1]; PSR keeps the first at 1, NSR the second
    "w_reinforce": ("w_reinforce", {}, 0.1, -1.0),
    "psr": ("psr", {}, 1.0, 0.0),
    "nsr": ("nsr", {}, 0.0, -1.0),
    # HAND: ROVER's r̃ of the paper, 1 − ¼, and of the authors' maths script
    "rover": ("rover", {}, 0.75, -0.25),
    "rover, std": ("rover", {"advantage": "std"}, 1.620182, -0.540061),
}


@pytest.mark.parametrize("case", ADVANTAGES)
def test_advantages(case: str) -> None:
    name, settings, right, wrong = ADVANTAGES[case]
    found = advantages(name, SPEC_REWARDS, **settings)
    assert found == pytest.approx([right if r else wrong for r in SPEC_REWARDS], abs=6e-7)


# The policy loss of two responses, one right and one wrong, in both orders. ``ratio``: what multiplies −A at each
# token; ``below``: what the long and the short response's sum is divided by.
PPO = {
    ("long", 1): (1.105171, 0.818731, 1.2, 1.0),
    ("long", -1): (1.105171, 0.818731, 1.349859, 1.0),
    ("short", 1): (1.2, 0.670320),
    ("short", -1): (1.349859, 0.8),
}
# SPEC: "dhpo clipped-token" (1.105171, .818731, 1.28, 1) is the ratio of a right response under DAPO's clip
DAPO = PPO | {("long", 1): (1.105171, 0.818731, 1.28, 1.0), ("short", 1): (1.28, 0.670320)}
# SPEC: s = 1.051271, and "dhpo clipped-seq" 1.0004 is it under GSPO's clip; HAND: .951229 and its bound 1 − 3e-4
GSPO = {
    ("long", 1): (1.0004,) * 4,
    ("long", -1): (1.051271,) * 4,
    ("short", 1): (0.951229,) * 2,
    ("short", -1): (0.9997,) * 2,
}
CLIPPED = (0.8, 1.2, 1.28, 1.0004, 0.9997)
# HAND: A of (1, 0) is ½ from the mean, ½/(√½ + 1e-6) = .707106 over the deviation, ½/(√½ + 1e-4) = .707007 in DASH, 1
# against the other one. REINFORCE++ looks at tokens, four of the long and two of the short one: mean ⅔ or ⅓, deviation
# √(12/45) = .516398, so ⅓/.516398 = .645497 for the long response's and ⅔/.516398 = 1.290994 for the short one's.
POLICY: dict[str, tuple[dict[str, Any], tuple[float, float], dict[Any, Any], tuple[float, float]]] = {
    "grpo": ({}, (0.707106, 0.707106), PPO, (2 * 4, 2 * 2)),
    "dr_grpo": ({}, (0.5, 0.5), PPO, (2 * LONGEST, 2 * LONGEST)),
    "dapo": ({}, (0.707106, 0.707106), DAPO, (6, 6)),
    "reinforce_pp": ({"kl": "none"}, (0.645497, 1.290994), PPO, (6, 6)),
    "gspo": ({}, (0.707106, 0.707106), GSPO, (2 * 4, 2 * 2)),
    "rapo": ({"penalty": "none"}, (0.707106, 0.707106), PPO, (6, 6)),
    "dash": ({"kl": "none", "kl_weight": 0.0}, (0.707007, 0.707007), PPO, (2 * LONGEST, 2 * LONGEST)),
}
SIGNED = {"psr": (1.0, 0.0), "nsr": (0.0, 1.0), "w_reinforce": (0.1, 1.0)}  # SPEC: by the verdict alone


def two(long_is_right: bool) -> list[Row]:
    return [
        Row(float(is_long == long_is_right), drift, new={"entropy": (0.0,) * len(drift)})
        for is_long, drift in ((True, LONG), (False, SHORT))
    ]


@pytest.mark.parametrize("long_is_right", [True, False])
@pytest.mark.parametrize("name", [*POLICY, *SIGNED])
def test_the_clipped_loss_and_its_gradient(name: str, long_is_right: bool) -> None:
    """Loss −Σ A·ratio/below; the slope in log π is −A·ratio/below, and 0 where the ratio is a bound of the clip."""
    signs = (1, -1) if long_is_right else (-1, 1)
    if name in SIGNED:
        settings, ratio, below = {}, PPO, (6, 6)
        sizes = tuple(SIGNED[name][0 if sign > 0 else 1] for sign in signs)
    else:
        settings, sizes, ratio, below = POLICY[name]
    found = play(method(name, **settings), two(long_is_right))
    rows = list(zip(("long", "short"), signs, sizes, below, strict=True))
    expected = -sum(sign * size * sum(ratio[row, sign]) / under for row, sign, size, under in rows)
    assert found.losses["policy"] == pytest.approx(expected, abs=2e-6)
    for slopes, (row, sign, size, under) in zip(found.slopes, rows, strict=True):
        expected_slopes = [0.0 if r in CLIPPED else -sign * size * r / under for r in ratio[row, sign]]
        assert slopes == pytest.approx(expected_slopes, abs=2e-6)


@pytest.mark.parametrize("long_is_right", [True, False])
def test_cispo_clips_the_weight_and_keeps_the_gradient(long_is_right: bool) -> None:
    """SPEC: the weights 1.105171, .818731, 1.28, 1; HAND: times log π = −1 + drift, over 6 tokens."""
    weights = {"long": (1.105171, 0.818731, 1.28, 1.0), "short": (1.28, 0.670320)}
    found = play(method("cispo"), two(long_is_right))
    long, short = (0.707106, -0.707106) if long_is_right else (-0.707106, 0.707106)
    at_long = sum(w * (OLD + d) for w, d in zip(weights["long"], LONG, strict=True))
    at_short = sum(w * (OLD + d) for w, d in zip(weights["short"], SHORT, strict=True))
    assert found.losses["policy"] == pytest.approx(-(long * at_long + short * at_short) / 6, abs=2e-6)
    assert found.slopes[0] == pytest.approx([-long * w / 6 for w in weights["long"]], abs=2e-6)
    assert found.slopes[1] == pytest.approx([-short * w / 6 for w in weights["short"]], abs=2e-6)


def test_rloo_is_the_sum_of_log_probs() -> None:
    """HAND: log π sums to −.9−1.2−.7−1 = −3.8 and −.7−1.4 = −2.1; A = ±1, two responses: (3.8 − 2.1)/2."""
    found = play(method("rloo"), two(True))
    assert found.losses["policy"] == pytest.approx(0.85)
    assert found.slopes == [pytest.approx([-0.5] * 4), pytest.approx([0.5] * 2)]


@pytest.mark.parametrize(("name", "kept"), [("psr", 4), ("nsr", 2), ("w_reinforce", 6)])
def test_the_authors_divide_by_the_tokens_of_rows_with_weight(name: str, kept: int) -> None:
    """HAND: the long response is right; sums 4.123902 and 2.149859 of the table, over kept tokens (spec C2)."""
    right, wrong = SIGNED[name]
    found = play(method(name, denominator="kept"), two(True))
    assert found.losses["policy"] == pytest.approx((-right * 4.123902 + wrong * 2.149859) / kept, abs=2e-6)


def test_a_response_that_nears_the_limit_loses_reward_softly() -> None:
    """SPEC: overlong n=2000,2084,2340,2596 [0, 0.0, -0.5, -1.0], with a limit of 2596 and a buffer of 512."""
    rows = [Row(1.0, (0.0,) * n) for n in (2000, 2084, 2340, 2596)]
    (found,) = method("dapo", longest=2596, overlong_buffer=512).credit(made(rows))
    assert [(c.reward or 0.0) - 1.0 for c in found] == pytest.approx([0.0, 0.0, -0.5, -1.0])
    # HAND: mean .625, deviation √(.6875/3) = .478714: (.375, .375, −.125, −.625)/.478715
    assert [c.advantage for c in found] == pytest.approx([0.783347, 0.783347, -0.261116, -1.305578], abs=2e-6)


def test_reinforce_pp_normalises_over_the_batch_and_has_the_kl_in_each_tokens_return() -> None:
    """HAND, β = .1, kl = log π − log π_ref.

    Group 1: r = 1 with kl (.2, .4), returns 1 − .06 = .94 and 1 − .04 = .96; r = 0 with kl (0), return 0.
    Group 2: r = 1 twice, one token each, kl −.1 and 0: returns 1.01 and 1.
    Mean of .94, .96, 0, 1.01, 1 is .782; squares of the distances .024964, .031684, .611524, .051984, .047524, together
    .76768; deviation √(.76768/4) = .438087.
    """
    first = [Row(1.0, (0.0, 0.0), {"reference": (-1.2, -1.4)}), Row(0.0, (0.0,), {"reference": (-1.0,)})]
    second = [Row(1.0, (0.0,), {"reference": (-0.9,)}), Row(1.0, (0.0,), {"reference": (-1.0,)})]
    found = play(method("reinforce_pp", kl_weight=0.1), first, second)
    weights = [c.weights["policy"].tolist() for row in found.credits for c in row]
    assert weights[0] == pytest.approx([0.360658, 0.406311], abs=2e-6)  # .158/.438087, .178/.438087
    assert weights[1] == pytest.approx([-1.785033], abs=2e-6)
    assert [w[0] for w in weights[2:]] == pytest.approx([0.520444, 0.497618], abs=2e-6)  # equal rewards, and a weight
    assert found.losses["policy"] == pytest.approx(0.0, abs=1e-12)  # the mean is taken off, and all ratios are 1


@pytest.mark.parametrize(
    ("form", "values", "slopes"),
    [
        # HAND: e^.1 − .1 − 1 = .005171 and e^−.2 + .2 − 1 = .018731; slope in log π: 1 − e^d
        ("k3", (0.005171, 0.018731), (-0.105171, 0.181269)),
        # HAND: d²/2; slope −d
        ("k2", (0.005, 0.02), (-0.1, 0.2)),
    ],
)
def test_a_kl_as_loss(form: str, values: tuple[float, float], slopes: tuple[float, float]) -> None:
    """DASH's β = .04 over two responses of at most ten tokens; equal rewards, so the KL is all there is."""
    rows = [Row(1.0, (0.0, 0.0), {"reference": (OLD + 0.1, OLD - 0.2)}), Row(1.0, (0.0,), {"reference": (OLD,)})]
    found = play(method("dash", kl=form), rows)
    assert found.losses["policy"] == 0.0
    assert found.losses["kl"] == pytest.approx(0.04 * sum(values) / 20, abs=2e-9)
    assert found.slopes[0] == pytest.approx([0.04 * s / 20 for s in slopes], abs=2e-9)


@pytest.mark.parametrize(("group", "smallest"), [(4, 0.5), (8, 0.353553)])
def test_dash_tau_is_no_knob_with_one_right_response(group: int, smallest: float) -> None:
    """SPEC B.6: the smallest non-zero |A| is 1/√G; a τ below it drops equal groups alone, one above it wrong rows."""
    rewards = [1.0] + [0.0] * (group - 1)
    assert advantages("dash", rewards)[1] == pytest.approx(-smallest, abs=2e-4)
    for tau, kept in ((smallest - 1e-2, group), (smallest + 1e-2, 1)):
        (found,) = method("dash", filter="paper", tau=tau).credit(
            made([Row(r, (0.0,), {"reference": (OLD,)}) for r in rewards])
        )
        assert sum(bool(c.weights["policy"].any()) for c in found) == kept


RAPO_D = (-0.693147, -1.0, 0.0, 2.995732)
RAPO: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # HAND: w = ½, 1/e, 1, and 20 that is capped at 10. f = w·log w − w + 1; slope −w·log w (SPEC A.2: at most 1/e for a
    # token that is pushed down), 0 beyond the cap
    "fkl_f": ((0.153426, 0.264241, 0.0, 14.025851), (0.346574, 0.367879, 0.0, 0.0)),
    # HAND: −w·log π with log π = −1; slope −w
    "fkl_iw": ((0.5, 0.367879, 1.0, 10.0), (-0.5, -0.367879, -1.0, -10.0)),
}


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("penalty", RAPO)
def test_rapos_penalty(penalty: str, right: bool) -> None:
    """A right response is held to the base, a wrong one to the base at φ₀."""
    values, slopes = RAPO[penalty]
    target, other = [OLD + d for d in RAPO_D], [OLD - 0.3] * 4
    names = ("reference", "reference_tempered") if right else ("reference_tempered", "reference")
    row = Row(float(right), (0.0,) * 4, dict(zip(names, (target, other), strict=True)), {"entropy": (0.7,) * 4})
    found = play(method("rapo", penalty=penalty, alpha=0.2, entropy_weight=0.01), [row, row])
    assert found.losses == pytest.approx({"policy": 0.0, "kl": 0.2 * sum(values) / 4, "entropy": -0.007}, abs=1e-6)
    assert found.slopes[0] == pytest.approx([0.2 * s / 8 for s in slopes], abs=1e-6)


def test_rovers_mean_over_the_vocabulary() -> None:
    """SPEC: z = (2, 1, 0, −1), z_old = (1.5, 1, .5, −1): n = −.219187."""
    new, old = (
        with_vocabulary_mean([torch.tensor([z], dtype=torch.float64)], torch.tensor([0]))[1]
        for z in ((2.0, 1.0, 0.0, -1.0), (1.5, 1.0, 0.5, -1.0))
    )
    assert float(new - old) == pytest.approx(-0.219187, abs=5e-7)


def test_rovers_squared_error() -> None:
    """SPEC: Q' = −.219187 at the first token of the long response; HAND: the rest.

    Right, r̃ = ½, Q = (.1, −.2, .3, 0): the distances .1 − .5 + .219187 = −.180813, −.7, −.2, −.5.
    Wrong, r̃ = −½, Q = (.3, −.4): .8, .1. Squares .032693 + .49 + .04 + .25 + .64 + .01 = 1.462693, over 6 tokens.
    The mean at a response's own first token belongs to no action, and the target has no gradient.
    """
    long = Row(1.0, LONG, {"mean_log_prob": (-2.0,) * 4}, {"mean_log_prob": (-1.3, -2.219187, -2.0, -2.0)})
    short = Row(0.0, SHORT, {"mean_log_prob": (-2.0,) * 2}, {"mean_log_prob": (-1.7, -2.0)})
    found = play(method("rover"), [long, short])
    assert found.losses["value"] == pytest.approx(0.243782, abs=1e-6)
    assert found.slopes[0] == pytest.approx([2 * d / 6 for d in (-0.180813, -0.7, -0.2, -0.5)], abs=1e-6)
    assert found.slopes[1] == pytest.approx([2 * d / 6 for d in (0.8, 0.1)], abs=1e-6)


GOOD = ("ACD", "BDC", "CAB", "DBA")


def test_rovers_loss_evaluates_the_uniform_policy_on_the_papers_tree() -> None:
    """SPEC C1: alphabet ABCD, depth 3, four good leaves: Q = 1/16 at the root, 1/4 at depth 2, 1 at depth 3.

    The loss is given a table of values in the place of ρ(log π − log π_old), and the reward at the leaf alone, as the
    theorem has it (the practice spreads r̃ over all tokens). A step along its gradient, divided by twice the visits, is
    a sweep of policy evaluation: three of them reach the values from zero, and there the loss is zero on every path.
    """
    paths = ["".join(p) for p in product("ABCD", repeat=3)]
    edges = {prefix: i for i, prefix in enumerate(sorted({p[:n] for p in paths for n in (1, 2, 3)}))}
    at = torch.tensor([edges[p[:n]] for p in paths for n in (1, 2, 3)])
    below = torch.tensor([[edges[p[: n - 1] + a] for a in "ABCD"] for p in paths for n in (1, 2, 3)])
    returns = torch.tensor([float(n == 3 and p in GOOD) for p in paths for n in (1, 2, 3)], dtype=torch.float64)
    nothing, owner = torch.zeros(len(at), dtype=torch.float64), torch.arange(len(paths)).repeat_interleave(3)
    visits = torch.zeros(len(edges), dtype=torch.float64).index_add(0, at, torch.ones(len(at), dtype=torch.float64))
    table = torch.zeros(len(edges), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        new = {P: table[at], MEAN: table[below].mean(-1)}
        old = {P: nothing, MEAN: nothing, RETURN: returns}
        return method("rover").loss(LossTokens(new, old, {}, {"trace": owner}))["value"]

    for _ in range(3):
        (gradient,) = torch.autograd.grad(loss().sum(), [table])
        table = (table - gradient / (2 * visits)).detach().requires_grad_()
    for prefix, i in edges.items():
        value = {1: 1 / 16, 2: 1 / 4, 3: 1.0}[len(prefix)] if any(p.startswith(prefix) for p in GOOD) else 0.0
        assert float(table[i].detach()) == pytest.approx(value, abs=1e-12), prefix
    assert float(loss().detach().abs().max()) < 1e-24
    greedy = (table[at] == table[below].max(-1).values).view(len(paths), 3).all(-1)
    assert {p for p, best in zip(paths, greedy.tolist(), strict=True) if best} == set(GOOD)  # greedy is optimal here
