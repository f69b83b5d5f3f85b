"""NRT's golden values: the forms, their weights, and what is taken off."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from algorithms.scored import Pair, credits, method, trace, weights

from covrl.algorithms.nrt import NRTConfig, reward_and_weights
from covrl.algorithms.one_prompt import EMPTY
from covrl.records import Scores

C, B = [0.9, 0.5, 0.1], [0.8, 0.2, 0.1]
GOLDEN: dict[str, tuple[float, float, list[float]]] = {
    "log_prob": (-3.101093, 1.034074, [1.0, 1.0, 1.0]),
    "prob": (0.045, 0.029, [0.045] * 3),
    "geometric": (0.355689, 0.103705, [0.118563] * 3),
    "arithmetic": (0.5, 0.133333, [0.3, 0.166667, 0.033333]),
    "inverse": (1.541667, 0.541667, [0.375, 0.833333, 0.333333]),
    "surprise": (0.411936, 0.168382, [0.066943, 0.26824, 0.076753]),
}


def with_empty(pair: Pair, probabilities: list[float]) -> Pair:
    rollout, scores = pair
    empty = torch.tensor([math.log(p) for p in probabilities], dtype=torch.float64)
    return rollout, Scores({**scores.values, EMPTY: empty})


@pytest.mark.parametrize("form", GOLDEN)
def test_a_form_its_gain_and_its_weights_are_the_golden_ones(form: str) -> None:
    value, gain, expected = GOLDEN[form]
    pair = with_empty(trace(C), B)
    plain, gained = (
        credits("nrt", pair, form=form, answer_weight="exact", advantage="mean", gain=g)[0] for g in (False, True)
    )
    assert plain.reward == pytest.approx(value, abs=5e-7)
    assert gained.reward == pytest.approx(gain, abs=5e-7)
    assert plain.weights["nll"].tolist() == pytest.approx(expected, abs=5e-7)
    assert gained.weights["nll"].tolist() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("form", GOLDEN)
def test_the_weights_are_the_forms_own_derivative(form: Any) -> None:
    logs = torch.tensor(C, dtype=torch.float64).log()
    importance = {"inverse": 1 / torch.tensor(B).double(), "surprise": -torch.tensor(B).double().log()}.get(form)
    step = 1e-6
    slopes = []
    for j in range(3):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[j] = step
        up, down = (reward_and_weights(logs + sign * moved, form, importance)[0] for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    assert reward_and_weights(logs, form, importance)[1].tolist() == pytest.approx(slopes, abs=1e-8)


def test_a_thought_that_does_not_help_gains_nothing_and_teaches_no_answer() -> None:
    found = credits("nrt", with_empty(trace([0.1, 0.1]), [0.5, 0.5]), gain=True, answer_weight="exact")
    assert found[0].reward == 0.0
    assert found[0].weights["nll"].tolist() == [0.0, 0.0]


def test_the_released_recipe_trains_the_answer_with_weight_one_after_every_thought() -> None:
    found = credits("nrt", with_empty(trace([0.5]), [0.5]), trace([0.1]), trace(None))
    assert weights(found, "nll") == [1.0, 1.0, None]
    assert sum(c.advantage for c in found) == pytest.approx(0.0)
    assert found[2].reward == 0.0


def test_an_unclosed_trace_is_the_worst_of_its_group_where_rewards_are_logs() -> None:
    found = credits("nrt", trace([0.5]), trace([0.25]), trace(None), form="log_prob")
    assert found[2].reward == pytest.approx(math.log(0.25) - 1)


def test_a_vanishing_baseline_is_held_at_its_floor() -> None:
    found = credits("nrt", with_empty(trace([1.0]), [1e-30]), form="inverse", baseline_floor=1e-3)
    assert found[0].reward == pytest.approx(1e3)


def test_the_empty_thought_is_read_where_the_reward_needs_it() -> None:
    reads = {form: "direct" in [c.name for c in method("nrt", form=form).contexts] for form in GOLDEN}
    assert reads == dict.fromkeys(GOLDEN, False) | {"inverse": True, "surprise": True}
    assert "direct" in [c.name for c in method("nrt", form="prob", gain=True).contexts]


@pytest.mark.parametrize(
    "settings", [{"form": "prob", "baseline_floor": 0.1}, {"nll_weight": 0, "answer_weight": "exact"}]
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does nothing with"):
        NRTConfig.model_validate(settings)
