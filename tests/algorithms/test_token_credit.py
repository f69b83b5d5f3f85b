"""TEMPO, THR, NTHR, TW-GRPO, STEER, DHPO and C3PO: golden values, ranges, and what they refuse.

Numbers marked SPEC were worked out before this code was written; those marked HAND have their arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from algorithms.test_group_golden import LONG, Row, made, method, play
from torch import Tensor

from covrl.algorithms.c3po import C3PO
from covrl.algorithms.group import ENTROPY, P
from covrl.algorithms.steer import STEER
from covrl.algorithms.tempo import differences, shared_tokens
from covrl.algorithms.thr import INFLUENCE, NTHR, THR
from covrl.algorithms.tw_grpo import DIVERGENCE, divergences, position_weights
from covrl.errors import UserError
from covrl.models.projection import Projection
from covrl.objectives.influence import influence, residuals, step_on_output
from covrl.records import Output, Rollout, ScoredGroup, Scores
from covrl.scoring.groups import GroupStates

Ids = tuple[int, ...]


def spelt(*rows: tuple[Ids, float | None]) -> ScoredGroup:
    """A group of responses with these ids and rewards (None: unknown), all log-probs −1."""
    (group,) = made([Row(r, (0.0,) * len(ids)) for ids, r in rows])
    rollouts = tuple(replace(x, trace_ids=ids) for x, (ids, _) in zip(group.rollouts, rows, strict=True))
    return replace(group, rollouts=rollouts)


def policy_weights(algorithm: Any, *groups: ScoredGroup) -> list[list[float]]:
    return [own.weights["policy"].tolist() for row in algorithm.credit(list(groups)) for own in row]


# --- tempo ---

TREE = [((1, 2, 3, 9), 1.0), ((1, 2, 4, 9), 0.0), ((1, 5, 6, 9), 0.0), ((1, 5, 6, 8), 0.0)]


def test_tempo_is_the_specs_golden_tree() -> None:
    """SPEC: with the floor of 1e-6 the first is 1.499997, 1.999996, 2.499995, 1.499997."""
    found = policy_weights(method("tempo", group=4), spelt(*TREE))
    assert found[0] == pytest.approx([1.499997, 1.999996, 2.499995, 1.499997], abs=1e-6)
    assert found[1] == pytest.approx([-0.5, 0.0, -1.5, -0.5], abs=4e-6)
    assert found[2] == found[3] == pytest.approx([-0.5, -1.0, -0.5, -0.5], abs=4e-6)


def test_tempo_with_a_response_that_ends_early() -> None:
    """SPEC: ids 1-2-9 right, 1-2-3-9 wrong and right: the two equal ones never part."""
    found = policy_weights(method("tempo", group=3), spelt(((1, 2, 9), 1.0), ((1, 2, 3, 9), 0.0), ((1, 2, 3, 9), 1.0)))
    assert found[0] == pytest.approx([0.577349, 0.577349, 1.154699], abs=1e-6)
    assert found[1] == pytest.approx([-1.154699, -1.154699, -1.443373, -1.154699], abs=1e-6)
    assert found[2] == pytest.approx([0.577349, 0.577349, 0.288675, 0.577349], abs=1e-6)


def test_tempos_second_part_sums_to_the_centred_reward() -> None:
    group = spelt(*TREE)
    moves = differences(group.rollouts, method("tempo", group=4).mark(group))
    assert [float(move.sum()) for move in moves] == pytest.approx([0.75, -0.25, -0.25, -0.25])
    found = policy_weights(method("tempo", group=4, advantage="mean"), group)
    assert [sum(row) for row in found] == pytest.approx([5 * 0.75, *[5 * -0.25] * 3])  # four tokens, and once more


def test_where_all_part_at_the_first_token_that_token_counts_twice() -> None:
    rows = [((1, 9), 1.0), ((2, 9), 0.0), ((3, 9), 0.0), ((4, 9), 1.0)]
    found = policy_weights(method("tempo", group=4, advantage="mean"), spelt(*rows))
    assert found == [pytest.approx(own) for own in ([1.0, 0.5], [-1.0, -0.5], [-1.0, -0.5], [1.0, 0.5])]


def test_an_unknown_verdict_is_no_part_of_tempos_tree_and_one_response_has_no_advantage() -> None:
    known = policy_weights(method("tempo", group=4), spelt(*TREE))
    more = policy_weights(method("tempo", group=5), spelt(*TREE, ((1, 2, 3, 9), None)))
    assert more == [*known, [0.0] * 4]
    assert policy_weights(method("tempo"), spelt(((1, 2), 1.0))) == [[0.0, 0.0]]


def test_branches_of_one_response_share_its_prefix_in_tempos_tree() -> None:
    whole, short = spelt(((1, 2, 9), 1.0), ((1, 3, 9), 0.0)), spelt(((1, 2, 9), 1.0), ((3, 9), 0.0))
    root, branch = short.rollouts
    branched = replace(short, rollouts=(root, replace(branch, request=replace(branch.request, prefix_ids=(1,)))))
    expected = policy_weights(method("tempo"), whole)
    assert policy_weights(method("tempo"), branched) == [expected[0], pytest.approx(expected[1][1:])]


def test_tempo_counts_the_tokens_that_responses_share() -> None:
    assert sorted(shared_tokens(spelt(*TREE).rollouts)) == [2, 2, 3, 3]
    assert shared_tokens(spelt(((1, 2), 1.0)).rollouts) == [0]


# --- thr and nthr ---


def test_the_matrix_form_of_influence_is_the_double_loop() -> None:
    """SPEC B7: over right responses 0 and 1 of three, with and without 1/T."""
    generator = torch.Generator().manual_seed(0)
    logs = [torch.randn(t, 6, generator=generator, dtype=torch.float64).log_softmax(-1) for t in (4, 2, 3)]
    hidden = [torch.randn(t, 5, generator=generator, dtype=torch.float64) for t in (4, 2, 3)]
    ids = [torch.tensor(row) for row in ([0, 3, 3, 5], [1, 0], [5, 4, 1])]
    known = torch.cat(ids).unique()
    g = [residuals(lp, y, known) for lp, y in zip(logs, ids, strict=True)]
    full = [torch.nn.functional.one_hot(y, 6)[:, known] - lp.exp()[:, known] for lp, y in zip(logs, ids, strict=True)]
    assert all(torch.allclose(a, b) for a, b in zip(g, full, strict=True))
    for factor in ((1 / 4, 1 / 2), (1.0, 1.0)):
        step = sum((step_on_output(g[i], hidden[i], factor[i]) for i in (0, 1)), torch.zeros(()))
        for j in range(3):
            loop = [
                sum(
                    factor[i] * float(full[i][k] @ full[j][t]) * float(hidden[i][k] @ hidden[j][t])
                    for i in (0, 1)
                    for k in range(len(ids[i]))
                )
                for t in range(len(ids[j]))
            ]
            assert influence(g[j], hidden[j], step).tolist() == pytest.approx(loop, abs=1e-12)


def influenced(*rows: tuple[float | None, tuple[float, ...]]) -> ScoredGroup:
    """A group of rewards and influences of each token."""
    (group,) = made([Row(r, (0.0,) * len(s)) for r, s in rows])
    scores = [
        Scores({**own.values, INFLUENCE: torch.tensor(s)}) for own, (_, s) in zip(group.scores, rows, strict=True)
    ]
    return replace(group, scores=tuple(scores))


MIXED = influenced((1.0, (0.4, 0.2)), (1.0, (0.6, -0.8, 0.5)), (0.0, (0.09, 0.3)), (0.0, (-0.2,)))
"""HAND: means of the right ones' scores are .3 and .1, so τ = .1."""


