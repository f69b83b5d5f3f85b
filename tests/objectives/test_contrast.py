"""The contrast of two hints: golden values, signs, and what it measures."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from covrl.objectives import contrast_residual, contrasted

RIGHT = torch.tensor([0.3, 0.2, 0.05, 0.6], dtype=torch.float64).log()
WRONG = torch.tensor([[0.25, 0.25, 0.05, 0.1], [0.2, 0.3, 0.05, 0.2]], dtype=torch.float64).mean(0).log()


def test_the_residual_is_the_golden_one() -> None:
    assert (RIGHT - WRONG).tolist() == pytest.approx([0.287682, -0.318454, 0.0, 1.386294], abs=5e-7)
    assert contrast_residual(RIGHT, WRONG, 0.5, 0.02).tolist() == pytest.approx([0.5, -0.5, 0.0, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "credit"),
    [(0.8, [1.3, 0.3, 0.8, 1.3]), (0.2, [0.7, 0.0, 0.2, 0.7]), (-0.3, [0.0, -0.8, -0.3, 0.0]), (0.0, [0.0] * 4)],
)
def test_no_sign_is_turned_and_nothing_comes_of_no_advantage(advantage: float, credit: list[float]) -> None:
    residual = contrast_residual(RIGHT, WRONG, 0.5, 0.02)
    assert contrasted(advantage, residual, 0.02).tolist() == pytest.approx(credit, abs=1e-6)


def test_the_same_hint_twice_changes_nothing() -> None:
    residual = contrast_residual(RIGHT, RIGHT, 0.5, 0.02)
    assert contrasted(0.8, residual, 0.02).tolist() == [0.8] * 4


def test_the_scale_is_the_unit_of_the_residual_and_not_of_the_threshold() -> None:
    residual = torch.tensor([0.5, 0.01], dtype=torch.float64)
    assert contrasted(8.0, residual, 0.02, scale=10.0).tolist() == pytest.approx([13.0, 8.0])


def test_of_exact_posteriors_it_sums_to_the_answers_log_odds_less_those_before_the_trace() -> None:
    torch.manual_seed(0)
    prior = torch.rand(9, dtype=torch.float64)
    prior /= prior.sum()
    likelihood = torch.rand(9, 2, dtype=torch.float64)
    marginal = (prior[:, None] * likelihood).sum(0)
    posterior = prior[:, None] * likelihood / marginal
    tokens = []
    for y in range(2):
        grid = posterior[:, y].reshape(3, 3)
        first, second = grid.sum(1).log(), (grid / grid.sum(1, keepdim=True)).log()
        tokens.append(torch.stack([torch.stack([first[a], second[a, b]]) for a, b in product(range(3), repeat=2)]))
    odds = (likelihood[:, 0] / likelihood[:, 1]).log() - (marginal[0] / marginal[1]).log()
    assert torch.allclose((tokens[0] - tokens[1]).sum(1), odds, atol=1e-12)
