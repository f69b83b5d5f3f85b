"""The control's weights."""

from __future__ import annotations

import math
from dataclasses import replace

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


def test_importance_weights_are_those_of_the_exact_posterior() -> None:
    """w ∝ p π / q, with log p = −2 for each trace."""
    shown = [trace([0.5], posterior=[-1.0, -1.0]), trace([0.25], posterior=[-2.0, -1.0])]
    found = credits("rationalise", *shown, trace(None, posterior=[-9.0, -9.0]), weights="importance")
    raw = [0.5 * math.exp(0.0), 0.25 * math.exp(1.0)]
    assert weights(found, "imitate") == pytest.approx([raw[0] / sum(raw), raw[1] / sum(raw), None])


def test_sampled_weights_keep_the_traces_whose_answer_was_right() -> None:
    pairs = [trace([0.5]), trace([0.1]), trace([0.9]), trace(None)]
    verdicts = ["right", "right", "unknown", "wrong"]
    judged = [(replace(r, correct=v), s) for (r, s), v in zip(pairs, verdicts, strict=True)]  # ty: ignore
    found = credits("rationalise", *judged, weights="sampled")
    assert weights(found, "imitate") == [0.5, 0.5, None, None]
    assert [c.reward for c in found] == [1.0, 1.0, None, 0.0]
    algorithm = method("rationalise", weights="sampled")
    none = [(replace(r, correct="wrong"), s) for r, s in pairs]
    assert algorithm.admit([group_of(*judged), group_of(*none)]).kept == [group_of(*judged)]
    assert algorithm.verified
    assert not method("rationalise").verified


def test_a_users_reward_takes_the_place_of_the_verdict() -> None:
    found = credits("rationalise", trace([0.5], reward=1.0), trace([0.1], reward=0.0), weights="sampled")
    assert weights(found, "imitate") == [1.0, None]


def test_answers_of_any_likelihood_have_weights() -> None:
    """No floor and no underflow: what counts is their proportion."""
    found = credits("rationalise", trace([1e-200, 3e-200]), trace([1e-200, 1e-200]))
    assert weights(found, "imitate") == pytest.approx([0.75, 0.25])


def test_the_effective_number_of_traces() -> None:
    algorithm = method("rationalise")
    groups = [group_of(trace([0.5]), trace([0.5]), trace(None))]
    assert algorithm.monitors(groups, algorithm.credit(groups))["weights/effective_traces"] == pytest.approx(2.0)