@pytest.mark.parametrize("p", [0.0, 0.1, -0.1])
def test_thr_keeps_tokens_of_influence_and_weighs_them_by_its_sign(p: float) -> None:
    found = policy_weights(method("thr", group=4, p=p, advantage="mean"), MIXED)
    up, down = 0.5 * (1 + p), 0.5 * (1 - p)
    assert found == [
        pytest.approx([up, up]),
        pytest.approx([up, down, up]),
        pytest.approx([0.0, -down]),  # raises the right ones: of negative THR in a wrong response
        pytest.approx([-up]),
    ]


def test_thr_without_mask_and_sign_is_grpo() -> None:
    expected = policy_weights(method("grpo", group=4, aggregation="token_mean"), MIXED)
    assert policy_weights(method("thr", group=4, p=0.0, mask=False), MIXED) == expected


def test_nthr_damps_tokens_of_wrong_responses_that_right_ones_need() -> None:
    """SPEC: η at accuracies .25, .5 and .875 is .5, 0, .75. HAND: τ = .1 again, of one right response."""
    made_of: NTHR = method("nthr", group=4, advantage="mean")
    assert policy_weights(made_of, MIXED)[2] == pytest.approx([-0.5, 0.0])  # half are right: η = 0
    quarter = influenced((1.0, (0.6, -0.4)), (0.0, (0.09, 0.3)), (0.0, (-0.2,)), (0.0, (0.2,)))
    found = policy_weights(made_of, quarter)
    assert found == [[0.75, 0.75], pytest.approx([-0.25, -0.125]), [-0.25], pytest.approx([-0.125])]
    score = torch.tensor([1.0])
    assert [float(made_of.factor(score, False, 0.0, a)) for a in (0.25, 0.5, 0.875)] == [0.5, 0.0, 0.75]


