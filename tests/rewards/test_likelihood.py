from __future__ import annotations

import math

import pytest
import torch

from covrl.rewards.likelihood import answer_reward, is_floored, reward_floor


def test_forms() -> None:
    log_probs = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    assert answer_reward(log_probs, "sum") == pytest.approx(math.log(0.125))
    assert answer_reward(log_probs, "mean") == pytest.approx(math.log(0.125) / 2)
    assert answer_reward(log_probs, "prob") == pytest.approx(0.125)
    assert answer_reward(log_probs, "mean_prob") == pytest.approx(0.375)


@pytest.mark.parametrize(("tokens", "floor"), [(1, -30), (16, -30), (32, -60), (60, -112.5)])
def test_floor_grows_with_long_answers_only(tokens: int, floor: float) -> None:
    assert reward_floor(tokens) == floor
    hopeless = torch.full((tokens,), -50.0)
    assert answer_reward(hopeless, "sum") == floor
    assert answer_reward(hopeless, "mean") == floor / tokens
    assert is_floored(hopeless)
    assert answer_reward(hopeless, "sum", floor=-4.0) == floor * 4 / 30
    assert not is_floored(torch.tensor([-3.9]), floor=-4.0)


def test_an_answer_of_60_tokens_keeps_its_signal() -> None:
    """At −1 nat a token the sum is −60: below a fixed floor of −30, where all traces would look alike."""
    worse, better = torch.full((60,), -1.0), torch.full((60,), -0.9)
    assert not is_floored(worse)
    assert answer_reward(better, "sum") > answer_reward(worse, "sum")
