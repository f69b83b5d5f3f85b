"""RAVR's sources, gains and weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
from algorithms.scored import PROBLEM, Pair, credits, group_of, method, trace, weights

from covrl.errors import UserError
from covrl.generation.base import Draw

ROWS: dict[str, Any] = {"posterior": [-0.5, -0.5], "kl": [0.1, 0.3]}


def four(**first: Any) -> list[Pair]:
    """Utilities .6 and .2 of posterior traces, .3 and .1 of baseline traces: b = .2, gains .4 and 0."""
    shown = [trace([0.6], source="posterior", **ROWS, **first), trace([0.2], source="posterior", **ROWS)]
    return shown + [trace([p], trains=False) for p in (0.3, 0.1)]


@pytest.mark.parametrize(
    ("group", "share", "prior"), [(8, 0.5, 4), (8, 0.25, 2), (8, 0.01, 1), (8, 0.99, 6), (3, 0.5, 1)]
)
def test_baseline_traces_come_from_the_prior_and_do_not_train(group: int, share: float, prior: int) -> None:
    requests = method("ravr", group, baseline_share=share).plan(PROBLEM, [], Draw(0, 0))
    assert [r.index for r in requests] == list(range(group))
    assert sum(r.source == "prior" for r in requests) == prior
    assert all(r.trains == (r.source == "posterior") for r in requests)


def test_the_gain_over_the_baseline_is_standardised_and_the_kl_weighted_by_utility() -> None:
    found = credits("ravr", *four())
    assert [c.reward for c in found] == pytest.approx([0.6, 0.2, 0.3, 0.1])
    assert weights(found, "policy") == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), None, None], abs=1e-5)
    assert weights(found, "kl") == pytest.approx([0.6, 0.2, None, None])


def test_a_gain_below_zero_is_clipped_only_if_asked_for() -> None:
    worse = [trace([0.1], source="posterior", **ROWS), *four()]
    clipped = credits("ravr", *worse, advantage="mean")
    assert weights(clipped, "policy")[:3] == pytest.approx([-0.4 / 3, 0.8 / 3, -0.4 / 3])
    whole = credits("ravr", *worse, advantage="mean", clip_gain=False)
    assert weights(whole, "policy")[:3] == pytest.approx([-0.2, 0.3, -0.1])


def test_without_the_clip_the_baseline_has_no_part_in_the_advantage() -> None:
    other = [*four()[:2], trace([0.9], trains=False)]
    settings = {"clip_gain": False, "kl_weighting": "none"}
    assert weights(credits("ravr", *four(), **settings), "policy")[:2] == pytest.approx(
        weights(credits("ravr", *other, **settings), "policy")[:2]
    )


def test_the_geometric_utility_does_not_depend_on_the_answers_length() -> None:
    pairs = [trace([0.5, 0.5], source="posterior", **ROWS), *four()[1:]]
    assert credits("ravr", *pairs, utility="geometric")[0].reward == pytest.approx(0.5)


def test_a_users_reward_adds_to_the_gain() -> None:
    found = credits("ravr", *four(reward=1.0), advantage="mean")
    assert weights(found, "policy")[:2] == pytest.approx([0.7, -0.7])


def test_metrics_name_the_gain_and_the_kl() -> None:
    algorithm = method("ravr")
    groups = [group_of(*four())]
    metrics = algorithm.monitors(groups, algorithm.credit(groups))
    assert metrics["gain/mean"] == pytest.approx(0.2)
    assert metrics["gain/zero_share"] == pytest.approx(0.5)
    assert metrics["kl/nats_per_trace"] == pytest.approx(0.4)


def test_a_group_needs_a_posterior_trace_with_an_answer() -> None:
    cut = [trace(None, source="posterior", **ROWS), trace(None, source="posterior", **ROWS), trace([0.5], trains=False)]
    good = group_of(*four())
    assert method("ravr").admit([group_of(*cut), good]).kept == [good]


def test_two_rollouts_are_too_few() -> None:
    with pytest.raises(UserError, match="rollouts_per_problem = 2: ravr needs at least 3"):
        method("ravr", 2)
