"""What OPSD samples, reads and weighs, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algorithms.scored import PROBLEM, credits, group_of, method, trace, weights

from covrl.algorithms.opsd import OPSDConfig, distilled
from covrl.generation.base import Draw


def test_all_traces_come_from_the_prior_and_weigh_the_same() -> None:
    assert [r.source for r in method("opsd", 3).plan(PROBLEM, [], Draw(0, 0))] == ["prior"] * 3
    found = credits("opsd", trace([0.5]), trace(None))
    assert weights(found, "distil") == [1.0, 1.0]
    assert weights(found, "policy") == [0.0, 0.0]
    assert [c.reward for c in found] == [pytest.approx(-0.693147, abs=1e-6), None]


def test_a_sampled_token_is_credited_with_its_log_ratio() -> None:
    (found,) = credits("opsd", trace([0.5], posterior=[-0.5, -2.0]), estimator="sampled")
    assert found.weights["policy"].tolist() == [0.5, -1.0]
    assert "distil" not in found.weights


def test_a_users_reward_adds_a_policy_gradient() -> None:
    found = credits("opsd", trace([0.5], reward=2.0), trace([0.5], reward=0.0))
    assert weights(found, "policy") == [1.0, -1.0]
    assert [c.advantage for c in found] == [1.0, -1.0]


def test_the_answers_nll_is_a_mean_over_its_tokens() -> None:
    found = credits("opsd", trace([0.5, 0.5]), trace(None), nll_weight=0.3)
    assert weights(found, "nll") == [0.5, None]
    assert method("opsd", nll_weight=0.3).streams[-1].coefficient == 0.3
    assert [s.name for s in method("opsd").streams] == ["distil", "policy"]


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({}, ("reference", "frozen", 0.0)),
        ({"teacher": "average", "teacher_keep": 0.9}, ("reference", "average", 0.9)),
        ({"teacher": "live"}, None),
    ],
)
def test_the_teacher_is_the_base_a_moving_average_or_the_policy(settings: dict[str, Any], model: Any) -> None:
    made = method("opsd", **settings)
    assert [(m.name, m.follows, m.keep) for m in made.models] == ([model] if model else [])
    assert [c.model for c in made.contexts] == ["policy", "reference" if model else "policy"]


@pytest.mark.parametrize(
    "settings",
    [
        {"teacher_keep": 0.9},
        {"estimator": "sampled", "clip": "entry"},
        {"estimator": "sampled", "divergence": "jsd"},
        {"clip": "none", "clip_limit": 0.1},
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does nothing with"):
        OPSDConfig.model_validate(settings)


def test_the_teacher_has_no_gradient() -> None:
    logits = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = distilled(logits, torch.tensor([0, 1, 2]), "jsd", "none", 1.0)[2].sum()
    own, teachers = torch.autograd.grad(loss, logits, allow_unused=True)
    assert float(own.norm()) > 0
    assert teachers is None


def test_what_the_clip_did_is_reported_and_warned_of() -> None:
    algorithm = method("opsd")
    values = {"posterior": [-1.0, -1.0], "divergence": [0.2, 1.0], "distil": [0.2, 0.5]}
    groups = [group_of(trace([0.5], **values), trace([0.5], **(values | {"distil": [-0.1, 0.5]})))]
    metrics = algorithm.monitors(groups, algorithm.credit(groups))
    assert metrics["distil/nats_per_token"] == pytest.approx(0.6)
    assert metrics["distil/clipped_share"] == 0.75
    assert metrics["distil/negative_share"] == 0.25
    assert metrics["groups/without_signal_share"] == 0.0
    assert "clipped teacher: 75%" in algorithm.warnings(metrics)[0]