def test_nthr_with_a_threshold_that_nothing_reaches_is_grpo() -> None:
    expected = policy_weights(method("grpo", group=4, aggregation="token_mean"), MIXED)
    assert policy_weights(method("nthr", group=4, beta=100.0), MIXED) == expected


@pytest.mark.parametrize("name", ["thr", "nthr"])
def test_groups_without_both_outcomes_need_no_scores_of_influence(name: str) -> None:
    made_of: THR = method(name, group=3)
    for rows in ([1.0, 1.0], [0.0, None], [None, None]):
        (group,) = made([Row(r, (0.0, 0.0)) for r in rows])
        assert policy_weights(made_of, group) == [[0.0, 0.0]] * 2


# --- tw_grpo ---


def states_of(*distributions: tuple[tuple[float, ...], ...], at_once: int = 99) -> GroupStates:
    """Responses with these distributions at their positions; hidden states are log-probs, and there is no layer."""
    logs = tuple(torch.tensor(own, dtype=torch.float64).log() for own in distributions)
    ids = tuple(torch.zeros(len(own), dtype=torch.long) for own in distributions)
    (group,) = made([Row(1.0, (0.0,) * len(own)) for own in distributions])
    return GroupStates(group.rollouts, logs, ids, Projection(None), at_once)


def test_tw_grpos_divergence_is_the_golden_one() -> None:
    """SPEC: (.7,.2,.1) against (.1,.2,.7) is 1.023716, equal distributions 0. The uniform stands in at the end."""
    here, there, flat = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7), (1 / 3,) * 3
    (long, other) = divergences(states_of((here, here), (there, here)))
    assert long.tolist() == other.tolist() == pytest.approx([1.023716, 0.0], abs=1e-6)
    ended = divergences(states_of((here, here), (here,), at_once=1))
    whole = divergences(states_of((here, here), (here, flat)))
    assert [own.tolist() for own in ended] == [pytest.approx(whole[0].tolist()), pytest.approx([0.0])]


def test_tw_grpos_weights_go_from_one_to_alpha() -> None:
    """HAND: D of 1, 3, 2 on a line from 1 to 1.7; a group whose positions are alike has no weights."""
    parts = [torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.0])]
    assert [w.tolist() for w in position_weights(parts, 1.7)] == [pytest.approx([1.0, 1.7, 1.35]), [1.0]]
    assert position_weights([torch.ones(2)], 1.7)[0].tolist() == [1.0, 1.0]
    assert position_weights([], 1.7) == []
    (group,) = made([Row(1.0, (0.0,) * 3), Row(0.0, (0.0,))])
    scores = [Scores({**s.values, DIVERGENCE: d}) for s, d in zip(group.scores, parts, strict=True)]
    found = policy_weights(method("tw_grpo", advantage="mean"), replace(group, scores=tuple(scores)))
    assert found == [pytest.approx([0.5, 0.85, 0.675]), pytest.approx([-0.5])]


# --- steer ---

