"""The control's weights."""

from __future__ import annotations

import math

import pytest
from algorithms.scored import PROBLEM, PROMPTS, credits, group_of, method, trace, weights

from covrl.generation.base import Draw


def test_all_traces_come_from_the_posterior() -> None:
    requests = method("rationalise", 4).plan(PROBLEM, [], Draw(0, 0))
    assert [r.source for r in requests] == ["posterior"] * 4
    assert {r.prompt_ids for r in requests} == {PROMPTS.posterior(PROBLEM)}


def test_weights_are_likelihoods_normalised_within_the_group() -> None:
    found = credits("rationalise", trace([0.5, 0.6]), trace([0.1]), trace(None))
    assert weights(found, "imitate") == pytest.approx([0.75, 0.25, None])
    assert weights(found, "nll") == weights(found, "imitate")


def test_uniform_weights_cover_the_valid_traces() -> None:
    found = credits("rationalise", trace([0.5]), trace([0.1]), trace(None), weights="uniform")
    assert weights(found, "imitate") == [0.5, 0.5, None]


def test_a_users_reward_tilts_the_weights() -> None:
    found = credits("rationalise", trace([0.2], reward=math.log(3.0)), trace([0.2]))
    assert weights(found, "imitate") == pytest.approx([0.75, 0.25])


def test_answers_of_any_likelihood_have_weights() -> None:
    """No floor and no underflow: what counts is their proportion."""
    found = credits("rationalise", trace([1e-200, 3e-200]), trace([1e-200, 1e-200]))
    assert weights(found, "imitate") == pytest.approx([0.75, 0.25])


def test_the_effective_number_of_traces() -> None:
    algorithm = method("rationalise")
    groups = [group_of(trace([0.5]), trace([0.5]), trace(None))]
    assert algorithm.monitors(groups, algorithm.credit(groups))["weights/effective_traces"] == pytest.approx(2.0)
