"""Tokens that the policy did not write carry no loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from algorithms.scored import group_of, trace
from hypothesis import given
from hypothesis import strategies as st

from covrl.objectives import trace_tokens, written_only

NUMBERS = st.floats(-9, 9, allow_nan=False)


@given(st.lists(st.tuples(NUMBERS, st.booleans()), max_size=9))
def test_weights_stay_where_the_policy_wrote_and_are_zero_elsewhere(tokens: list[tuple[float, bool]]) -> None:
    weight = torch.tensor([value for value, _ in tokens], dtype=torch.float64)
    written = tuple(own for _, own in tokens)
    assert written_only(weight, written).tolist() == [value if own else 0.0 for value, own in tokens]
    assert written_only(weight, None) is weight


def test_a_weight_that_is_not_finite_goes_too_and_its_gradient() -> None:
    weight = torch.tensor([1.0, float("nan"), float("inf")], requires_grad=True)
    kept = written_only(weight, (True, False, False))
    assert kept.tolist() == [1.0, 0.0, 0.0]
    kept.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 0.0, 0.0]


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a weight of shape \[2\] for a trace of 3 tokens"):
        written_only(torch.ones(2), (True, True, False))


def test_a_denominator_counts_the_tokens_that_can_carry_loss() -> None:
    """Three traces of two tokens: one of them the policy's by half, one that does not train."""
    (half, scores), whole, auxiliary = trace((0.5,)), trace((0.5,)), trace((0.5,), trains=False)
    assert trace_tokens([group_of((half, scores), whole, auxiliary)]) == 4.0
    half = replace(half, written=(True, False))
    assert trace_tokens([group_of((half, scores), whole, auxiliary)]) == 3.0
