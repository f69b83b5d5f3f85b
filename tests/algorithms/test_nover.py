"""NOVER's rank, length and format rewards."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from algorithms.scored import credits, method, response, said, weights

from covrl.algorithms.nover import log_perplexity, rank_rewards, short_rewards


def test_ranks_run_from_one_down_and_ties_share_their_places() -> None:
    assert rank_rewards([3.0, 1.0, 2.0, 4.0]) == [0.5, 1.0, 0.75, 0.25]
    assert rank_rewards([1.0, 1.0]) == [0.75, 0.75]
    assert rank_rewards([2.0, 1.0, 1.0, 1.0]) == [0.25, 0.75, 0.75, 0.75]
    assert rank_rewards([5.0]) == [1.0]
    assert rank_rewards([]) == []


def test_short_counts_those_that_are_longer_and_worse() -> None:
    assert short_rewards([1.0, 2.0, 3.0], [5, 9, 7]) == [1.0, 0.0, 0.0]
    assert short_rewards([3.0, 2.0, 1.0], [5, 7, 9]) == [0.0, 0.0, 0.0]
    assert short_rewards([1.0, 1.0], [5, 7]) == [0.0, 0.0]
    assert short_rewards([1.0], [5]) == [0.0]


def test_the_perplexity_is_divided_for_the_length_of_the_thought() -> None:
    _, scores = response(said("x"), [math.exp(-1), math.exp(-3)])
    assert log_perplexity(scores, 0) == pytest.approx(2.0)
    assert log_perplexity(scores, 1) == pytest.approx(2.0)
    assert log_perplexity(scores, 100) == pytest.approx(2.0 / 3)


def test_malformed_responses_earn_nothing_and_cut_ones_carry_no_loss() -> None:
    pairs = [
        response(said("long enough"), [0.5]),  # worst of two: ½ + 0 + 1
        response(said("brief"), [0.9]),  # best, shorter and better than the only other: 1 + 1 + 1
        response("x</think> and <answer>7</answer>", [0.99]),  # words between thought and answer
        response("y", None, finish="length"),
    ]
    found = credits("nover", *pairs, length_norm=False)
    assert [c.reward for c in found] == pytest.approx([1.5, 3.0, 0.0, 0.0])
    assert weights(found, "policy")[:3] == pytest.approx([0.375, 1.875, -1.125])
    assert weights(found, "kl") == [1.0, 1.0, 1.0, None]
    kept = credits("nover", *pairs, length_norm=False, mask_truncated=False)
    assert weights(kept, "policy")[3] == pytest.approx(-1.125)


def test_a_users_reward_adds_to_the_rank() -> None:
    rollout, scores = response("y", None, finish="length")
    found = credits("nover", response(said("x"), [0.5]), (replace(rollout, reward=-2.0), scores))
    assert [c.reward for c in found] == pytest.approx([2.0, -2.0])


def test_the_reference_copy_judges_and_follows() -> None:
    algorithm = method("nover", sync_every=7, sync_keep=0.3)
    (spec,) = algorithm.models
    assert (spec.follows, spec.every, spec.keep) == ("average", 7, 0.3)
    assert {c.name: c.model for c in algorithm.contexts} == {
        "prior": "policy",
        "answer": "reference",
        "reference": "reference",
    }