STEER_ROW = ((0.9, 0.4), (0.5, 1.0), (0.1, 2.0), (0.02, 3.0))
"""SPEC: probabilities and entropies of four tokens."""


def steer_values() -> dict[Output, Tensor]:
    x, entropy = (torch.tensor(part, dtype=torch.float64) for part in zip(*STEER_ROW, strict=True))
    return {P: x.log(), ENTROPY: entropy}


def test_steers_weights_are_the_golden_ones() -> None:
    """SPEC: Ω of A = 1 on policy; both forms of the weight."""
    damp: STEER = method("steer")
    omega = damp.change(steer_values())
    assert omega.tolist() == pytest.approx([0.029464, 0.153426, 0.272327, 0.893783], abs=1e-6)
    linear: STEER = method("steer", weights="linear")
    assert linear.weight_of(omega, omega.min(), omega.max()).tolist() == pytest.approx(
        [1.2, 1.142631, 1.087605, 0.8], abs=1e-6
    )
    assert damp.weight_of(omega, omega.min(), omega.max()).tolist() == pytest.approx(
        [0.992671, 0.96242, 0.93427, 0.8], abs=1e-6
    )
    assert linear.weight_of(omega[:1], omega[0], omega[0]).tolist() == [1.0]  # the middle, where all are equal


def test_the_exact_metric_is_the_entropys_first_order_change() -> None:
    """−d H/dz along onehot(y) − π, by autograd, for every token of a distribution."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    logs = logits.log_softmax(-1)
    entropy = -(logs.exp() * logs).sum()
    (slope,) = torch.autograd.grad(entropy, logits)
    made_of: STEER = method("steer", metric="exact")
    (reading,) = made_of.training
    for y in range(4):
        found = reading.head([logits.detach()[None]], torch.tensor([y]))
        values = {Output("trace", name): value for name, value in zip(reading.outputs, found, strict=True)}
        push = torch.nn.functional.one_hot(torch.tensor(y), 4) - logs.detach().exp()
        assert float(made_of.change(values)) == pytest.approx(abs(float(slope @ push)), abs=1e-12)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize(("settings", "low", "high"), [({}, 0.8, 1.0), ({"weights": "linear"}, 0.8, 1.2)])
def test_steers_weights_stay_in_their_range_over_the_whole_batch(
    aggregation: str, settings: dict[str, Any], low: float, high: float
) -> None:
    """Against GRPO's slopes on the first update: the largest Ω of both groups, and no other, has the least weight."""
    rows = [
        [steer_row(1.0, 0.0), steer_row(0.0, 0.2)],
        [steer_row(1.0, 0.1), steer_row(0.0, 0.0), steer_row(1.0, 0.4)],
    ]
    plain = {"clip_high": 0.28, "dual_clip": 10.0, "aggregation": aggregation}
    steered = play(method("steer", aggregation=aggregation, **settings), *rows)
    grpo = play(method("grpo", **plain), *rows)
    shares = [
        a / b for mine, other in zip(steered.slopes, grpo.slopes, strict=True) for a, b in zip(mine, other, strict=True)
    ]
    assert min(shares) == pytest.approx(low)
    assert max(shares) <= high + 1e-12
    assert sum(share == pytest.approx(low) for share in shares) == 1
    idle = play(method("steer", aggregation=aggregation, least_weight=1.0), *rows)
    assert [a == pytest.approx(b) for a, b in zip(idle.slopes, grpo.slopes, strict=True)] == [True] * 5


def steer_row(reward: float, shift: float) -> Row:
    """Four tokens of log-prob −1 and different entropies."""
    entropies = tuple(h + shift for _, h in STEER_ROW)
    return Row(reward, (0.0,) * 4, {"entropy": entropies}, {"entropy": entropies})


def test_an_omega_beyond_the_batchs_range_is_held_in_it() -> None:
    for settings, low, high in (({}, 0.8, 1.0), ({"weights": "linear"}, 0.8, 1.2)):
        made_of: STEER = method("steer", **settings)
        held = made_of.weight_of(torch.tensor([0.0, 9.0]), torch.tensor(0.1), torch.tensor(0.5))
        assert held.tolist() == pytest.approx([high, low])


