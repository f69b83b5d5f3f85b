"""VeriFree's golden values."""

from __future__ import annotations

import pytest
from algorithms.scored import credits, group_of, method, trace, weights


def test_rewards_are_probabilities_and_a_cut_trace_earns_nothing() -> None:
    found = credits("verifree", trace([0.5, 1.0]), trace([0.5, 0.5]), trace(None))
    assert [c.reward for c in found] == pytest.approx([0.5, 0.25, 0.0])
    assert weights(found, "policy") == pytest.approx([0.375, 0.0, -0.375])
    assert weights(found, "nll")[:2] == pytest.approx([0.5, 0.25])
    assert "nll" not in found[2].weights


def test_a_users_reward_shapes_the_advantage_and_not_the_answers_weight() -> None:
    found = credits("verifree", trace([0.5], reward=1.0), trace([0.5]), trace(None, reward=-1.0))
    assert [c.reward for c in found] == pytest.approx([1.5, 0.5, -1.0])
    assert weights(found, "policy") == pytest.approx([1.75, 0.25, -2.0])
    assert weights(found, "nll")[:2] == pytest.approx([0.5, 0.5])


def test_the_denominators_count_all_traces() -> None:
    algorithm = method("verifree")
    groups = [group_of(trace([0.5]), trace(None)), group_of(trace(None), trace(None))]
    assert algorithm.admit(groups).kept == groups
    assert [s.denominator(groups) for s in algorithm.streams] == [4, 4]


def test_hopeless_answers_are_named() -> None:
    algorithm = method("verifree")
    groups = [group_of(trace([1e-8]), trace(None))]
    metrics = algorithm.monitors(groups, algorithm.credit(groups))
    assert metrics["reward/zero_share"] == 1.0
    assert "no signal" in algorithm.warnings(metrics)[0]
