"""GRPO-λ, Train Long Think Short, RLSP, ProRL, A*-PO and RECAP: golden values, triggers, and what they refuse.

Numbers marked SPEC were worked out before this code was written; those marked HAND have their arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from algorithms.scored import PROBLEM, PROMPTS, group_of, response, said
from algorithms.test_group_golden import Row, made, method, play

from covrl.algorithms.a_star_po import GOAL, LENGTH, P, optimal_value
from covrl.algorithms.base import LossTokens, Reset
from covrl.algorithms.group import REFERENCE
from covrl.algorithms.grpo_lambda import length_terms
from covrl.algorithms.prorl import token_moments
from covrl.algorithms.recap import objective_weights, trend_and_movement
from covrl.algorithms.rlsp import length_penalty
from covrl.algorithms.train_long_think_short import budget_after, length_reward, scaled
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.records import Group, ScoredGroup


def of_lengths(*rows: tuple[float | None, int]) -> ScoredGroup:
    (group,) = made([Row(r, (0.0,) * tokens) for r, tokens in rows])
    return group


def rewards(algorithm: Any, *groups: ScoredGroup) -> list[list[float | None]]:
    return [[own.reward for own in row] for row in algorithm.credit(list(groups))]


# --- grpo_lambda ---


def test_the_length_reward_is_the_specs_golden_one() -> None:
    """SPEC: right responses of 100, 200 and 300 tokens, α .6."""
    assert [1 - 0.6 * t for t in length_terms([100, 200, 300])] == pytest.approx([0.863738, 0.7, 0.536262], abs=1e-6)
    assert length_terms([50]) == length_terms([50, 50])[:1] == [0.5]
    assert length_terms([]) == []


def test_one_group_of_five_is_rewarded_for_length_and_the_others_are_not() -> None:
    """SPEC: λ .2 of 5 groups is one, the most accurate; ties go by order. Wrong responses of it have 0."""
    halves = [of_lengths((1.0, 2), (0.0, 4)) for _ in range(3)]
    sure = of_lengths((1.0, 1), (1.0, 2), (1.0, 3), (0.0, 1))
    found = rewards(method("grpo_lambda", group=4), *halves[:2], sure, *halves[2:], of_lengths((0.0, 1), (0.0, 2)))
    assert found[2] == pytest.approx([0.863738, 0.7, 0.536262, 0.0], abs=1e-6)
    assert [row for i, row in enumerate(found) if i != 2] == [[1.0, 0.0]] * 3 + [[0.0, 0.0]]
    tied = rewards(method("grpo_lambda", group=4), *halves)
    assert tied == [[0.7, 0.0], [1.0, 0.0], [1.0, 0.0]]


def test_an_unknown_verdict_is_neither_in_the_accuracy_nor_in_the_lengths() -> None:
    plain = rewards(method("grpo_lambda", top_share=1.0), of_lengths((1.0, 10), (1.0, 30), (0.0, 5)))
    more = rewards(method("grpo_lambda", top_share=1.0), of_lengths((1.0, 10), (1.0, 30), (0.0, 5), (None, 900)))
    assert more == [[*plain[0], None]]
    algorithm = method("grpo_lambda", top_share=0.5)
    groups = [of_lengths((1.0, 1), (None, 1), (None, 1)), of_lengths((1.0, 1), (0.0, 1), (1.0, 1))]
    assert algorithm.top_groups(groups) == {0}
    assert algorithm.monitors(groups, algorithm.credit(groups))["grpo_lambda/top_accuracy"] == 1.0


# --- train_long_think_short ---


def test_budgets_are_the_specs_golden_ones() -> None:
    """SPEC: 256 to 87 in three changes, one every 150 steps; .339844 and .857117 a change for one and seven."""
    algorithm = method("train_long_think_short")
    found = []
    for step in (0, 149, 150, 300, 450, 599):
        algorithm.load_state_dict({"done": step})
        found.append(algorithm.budget)
    assert found == [256, 256, 179, 125, 87, 87]
    assert budget_after(1, 256, 87, 1, "exponential") == 87
    assert [budget_after(k, 256, 87, 7, "exponential") for k in (1, 2)] == [round(256 * 0.857117**k) for k in (1, 2)]
    assert [budget_after(k, 256, 87, 3, "linear") for k in range(4)] == [256, 200, 143, 87]


def test_length_rewards_are_the_specs_golden_ones() -> None:
    """SPEC: L = 100, responses of 50, 100, 150 and 250 tokens; the band is flat up to L."""
    assert [length_reward(n, 100, "triangular") for n in (50, 100, 150, 250)] == pytest.approx([0.5, 1, 0.5, 0])
    assert [length_reward(n, 100, "band") for n in (50, 100, 150, 250)] == pytest.approx([1, 1, 0.5, 0])


def tlts(**settings: Any) -> Any:
    return method("train_long_think_short", group=2, start=30, end=30, **settings)


def of_text(text: str, reward: float, finish: str = "closed") -> Any:
    rollout, scores = response(text, None, finish=finish)
    return replace(rollout, reward=reward), scores


def test_the_reward_is_the_specs_golden_one() -> None:
    """SPEC: right at L 1, right at 2L .4, wrong at L .7; one character a token here, and L = 30."""
    exact, long = said("x" * (30 - len(said("")))), said("x" * (60 - len(said(""))))
    assert len(exact) == 30
    rows = [of_text(exact, 1.0), of_text(long, 1.0), of_text(exact, 0.0)]
    (found,) = rewards(tlts(), group_of(*rows))
    assert found == pytest.approx([1.0, 0.4, 0.7])
    (gated,) = rewards(tlts(only_right=True), group_of(*rows))
    assert gated == pytest.approx([1.0, 0.4, 0.1])


def test_the_form_has_two_halves_and_the_thoughts_length_is_its_own() -> None:
    open_, closed, whole = "x" * 15, "x" * 7 + "</think>", said("x" * 7)
    rows = [of_text(open_, 0.0, "length"), of_text(closed, 0.0, "length"), of_text(whole, 0.0)]
    assert [tlts().form(r) for r, _ in rows] == [0.0, 0.5, 1.0]
    algorithm = tlts(length="thought")
    assert [algorithm.length_reward(r) for r, _ in rows] == pytest.approx([0.5, 0.5, 0.5])


def test_epsilon_is_inside_the_root() -> None:
    """SPEC: noise of 1e-3 in one of four has the advantage 1.69; all equal 0."""
    assert scaled([0.001, 0.0, 0.0, 0.0])[0] == pytest.approx(1.69, abs=0.01)
    assert scaled([1.0] * 4) == [0.0] * 4
    assert scaled([3.0]) == [0.0]
    assert scaled([1.0, 1.0, 0.0, 0.0]) == pytest.approx([1.0, 1.0, -1.0, -1.0], abs=1e-6)


def test_the_prompt_states_the_budget_and_the_row_is_what_was_sampled() -> None:
    algorithm = method("train_long_think_short", group=2, changes=1, change_every=1)
    first = algorithm.plan(PROBLEM, [], Draw(0, 0))
    assert PROMPTS.tokenizer.decode(first[0].prompt_ids).count("Use exactly 256 tokens.") == 1
    assert algorithm.plan(PROBLEM, [response("x", None)[0]], Draw(0, 0)) == []
    rollout, _ = response("abc", None)
    rollout = replace(rollout, request=first[0])
    before = [context.render(PROBLEM, rollout) for context in algorithm.contexts]
    algorithm.after_step({})
    assert PROMPTS.tokenizer.decode(algorithm.plan(PROBLEM, [], Draw(0, 1))[0].prompt_ids).count(" 87 tokens.") == 1
    assert [context.render(PROBLEM, rollout) for context in algorithm.contexts] == before
    assert before[0].ids == first[0].prompt_ids + rollout.trace_ids
    assert before[0].prompt == len(first[0].prompt_ids)


# --- rlsp ---


def test_rlsps_reward_is_the_specs_golden_one() -> None:
    """SPEC: 400 characters without an answer −10.5; 8,000 characters and right .5. The bound is ours."""
    free = method("rlsp", group=2, largest_penalty=1e6)
    rows = [of_text("x" * 400, 0.0, "length"), of_text(said("x" * 8000), 1.0)]
    totals = [free.token_rewards(r, {("trace", "value"): torch.zeros(len(r.trace_ids))}) for r, _ in rows]
    assert [float(t.sum()) for t in totals] == pytest.approx([-10.5, 0.5])
    assert all(not bool(t[:-1].any()) for t in totals)
    bounded = method("rlsp", group=2)
    assert [bounded.bonus(r) for r, _ in rows] == pytest.approx([-1.5, -0.5])
    assert length_penalty(0, 1000.0, 1.0) == 1.0
    assert length_penalty(10, 0.0, 1.0) == 0.0


def test_rlsp_says_where_no_length_makes_a_difference() -> None:
    warned = method("rlsp").warnings({"rlsp/bounded_share": 1.0})
    assert warned[-1].startswith("length makes no difference: 100% of the thoughts are shorter than 4000 characters")
    assert not any("length makes" in line for line in method("rlsp").warnings({"rlsp/bounded_share": 0.5}))


# --- prorl ---


def validated(algorithm: Any, scores: list[float | None]) -> list[int]:
    """The numbers of the steps after which it resets; None: a step without a validation."""
    found = []
    for step, score in enumerate(scores, start=1):
        if algorithm.reset_after({} if score is None else {"eval/accuracy": score}):
            found.append(step)
    return found


SCORES = [0.30, 0.34, 0.37, 0.37, 0.36, 0.38, 0.38, 0.38]


def test_the_trigger_is_the_specs_golden_one() -> None:
    """SPEC: patience 2 on these scores resets after the 5th and the 8th."""
    assert validated(method("prorl", patience=2), [*SCORES]) == [5, 8]
    between: list[float | None] = [x for score in SCORES for x in (None, score)]
    assert validated(method("prorl", patience=2), between) == [10, 16]
    assert validated(method("prorl", patience=2, min_gap=6), [*SCORES]) == [8]  # HAND: 5 steps at the first
    assert validated(method("prorl", patience=2, min_delta=0.1), [*SCORES]) == [3, 5, 7]
    assert validated(method("prorl", reset="every", every=3), [None] * 7) == [3, 6]
    assert validated(method("prorl", patience=1), [float("nan")] * 5) == []


def test_the_trigger_goes_on_where_its_memory_was_taken() -> None:
    for cut in range(len(SCORES)):
        first, second = method("prorl", patience=2), method("prorl", patience=2)
        early = validated(first, [*SCORES[:cut]])
        second.load_state_dict(first.state_dict())
        assert early + [cut + n for n in validated(second, [*SCORES[cut:]])] == [5, 8]


def test_what_is_reset() -> None:
    assert method("prorl", patience=1).models[0].follows == "reset"
    both = method("prorl", reset="every", every=1).reset_after({})
    assert both == Reset(("reference",), optimizer=True)
    kept = method("prorl", reset="every", every=1, restart_optimizer=False).reset_after({})
    assert kept == Reset(("reference",), optimizer=False)
    bare = method("prorl", reset="every", every=1, kl="none", kl_weight=0.0).reset_after({})
    assert bare == Reset((), optimizer=True)


def test_the_batchs_normalisation_is_the_specs_golden_one() -> None:
    """SPEC: rewards 1, 0 and 1, 1 of 10, 30, 20 and 20 tokens; a group all right has an advantage too."""
    assert token_moments([(0.5, 10), (-0.5, 30), (0.0, 20), (0.0, 20)]) == pytest.approx((-0.125, math.sqrt(0.109375)))
    algorithm = method("prorl", normalise="batch", kl="none", kl_weight=0.0)
    groups = [of_lengths((1.0, 10), (0.0, 30)), of_lengths((1.0, 20), (1.0, 20))]
    found = [own.advantage for row in algorithm.credit(groups) for own in row]
    assert found == pytest.approx([1.889822, -1.133893, 0.377964, 0.377964], abs=1e-6)


def test_prorls_surrogate_is_the_specs_golden_one() -> None:
    """SPEC: ρ = 1.3, 1.45, .75 under clip .2 and .4: 1.3, 1.4, .75 for A = 1, −1.3, −1.45, −.8 for A = −1."""
    drift = tuple(math.log(rho) for rho in (1.3, 1.45, 0.75))
    algorithm = method("prorl", advantage="mean", kl="none", kl_weight=0.0)
    played = play(algorithm, [Row(1.0, drift), Row(-1.0, drift)])
    expected = -(1.3 + 1.4 + 0.75 - 1.3 - 1.45 - 0.8) / 6
    assert played.losses["policy"] == pytest.approx(expected)


def test_prorl_says_that_no_reset_can_come() -> None:
    algorithm = method("prorl")
    algorithm.load_state_dict({"best": None, "bad": 0, "since": 49})
    assert algorithm.warnings({})[-1].startswith("no reset can come: no step has had algorithm.score = eval/accuracy")
    assert not any("no reset" in line for line in algorithm.warnings({"eval/accuracy": 0.1}))


# --- a_star_po ---


def test_values_are_the_specs_golden_ones() -> None:
    """SPEC: 2 of 8 right .477229, none 0, all 1; β₁ near 0 is the best, large the mean; nothing overflows."""
    two = [1.0, 1.0, *[0.0] * 6]
    assert optimal_value(two, 0.5) == pytest.approx(0.477229, abs=1e-6)
    assert [optimal_value([v] * 8, 0.5) for v in (0.0, 1.0)] == [0.0, 1.0]
    assert optimal_value(two, 1e-3) == pytest.approx(1.0, abs=2e-3)
    assert optimal_value(two, 1e-5) == pytest.approx(1.0, abs=2e-5)
    assert optimal_value(two, 1e3) == pytest.approx(0.25, abs=1e-3)
    assert optimal_value(two, math.inf) == 0.25


def surveyed(reward: list[float | None], **settings: Any) -> Any:
    algorithm = method("a_star_po", group=1, **settings)
    group = of_lengths(*((r, 1) for r in reward))
    algorithm.take_survey([Group(group.problem, group.rollouts)])
    return algorithm


def test_the_squared_residual_is_the_specs_golden_one() -> None:
    """SPEC: Σ log-ratio 12.5, β₂ 1e-3, V* .477229: .260376 for r = 1, .239835 for r = 0, however long the response is.

    SPEC: slopes in a token's log-prob at π_ref: −.001046 and .000954.
    """
    algorithm = surveyed([1.0, 1.0, *[0.0] * 6])
    for r, loss, slope in ((1.0, 0.260376, -0.001046), (0.0, 0.239835, 0.000954)):
        for tokens in (1, 5):
            group = of_lengths((r, tokens))
            ((own,),) = algorithm.credit([group])
            found = {}
            for name, total in (("loss", 12.5), ("slope", 0.0)):
                new = torch.full((tokens,), -1.0 + total / tokens, dtype=torch.float64, requires_grad=True)
                old = {REFERENCE: torch.full((tokens,), -1.0, dtype=torch.float64), **own.constants}
                owner = {"trace": torch.zeros(tokens, dtype=torch.long)}
                per_token = algorithm.loss(LossTokens({P: new}, old, own.weights, owner))["regression"]
                value = (own.weights["regression"] * per_token).sum()
                found[name] = (float(value.detach()), torch.autograd.grad(value, new)[0])
            assert found["loss"][0] == pytest.approx(loss, abs=1e-6)
            assert found["slope"][1].tolist() == pytest.approx([slope] * tokens, abs=1e-6)
            assert set(own.constants) == {GOAL, LENGTH}


def test_unknown_verdicts_are_no_part_of_a_value_and_a_problem_without_one_is_not_trained() -> None:
    assert surveyed([1.0, None, 0.0]).values == surveyed([1.0, 0.0]).values
    nothing = surveyed([None, None])
    ((own,),) = nothing.credit([of_lengths((1.0, 2))])
    assert own.weights == {}
    assert surveyed([1.0, 0.0], estimate="mean").values == {"p": 0.5}
    assert method("a_star_po", estimate="zero").survey_wanted([PROBLEM]) == []


def test_a_problem_that_was_not_surveyed_is_one_line() -> None:
    algorithm = method("a_star_po", group=1)
    assert [p.id for p in algorithm.survey_wanted([PROBLEM])] == ["p"]
    with pytest.raises(UserError, match=r"problem p: has no V\*, which is sampled from the policy before its first"):
        algorithm.credit([of_lengths((1.0, 2))])


def test_the_plan_of_a_survey_is_of_its_samples_and_of_a_step_of_one() -> None:
    algorithm = method("a_star_po", group=1, samples=3)
    assert len(algorithm.plan(PROBLEM, [], Draw(0, 0, "survey"))) == 3
    assert [r.trains for r in algorithm.plan(PROBLEM, [], Draw(0, 0))] == [True]


# --- recap ---

RISING, FLAT, FALLING = ([0.2 + 0.4 * i / 19 for i in range(20)], [0.5] * 20, [0.6 - 0.4 * i / 19 for i in range(20)])


def test_recaps_weights_are_the_specs_golden_ones() -> None:
    """SPEC: c .583333, 1, 1.714286 and i .303488, 0, .303488; the one that falls has the largest weight."""
    found = [trend_and_movement(h, "code") for h in (RISING, FLAT, FALLING)]
    assert [c for c, _ in found] == pytest.approx([0.583333, 1.0, 1.714286], abs=1e-6)
    assert [i for _, i in found] == pytest.approx([0.303488, 0.0, 0.303488], abs=1e-6)
    weights = objective_weights([RISING, FLAT, FALLING], 0.5, 5.0, "code")
    assert weights == pytest.approx([0.959017, 0.968002, 1.072981], abs=1e-6)
    paper = objective_weights([RISING, FLAT, FALLING], 0.5, 5.0, "paper")
    assert paper == pytest.approx([0.90683, 0.956174, 1.136997], abs=1e-6)
    assert sum(weights) == pytest.approx(3.0)


def test_recaps_weights_at_the_edges() -> None:
    assert objective_weights([[], []], 0.5, 5.0, "code") == [1.0, 1.0]
    assert objective_weights([[0.3], [0.9]], 0.5, 5.0, "code") == [1.0, 1.0]  # one value: c = 1, i = 0
    assert trend_and_movement([0.9, 0.2, 0.4], "code") == trend_and_movement([0.2, 0.4], "code")
    assert trend_and_movement([0.0, 0.0], "code") == (1.0, 0.0)
    assert trend_and_movement([0.5, 0.0], "code")[0] == 10.0  # HAND: .5/0, at most 10
    assert objective_weights([[0.1, 0.7, 0.2]], 0.5, 5.0, "code") == [1.0]  # one reward


def named(*rows: dict[str, float]) -> ScoredGroup:
    group = of_lengths(*((sum(row.values()), 2) for row in rows))
    return replace(group, rollouts=tuple(replace(r, rewards=row) for r, row in zip(group.rollouts, rows, strict=True)))


def advantages(algorithm: Any, group: ScoredGroup) -> list[float]:
    return [own.advantage for own in algorithm.credit([group])[0]]


def test_with_one_reward_the_weight_cancels_and_a_step_says_so() -> None:
    """SPEC: 1.3 or .7 times one reward is the same standardised advantage, to 1e-4; of two rewards it is not."""
    one = named({"right": 1.0}, {"right": 0.0}, {"right": 0.0}, {"right": 1.0})
    algorithm, plain = method("recap"), method("grpo")
    algorithm.load_state_dict({"windows": {"right": RISING}})
    assert advantages(algorithm, one) == pytest.approx(advantages(plain, one), abs=2e-4)
    found = algorithm.warnings(algorithm.monitors([one], algorithm.credit([one])))
    assert any(line.startswith("one reward: its weight cancels") for line in found)
    two = named({"right": 1.0, "form": 1.0}, {"right": 0.0, "form": 1.0}, {"right": 0.0, "form": 0.0})
    algorithm.load_state_dict({"windows": {"right": FALLING, "form": RISING}})
    moved = advantages(algorithm, two)
    assert max(abs(a - b) for a, b in zip(moved, advantages(plain, two), strict=True)) > 1e-2
    assert algorithm.warnings(algorithm.monitors([two], algorithm.credit([two]))) == []


def test_recap_remembers_the_means_of_its_window() -> None:
    algorithm = method("recap", window=3)
    for value in (0.1, 0.2, 0.3, 0.4):
        algorithm.after_step({"recap/weight_right": 1.0, "reward/right": value, "reward/prior": 9.0})
    algorithm.after_step({"recap/weight_right": 1.0, "reward/right": float("nan")})
    assert algorithm.state_dict() == {"windows": {"right": [0.2, 0.3, 0.4]}}
    other = method("recap", window=3)
    other.load_state_dict(algorithm.state_dict())
    assert other.weights(["right", "form"]) == algorithm.weights(["right", "form"])


def test_recap_refuses_what_it_cannot_weigh() -> None:
    with pytest.raises(UserError, match=r"reward form: problem p, rollout 0: gave -1; .* it must be 0 or above"):
        method("recap").credit([named({"right": 1.0, "form": -1.0}, {"right": 0.0, "form": 0.0})])
    weighted = named({"right": 1.0, "form": 1.0}, {"right": 0.0, "form": 0.0})
    weighted = replace(weighted, rollouts=tuple(replace(r, reward=0.3) for r in weighted.rollouts))
    with pytest.raises(
        UserError, match=r"rewards right, form: .* make 0.3 of a sum of 2, and recap has weights of its"
    ):
        method("recap").credit([weighted])


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "settings", "said_"),
    [
        ("grpo_lambda", {"resample": True}, "drops the groups that are all right, whose length"),
        ("grpo_lambda", {"overlong_buffer": 8}, "overlong_buffer = 8: GRPO-λ rewards length itself"),
        ("train_long_think_short", {"overlong_buffer": 8}, "length is rewarded already"),
        ("train_long_think_short", {"resample": True}, "where length is what differs"),
        ("train_long_think_short", {"instruction": "be brief"}, r"it has to name \{budget\} once"),
        ("train_long_think_short", {"end": 300}, "end = 300 is above start = 256"),
        ("train_long_think_short", {"posterior_share": 0.5, "ratio": "token"}, "stands in the prior prompt alone"),
        ("train_long_think_short", {"contrast": 0.5}, "stands in the prior prompt alone"),
        ("rlsp", {"overlong_buffer": 8}, "overlong_buffer = 8 takes off for length what RLSP gives for it"),
        ("rlsp", {"exploration": 0, "largest_penalty": 2}, "largest_penalty does nothing with exploration = 0"),
        ("prorl", {"kl": "none", "kl_weight": 0, "restart_optimizer": False}, "a reset would change nothing"),
        ("prorl", {"reset": "every", "patience": 2}, "patience does nothing with reset = 'every'"),
        ("prorl", {"every": 5}, "every does nothing with reset = 'stall'"),
        ("prorl", {"normalise": "batch", "advantage": "mean"}, "advantage: normalise = 'batch'"),
        ("prorl", {"normalise": "batch", "contrast": 0.5}, "normalise = 'batch' compares over the batch"),
        ("a_star_po", {"clip_low": 0.2}, "clip_low makes no sense here: A\\*-PO's squared residual"),
        ("a_star_po", {"ratio": "sequence"}, "ratio makes no sense here: A\\*-PO's squared residual"),
        ("a_star_po", {"kl": "k3", "kl_weight": 0.1}, "kl makes no sense here: A\\*-PO's squared residual"),
        ("a_star_po", {"estimate": "zero", "samples": 4}, "samples does nothing with estimate = 'zero'"),
        ("recap", {"form": "paper", "trend": 0.3}, "trend does nothing with form = 'paper'"),
    ],
)
def test_combinations_that_make_no_sense_here_are_refused(name: str, settings: dict[str, Any], said_: str) -> None:
    with pytest.raises(UserError, match=said_):
        method(name, **settings)