# --- dhpo ---


def dhpo_ratios(entropies: tuple[float, ...] | None = None, drift: tuple[float, ...] = LONG, **settings: Any) -> Any:
    """What multiplies A at each token of a right and of a wrong response that moved by ``drift``."""
    found = []
    for right in (True, False):
        given = {"entropy": entropies or (0.0,) * len(drift)}
        rows = [
            Row(float(right), drift, given, given),
            Row(float(not right), (0.0,), {"entropy": (0.0,)}, {"entropy": (0.0,)}),
        ]
        algorithm = method("dhpo", advantage="mean", aggregation="token_mean", **settings)
        seen: list[Tensor] = []
        own = algorithm._surrogate
        algorithm._surrogate = lambda tokens, own=own, seen=seen: seen.append(own(tokens)) or seen[-1]
        play(algorithm, rows)
        found.append(seen[0][: len(drift)].tolist())
    return found


def test_dhpos_ratios_are_the_golden_ones() -> None:
    """SPEC B6: log-ratios .1, −.2, .3, 0 at w = ½, and gated by entropies .2, 1.4, .8, .2 (w 0, 1, ½, 0)."""
    right, wrong = dhpo_ratios()
    assert right == pytest.approx([1.052785, 0.909565, 1.1402, 1.0002], abs=1e-6)
    assert wrong == pytest.approx([1.078221, 0.935001, 1.200565, 1.025636], abs=1e-6)
    gated, _ = dhpo_ratios((0.2, 1.4, 0.8, 0.2), gate="high_entropy")
    assert gated == pytest.approx([1.0004, 0.818731, 1.1402, 1.0004], abs=1e-6)
    turned, _ = dhpo_ratios((0.2, 1.4, 0.8, 0.2), gate="low_entropy")
    assert turned == pytest.approx([1.105171, 1.0004, 1.1402, 1.0], abs=1e-6)


def test_dhpos_two_readings_differ_where_the_branches_leave_on_opposite_sides() -> None:
    """SPEC: token ratio .5 with s = 1.027: .763537 against .7502; at the golden log-ratios they are the same."""
    apart = (math.log(0.5), 0.3, 0.3, 0.2)
    assert dhpo_ratios(drift=apart)[0][0] == pytest.approx(0.763537, abs=1e-6)
    assert dhpo_ratios(drift=apart, combine="loss")[0][0] == pytest.approx(0.7502, abs=1e-6)
    assert dhpo_ratios()[0] == pytest.approx(dhpo_ratios(combine="loss")[0], abs=1e-12)


# --- c3po ---

LENGTHS = (100, 300, 200, 50)


def kept(cut: str, budget: int) -> list[int]:
    algorithm: C3PO = method("c3po", longest=400, group=2, budget=budget, cut=cut)
    batch = made(*([Row(1.0, (0.0,) * a), Row(0.0, (0.0,) * b)] for a, b in (LENGTHS[:2], LENGTHS[2:])))
    return [int((own.weights["policy"] != 0).sum()) for row in algorithm.credit(batch) for own in row]


def test_c3po_selects_the_golden_tokens() -> None:
    """SPEC A3, by responses and by tokens."""
    assert [kept("response", budget) for budget in (350, 400, 700)] == [[100, 300, 0, 0], [100, 300, 0, 0], [*LENGTHS]]
    assert [kept("token", budget) for budget in (350, 400, 700)] == [[100, 250, 0, 0], [100, 300, 0, 0], [*LENGTHS]]


def test_a_selected_token_weighs_one_over_the_budget_and_statistics_are_of_whole_groups() -> None:
    rows = [Row(1.0, (0.0, 0.0)), Row(0.0, (0.0,) * 3)]
    found = play(method("c3po", budget=2, advantage="mean", cut="token"), rows)
    assert found.slopes == [pytest.approx([-0.25, -0.25]), [0.0] * 3]
    longer = play(method("c3po", budget=50, advantage="mean"), rows)
    assert longer.slopes == [pytest.approx([-0.01] * 2), pytest.approx([0.01] * 3)]


