from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covrl.objectives import capped, centred, clipped_ratio, doubly_clipped_ratio, smoothly_capped


@given(st.floats(-3, 3), st.floats(-5, 5), st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_weight_times_clipped_ratio_is_ppos_minimum(log_ratio: float, weight: float, low: float, high: float) -> None:
    drift, w = torch.tensor([log_ratio], dtype=torch.float64), torch.tensor([weight], dtype=torch.float64)
    ratio = drift.exp()
    expected = torch.minimum(ratio * w, ratio.clamp(1 - low, 1 + high) * w)
    assert torch.allclose(w * clipped_ratio(drift, w, low, high), expected)


@pytest.mark.parametrize(
    ("log_ratio", "weight", "flows"), [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False)]
)
def test_gradient_stops_only_where_the_clip_binds(log_ratio: float, weight: float, flows: bool) -> None:
    drift = torch.tensor([log_ratio], requires_grad=True)
    (weight * clipped_ratio(drift, torch.tensor([weight]), 0.3, 0.3)).sum().backward()
    assert drift.grad is not None
    assert bool(drift.grad.abs() > 0) is flows


@pytest.mark.parametrize("log_ratio", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("weight", [1.0, 0.0, -1.0])
def test_a_ratio_beyond_float32_gives_no_nan(log_ratio: float, weight: float) -> None:
    for dual in (None, 3.0):
        drift, w = torch.tensor([log_ratio], requires_grad=True), torch.tensor([weight])
        value = w * doubly_clipped_ratio(drift, w, 0.2, 0.2, dual)
        value.sum().backward()
        assert drift.grad is not None
        assert torch.isfinite(value).all()
        assert drift.grad.tolist() == [0.0]
    assert float(clipped_ratio(torch.tensor([19.0]), torch.tensor([-1.0]), 0.2, 0.2)) == pytest.approx(math.exp(19))


def test_a_smooth_cap_is_the_ratio_up_to_one_and_stays_below_the_cap() -> None:
    ratio = torch.linspace(0, 30, 3001, dtype=torch.float64)
    found = smoothly_capped(ratio, 2.0)
    assert torch.equal(found[ratio <= 1], ratio[ratio <= 1])
    assert float(found.max()) <= 2.0
    slope = found.diff() / ratio.diff()
    assert float(slope.diff().abs().max()) < 0.03  # no corner: the slope moves by little from point to point
    assert float(slope.min()) >= 0
    assert capped(torch.tensor([0.5, 3.0]), 2.0).tolist() == [0.5, 2.0]


def test_centred_uses_the_whole_group() -> None:
    assert centred([1.0, 2.0, 6.0]) == [-2.0, -1.0, 3.0]


def test_own_reward_in_the_mean_is_a_factor_of_the_leave_one_out_advantage() -> None:
    rewards = [0.3, -1.2, 2.0, 0.0]
    for i, advantage in enumerate(centred(rewards)):
        others = [r for j, r in enumerate(rewards) if j != i]
        assert advantage == pytest.approx((rewards[i] - sum(others) / 3) * 3 / 4)
