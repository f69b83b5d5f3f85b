"""Values of prefixes: against counting in plain loops, golden values, and what any tree of responses has."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covrl.objectives import between_extremes, prefix_values

END = 9
TREE = [(1, 2, 3, END), (1, 2, 4, END), (1, 5, 6, END), (1, 5, 6, 8)]
"""SPEC: TEMPO's golden tree; the first response alone is right."""


def counted(ids: Sequence[tuple[int, ...]], rewards: Sequence[float], prefix: tuple[int, ...]) -> float:
    """The mean reward of the responses that begin with ``prefix``, one by one."""
    below = [r for own, r in zip(ids, rewards, strict=True) if own[: len(prefix)] == prefix]
    return sum(below) / len(below)


def test_the_golden_tree() -> None:
    values = [v.tolist() for v in prefix_values(TREE, [1.0, 0.0, 0.0, 0.0])]
    assert values[0] == pytest.approx([0.25, 0.25, 0.5, 1.0, 1.0])
    assert values[1] == pytest.approx([0.25, 0.25, 0.5, 0.0, 0.0])
    assert values[2] == values[3] == pytest.approx([0.25, 0.25, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("seed", range(20))
def test_values_are_those_of_counting(seed: int) -> None:
    chance = random.Random(seed)
    ids = [(*chance.choices((0, 1), k=chance.randint(0, 5)), END) for _ in range(chance.randint(1, 7))]
    rewards = [chance.choice((0.0, 0.3, 1.0)) for _ in ids]
    for own, values in zip(ids, prefix_values(ids, rewards), strict=True):
        expected = [counted(ids, rewards, own[:t]) for t in range(len(own) + 1)]
        assert values.tolist() == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=6), st.floats(-2, 2)), min_size=1, max_size=6))
def test_differences_add_up_to_what_is_known_at_the_end(group: list[tuple[list[int], float]]) -> None:
    """Σ V(s_{t+1}) − V(s_t) = V(whole) − mean, and V of a whole response is its reward if no other is the same."""
    ids, rewards = [tuple(own) for own, _ in group], [r for _, r in group]
    mean = sum(rewards) / len(rewards)
    for i, values in enumerate(prefix_values(ids, rewards)):
        assert values.diff().sum() + mean == pytest.approx(float(values[-1]), abs=1e-9)
        begun = [r for other, r in zip(ids, rewards, strict=True) if other[: len(ids[i])] == ids[i]]
        assert float(values[-1]) == pytest.approx(sum(begun) / len(begun), abs=1e-9)


def test_equal_responses_with_different_rewards_never_part_and_no_response_is_no_value() -> None:
    assert [v.tolist() for v in prefix_values([(1, END), (1, END)], [1.0, 0.0])] == [[0.5] * 3] * 2
    assert prefix_values([], []) == []
    assert prefix_values([()], [0.7])[0].tolist() == [0.7]


def test_a_response_that_ended_matches_none_that_goes_on() -> None:
    short, long = prefix_values([(1, 2), (1, 2, 2)], [1.0, 0.0])
    assert short.tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert long.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0])


def test_each_sequence_is_scaled_between_its_own_extremes() -> None:
    """SPEC: DHPO's gate of entropies .2, 1.4, .8, .2 is 0, 1, ½, 0; equal ones get ½."""
    owner = torch.tensor([3, 3, 3, 3, 0, 0])
    found = between_extremes(torch.tensor([0.2, 1.4, 0.8, 0.2, 7.0, 7.0], dtype=torch.float64), owner)
    assert found.tolist() == pytest.approx([0, 1, 0.5, 0, 0.5, 0.5])
    assert between_extremes(torch.zeros(0), torch.zeros(0, dtype=torch.long)).tolist() == []