def test_a_budget_of_all_tokens_is_the_token_mean() -> None:
    rows = [[Row(1.0, LONG), Row(0.0, (0.3,))], [Row(0.0, (0.1, -0.2)), Row(1.0, (0.0,) * 3)]]
    plain = play(method("grpo", aggregation="token_mean"), *rows)
    for cut in ("response", "token"):
        algorithm = method("c3po", budget=10, cut=cut)
        algorithm.setup = replace(algorithm.setup, problems_per_step=2)
        found = play(algorithm, *rows)
        assert found.slopes == [pytest.approx(own, abs=1e-15) for own in plain.slopes]


def test_c3po_takes_responses_in_the_order_of_their_requests() -> None:
    algorithm = method("c3po", budget=3)
    (group,) = made([Row(1.0, (0.0,) * 3), Row(0.0, (0.0,))])
    turned = ScoredGroup(group.problem, group.rollouts[::-1], group.scores[::-1])
    ((first, second),) = algorithm.credit([turned])
    assert not first.weights["policy"].any()
    assert bool(second.weights["policy"].all())


def test_tokens_that_others_wrote_take_no_budget() -> None:
    algorithm: C3PO = method("c3po", budget=2, cut="token")
    (group,) = made([Row(1.0, (0.0,) * 4)])
    rollout: Rollout = replace(group.rollouts[0], written=(True, False, True, True))
    assert algorithm.selected(rollout, 0).tolist() == [True, True, True, False]
    assert algorithm.selected(rollout, 2).tolist() == [False] * 4


def test_a_budget_that_is_not_filled_is_told() -> None:
    algorithm = method("c3po", budget=10)
    (group,) = made([Row(1.0, (0.0,) * 3), Row(0.0, (0.0,))])
    metrics = algorithm.monitors([group], algorithm.credit([group]))
    assert metrics["c3po/filled"] == pytest.approx(0.4)
    (warning,) = algorithm.warnings(metrics)
    assert warning.startswith("budget not filled: the step's responses have 40% of the tokens of algorithm.budget = 10")
    assert algorithm.warnings(metrics | {"c3po/filled": 0.95}) == []


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("tempo", {"advantage": "leave_one_out"}, "advantage = 'leave_one_out'"),
        ("tempo", {"posterior_share": 0.5}, "posterior_share: prefixes after two prompts"),
        ("tempo", {"contrast": 0.5}, "TEMPO's differ from token to token already"),
        ("thr", {"posterior_share": 0.5}, "posterior_share: influence is between responses to one prompt"),
        ("nthr", {"contrast": 0.5}, "differ from token to token already"),
        ("thr", {"mask": False, "beta": 2.0}, "beta does nothing with mask = false"),
        ("tw_grpo", {"posterior_share": 0.5}, "posterior_share: positions of responses"),
        ("steer", {"surrogate": "plain"}, "Ω is made of PPO's ratio of each token"),
        ("steer", {"ratio": "sequence"}, "Ω is made of PPO's ratio of each token"),
        ("steer", {"kl": "exact", "kl_weight": 0.1}, "kl = 'exact'"),
        ("steer", {"largest_weight": 1.3}, "largest_weight does nothing with weights = 'damp'"),
        ("dhpo", {"ratio": "sequence"}, "ratio: DHPO mixes both ratios"),
        ("dhpo", {"surrogate": "cispo"}, "surrogate: DHPO mixes both ratios"),
        ("dhpo", {"dual_clip": 3.0}, "dual_clip: DHPO mixes both ratios"),
        ("dhpo", {"posterior_share": 0.5}, "no sequence ratio"),
        ("dhpo", {"gate": "low_entropy", "token_share": 0.3}, "token_share does nothing with gate = 'low_entropy'"),
        ("c3po", {"aggregation": "constant"}, "C3PO's sum is divided by its budget"),
        ("c3po", {"aggregation": "token_mean"}, "C3PO's sum is divided by its budget"),
    ],
)
def test_combinations_without_a_sense_are_refused_in_one_line(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        method(name, **settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_thr_needs_an_output_layer_of_its_own() -> None:
    (reading,) = method("thr").group_readings
    with pytest.raises(UserError, match="the output layer of this model is not read apart from its trunk"):
        reading.read(states_of(((0.5, 0.5),)))
