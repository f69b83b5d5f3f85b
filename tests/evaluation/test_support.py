"""Support metrics, answer entropy and majorities: published counts, enumeration, and the null."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.evaluation.support import (
    Support,
    answer_entropy,
    deal_against_itself,
    deal_halves,
    maj_at_k,
    mean_support,
    null_quantiles,
    rate_intervals,
    support,
)


@pytest.mark.parametrize(
    ("counts", "srr", "ndr", "sds", "nscr"),
    [
        ((1355, 5, 56, 0), 0.960, 0.004, 0.007, -0.036),
        ((2388, 48, 175, 0), 0.932, 0.020, 0.039, -0.049),
        ((0, 0, 0, 9), 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_published_counts(counts: tuple[float, ...], srr: float, ndr: float, sds: float, nscr: float) -> None:
    found = Support(*counts)
    assert [round(v, 3) for v in (found.srr, found.ndr, found.sds, found.nscr)] == [srr, ndr, sds, nscr]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_counts_cover_every_problem_and_the_closed_form_of_sds_holds(pairs: list[tuple[int, int]]) -> None:
    found = support([b for b, _ in pairs], [t for _, t in pairs])
    p, e, s = found.kept, found.gained, found.lost
    assert p + e + s + found.neither == len(pairs)
    below = p * p + 2 * p * e + e * s
    assert found.sds == pytest.approx(2 * p * e / below if below else 0.0)
    swapped = support([t for _, t in pairs], [b for b, _ in pairs])
    assert swapped.nscr == pytest.approx(-found.nscr)


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        support([1], [1, 2])


def test_the_null_gains_what_it_loses() -> None:
    marks = [[i % 7 == j % 7 for j in range(8)] for i in range(40)] + [[True] * 8] * 20 + [[False] * 8] * 20
    null = mean_support(deal_against_itself(marks, draws=2000))
    assert null.gained == pytest.approx(null.lost, rel=0.1)
    assert null.gained > 0
    assert null.kept + null.gained + null.lost + null.neither == pytest.approx(len(marks))


def test_halves_of_one_right_sample_are_never_both_right() -> None:
    null = mean_support(deal_against_itself([[True, False, False, False]], draws=400))
    assert null.kept == 0
    assert null.gained + null.lost == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two samples"):
        deal_against_itself([[True]])


def test_the_intervals_hold_the_figures_and_shrink_with_problems() -> None:
    base, trained = [1, 1, 0, 0, 1, 1] * 10, [1, 0, 1, 0, 1, 1] * 10
    pairs = [(b > 0, t > 0) for b, t in zip(base, trained, strict=True)]
    few, many = rate_intervals([pairs]), rate_intervals([pairs * 10], resamples=500)
    for name in ("srr", "ndr", "sds", "nscr"):
        assert few[name].low < getattr(support(base, trained), name) < few[name].high
        assert many[name].high - many[name].low < few[name].high - few[name].low
    same = rate_intervals([[(True, True)] * 9])
    assert (same["srr"], same["nscr"]) == ((1.0, 1.0), (0.0, 0.0))


def test_an_interval_of_the_rates_covers_other_problems() -> None:
    """Of 40 sets of problems with the same rates, about 95 % of the intervals hold the true NSCR."""
    rng, held = random.Random(1), 0
    for _ in range(40):
        pairs = [(rng.random() < 0.5, rng.random() < 0.6) for _ in range(60)]
        low, high = rate_intervals([pairs], resamples=300)["nscr"]
        held += low <= (0.5 * 0.6 - 0.5 * 0.4) / (1 - 0.5 * 0.4) <= high
    assert held >= 34


def test_the_nulls_quantiles_hold_what_chance_does_and_not_what_training_did() -> None:
    rng = random.Random(0)
    rates = [rng.random() ** 3 for _ in range(120)]

    def marks(shift: float) -> list[list[bool]]:
        return [[rng.random() < p + shift for _ in range(8)] for p in rates]

    base, same, better = marks(0), marks(0), marks(0.3)
    ends = null_quantiles(deal_against_itself(base))
    assert all(low < high for low, high in ends.values())
    low, high = ends["nscr"]
    assert low < 0 < high
    mean = mean_support(deal_against_itself(base))
    assert all(ends[name].low < getattr(mean, name) < ends[name].high for name in ends)
    equal, gained = (rate_intervals(deal_halves(base, other))["nscr"] for other in (same, better))
    assert equal.low < high
    assert equal.high > low
    assert gained.low > high


def test_answer_entropy() -> None:
    assert answer_entropy(["1"] * 5) == 0
    assert answer_entropy(["1", "2", None, None]) == pytest.approx(1.5 * math.log(2))


def test_majority_by_enumeration() -> None:
    answers, right = ["a", "a", "b", "c", None], [True, True, False, False, False]
    expected = []
    for drawn in combinations(range(5), 3):
        votes = [answers[i] for i in drawn if answers[i] is not None]
        most = max(votes.count(v) for v in votes)
        leaders = {v for v in votes if votes.count(v) == most}
        expected.append(("a" in leaders) / len(leaders))
    found = maj_at_k(answers, right, 3, draws=20_000)
    assert found == pytest.approx(sum(expected) / len(expected), abs=0.01)


def test_majority_of_all_is_exact_and_ties_share() -> None:
    assert maj_at_k(["a", "a", "b"], [True, True, False], 3) == 1.0
    assert maj_at_k(["a", "b"], [True, False], 2) == 0.5
    assert maj_at_k([None, None, "a"], [False, False, True], 3) == 1.0
    assert maj_at_k([None], [False], 1) == 0.0
    with pytest.raises(ValueError, match="k=4"):
        maj_at_k(["a"] * 3, [True] * 3, 4)
