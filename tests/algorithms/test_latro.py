"""LaTRO's golden values."""

from __future__ import annotations

import math

import pytest
from algorithms.scored import credits, method, trace, weights

NEAR, FAR = [-2.0, -2.0], [0.0, 0.0]  # reference log-probs: the policy's are -1 each


def test_the_reward_is_the_likelihood_minus_the_log_ratio() -> None:
    first = trace([math.exp(-1)], reference=NEAR)
    second = trace([math.exp(-3)], reference=FAR)
    found = credits("latro", first, second, trace(None, reference=NEAR))
    assert [c.reward for c in found] == pytest.approx([-1.1, -2.9, -4.0])
    assert weights(found, "policy") == pytest.approx([2.35, -0.35, -2.0])


def test_an_unfinished_trace_can_earn_the_worst_minus_one() -> None:
    found = credits(
        "latro", trace([math.exp(-1)], reference=NEAR), trace(None, reference=NEAR), unfinished="worst", beta=0.0
    )
    assert [c.reward for c in found] == pytest.approx([-1.0, -2.0])


def test_a_users_reward_is_added_last() -> None:
    pair = trace([math.exp(-1)], reference=NEAR, reward=5.0), trace(None, reference=NEAR, reward=0.5)
    assert [c.reward for c in credits("latro", *pair)] == pytest.approx([3.9, -1.7])


def test_the_released_default_trains_no_answer() -> None:
    assert [s.name for s in method("latro").streams] == ["policy"]
    assert weights(credits("latro", trace([0.5], reference=NEAR), trace([0.1], reference=NEAR)), "nll") == [None, None]
    assert {r.span for r in method("latro").training} == {"trace"}
    assert [s.coefficient for s in method("latro", sft_penalty=0.3).streams] == [1.0, 0.3]
