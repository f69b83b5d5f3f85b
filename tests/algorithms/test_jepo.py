"""JEPO's golden values."""

from __future__ import annotations

import math

import pytest
import torch
from algorithms.scored import credits, group_of, method, trace, weights

from covrl.algorithms.jepo import JEPOConfig, spread_weights
from covrl.objectives import leave_one_out


def test_the_single_sample_bound() -> None:
    found = credits("jepo", trace([0.5]), trace([0.25]), trace(None))
    values = [math.log(0.5), math.log(0.25), math.log(0.25) - 1]
    assert [c.reward for c in found] == pytest.approx(values)
    assert weights(found, "policy") == pytest.approx([v - (sum(values) - v) / 2 for v in values])
    assert weights(found, "nll") == [1.0, 1.0, None]


def test_the_two_sample_bound() -> None:
    found = credits("jepo", trace([0.5]), trace([0.25]), bound="multi")
    assert weights(found, "policy") == pytest.approx([math.log(0.375 / 0.25), math.log(0.375 / 0.5)])
    assert weights(found, "nll") == pytest.approx([2 / 3, 1 / 3])


def test_a_cut_trace_has_no_share_of_the_answers_gradient() -> None:
    found = credits("jepo", trace([0.5]), trace([0.25]), trace(None), bound="multi", invalid_penalty=0.0)
    assert weights(found, "nll")[:2] == pytest.approx([2 / 3, 1 / 3])
    assert weights(found, "policy")[2] == pytest.approx(math.log((1 / 3) / 0.375))


SPREAD = [[0.9, 0.5, 0.6], [0.9, 0.1, 0.5], [0.8, 0.7, 0.1]]


def test_tokens_whose_log_probs_differ_between_traces_weigh_more_in_dros_reward() -> None:
    """The golden values are of w = σ/Σσ; the reward here is in the bound's unit, three tokens times that."""
    logs = torch.tensor(SPREAD, dtype=torch.float64).log()
    deviations = torch.tensor([0.055523, 0.849187, 0.805118])
    assert spread_weights(logs).tolist() == pytest.approx((deviations / deviations.sum()).tolist(), abs=1e-6)
    rewards = [c.reward for c in credits("jepo", *map(trace, SPREAD), token_weights="spread")]
    mean = sum(rewards) / 3
    assert [(r - mean) / 3 for r in rewards] == pytest.approx([0.521864, -0.363315, -0.158549], abs=5e-7)


def test_a_masked_thought_is_a_number_a_question_which_the_baseline_takes_off() -> None:
    plain = torch.tensor([c.advantage for c in credits("jepo", *map(trace, SPREAD), token_weights="spread")])
    weight = spread_weights(torch.tensor(SPREAD).double().log())
    masked = torch.tensor([0.85, 0.2, 0.3]).double().log()
    gains = (3 * weight * (torch.tensor(SPREAD).double().log() - masked)).sum(1)
    assert leave_one_out(gains.tolist()) == pytest.approx(plain.tolist(), abs=1e-6)


def test_equal_spreads_are_the_plain_reward_and_equal_traces_have_no_spread() -> None:
    alike = [trace([0.5, 0.4]), trace([0.25, 0.2])]
    equal, spread = ([c.reward for c in credits("jepo", *alike, token_weights=w)] for w in ("equal", "spread"))
    assert spread == pytest.approx(equal)
    same = [
        c.reward for c in credits("jepo", trace([0.5, 0.4]), trace([0.5, 0.4]), trace(None), token_weights="spread")
    ]
    assert same == pytest.approx([math.log(0.2), math.log(0.2), math.log(0.2) - 1])


def test_weighted_log_probs_make_no_bound_over_the_group() -> None:
    with pytest.raises(ValueError, match="weighted log-probs make no bound"):
        JEPOConfig.model_validate({"bound": "multi", "token_weights": "spread"})


def test_a_users_reward_adds_to_both_bounds() -> None:
    plain, shaped = (credits("jepo", trace([0.5], reward=r), trace([0.25])) for r in (None, 2.0))
    assert weights(shaped, "policy")[0] == pytest.approx(weights(plain, "policy")[0] + 2.0)  # ty: ignore
    plain, shaped = (credits("jepo", trace([0.5], reward=r), trace([0.25]), bound="multi") for r in (None, 2.0))
    assert weights(shaped, "policy")[0] == pytest.approx(weights(plain, "policy")[0] + 1.0)  # ty: ignore


def test_an_answer_at_the_floor_counts_as_the_floor() -> None:
    found = credits("jepo", trace([1e-20]), trace([0.5]))
    assert found[0].reward == -30.0


def test_there_is_a_reference_model_only_with_a_kl() -> None:
    assert method("jepo").models == ()
    assert [m.name for m in method("jepo", kl_weight=0.1).models] == ["reference"]


def test_a_group_without_an_answer_is_not_admitted_and_a_denominator_counts_questions() -> None:
    algorithm = method("jepo", bound="multi")
    good, bad = group_of(trace([0.5]), trace(None)), group_of(trace(None), trace(None))
    assert algorithm.admit([good, bad]).kept == [good]
    assert [s.denominator([good, good]) for s in algorithm.streams] == [2, 2]


def test_answers_at_the_floor_are_named() -> None:
    algorithm = method("jepo")
    groups = [group_of(trace([1e-20]), trace([1e-30]))]
    metrics = algorithm.monitors(groups, algorithm.credit(groups))
    assert metrics["reward/floored_share"] == 1.0
    assert metrics["groups/without_signal_share"] == 1.0
    assert "floored rewards" in algorithm.warnings(metrics)[0]
    assert method("nover").warnings(metrics) == []
