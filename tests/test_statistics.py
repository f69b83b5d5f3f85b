"""pass@k, avg@n and intervals: golden values, enumeration, and what must hold for all inputs."""

from __future__ import annotations

import math
import random
from itertools import combinations, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.statistics import (
    Interval,
    bootstrap_interval,
    bootstrap_intervals,
    pass_at_k,
    powers_of_two,
    quantile,
    t_interval,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize(("k", "value"), [(1, 0.015625), (8, 0.119934), (64, 0.686082), (256, 1.0)])
def test_pass_at_k_golden_values(k: int, value: float) -> None:
    assert pass_at_k(256, 4, k) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample(n: int) -> None:
    for correct, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([True] * correct + [False] * (n - correct), k))
        assert pass_at_k(n, correct, k) == pytest.approx(fmean(map(any, subsets)), abs=1e-15)


def test_pass_at_k_neither_overflows_nor_cancels() -> None:
    assert pass_at_k(20_000, 10_000, 9_000) == 1.0, "C(20000, 9000) is far beyond the largest float"
    assert pass_at_k(10**6, 1, 1) == 1e-6
    assert pass_at_k(10**9, 1, 3) == pytest.approx(3e-9, rel=1e-15)


@given(st.integers(1, 60), st.data())
def test_pass_at_k_grows_with_k_and_with_right_samples(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n))
    here = pass_at_k(n, correct, k)
    assert 0 <= here <= pass_at_k(n, correct + 1, k) <= 1
    assert k == 1 or pass_at_k(n, correct, k - 1) <= here
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    assert pass_at_k(n, correct, n) == (correct > 0)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_makes_no_sense(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, correct, k)


def test_pass_at_k_is_unbiased() -> None:
    """Over all outcomes of n Bernoulli samples the mean is exactly 1 − (1 − p)^k."""
    n, p = 6, 0.3
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("n", "ks"), [(0, []), (1, [1]), (2, [1, 2]), (7, [1, 2, 4]), (8, [1, 2, 4, 8])])
def test_powers_of_two(n: int, ks: list[int]) -> None:
    assert powers_of_two(n) == ks


def test_bootstrap_agrees_with_the_exact_distribution_of_resampled_means() -> None:
    values = [0.0, 0.0, 1.0, 0.25, 0.5]
    exact = [fmean(drawn) for drawn in product(values, repeat=5)]  # all 3125 resamples, equally likely
    found = bootstrap_interval(values, resamples=20_000)
    assert found.low == pytest.approx(quantile(exact, 0.025), abs=0.011)
    assert found.high == pytest.approx(quantile(exact, 0.975), abs=0.011)


def test_bootstrap_of_many_problems_is_the_normal_interval() -> None:
    values = [1.0] * 600 + [0.0] * 1400
    half = 1.959964 * math.sqrt(0.3 * 0.7 / 2000)
    assert bootstrap_interval(values, seed=3) == pytest.approx((0.3 - half, 0.3 + half), abs=0.0015)


def test_bootstrap_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = random.Random(0)
    hits = 0
    for trial in range(300):
        found = bootstrap_interval([float(rng.random() < 0.4) for _ in range(100)], seed=trial, resamples=300)
        hits += found.low <= 0.4 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12), st.integers(0, 5))
def test_bootstrap_stays_in_range_and_depends_on_the_seed_alone(values: list[float], seed: int) -> None:
    found = bootstrap_interval(values, seed, resamples=50)
    assert min(values) <= found.low <= found.high <= max(values)
    assert found == bootstrap_interval(list(values), seed, resamples=50)
    shifted = bootstrap_intervals({"a": values, "b": [v + 1 for v in values]}, seed, resamples=50)
    assert shifted["a"] == found, "a further column does not change the draws"
    assert shifted["b"] == pytest.approx((found.low + 1, found.high + 1)), "columns share the draws"


def test_bootstrap_seeds_differ() -> None:
    values = [float(i) for i in range(50)]
    assert bootstrap_interval(values, 0, 100) != bootstrap_interval(values, 1, 100)


def test_bootstrap_needs_problems_of_equal_number() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_interval([])
    with pytest.raises(ValueError):
        bootstrap_intervals({"a": [1.0], "b": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("degrees", "value"),
    [
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (5, 2.57058),
        (9, 2.26216),
        (30, 2.04227),
        (1000, 1.96234),
    ],
)
def test_t_quantile_golden_values(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, rel=2e-6)


def test_t_quantile_at_other_levels() -> None:
    assert t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)
    assert t_quantile(0.95, 2) == pytest.approx(2.919986, rel=1e-6)
    assert t_quantile(0.995, 7) == pytest.approx(3.499483, rel=1e-6)
    with pytest.raises(ValueError):
        t_quantile(0.975, 0)


def test_t_interval_of_three_seeds() -> None:
    # mean 0.6, deviation 0.1, so half = 4.30265 * 0.1 / √3
    assert t_interval([0.5, 0.6, 0.7]) == pytest.approx((0.6 - 0.248414, 0.6 + 0.248414), abs=1e-5)
    assert t_interval([0.97, 0.98, 0.99, 1.0], within=(0, 1)) == Interval(pytest.approx(0.964459, abs=1e-5), 1.0)
    assert t_interval([0.5]) is None
    assert t_interval([]) is None


def test_t_interval_covers_where_a_bootstrap_of_three_does_not() -> None:
    """What the docstring says of few seeds."""
    rng = random.Random(1)
    student = bootstrap = 0
    for trial in range(400):
        values = [rng.gauss(0, 1) for _ in range(3)]
        found = t_interval(values)
        assert found is not None
        student += found.low <= 0 <= found.high
        small = bootstrap_interval(values, trial, 200)
        bootstrap += small.low <= 0 <= small.high
    assert 0.92 <= student / 400 <= 0.98
    assert 0.68 <= bootstrap / 400 <= 0.82


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-3, 3), st.floats(0.1, 4))
def test_t_interval_moves_and_stretches_with_its_values(values: list[float], shift: float, scale: float) -> None:
    found, moved = t_interval(values), t_interval([scale * v + shift for v in values])
    assert found is not None
    assert moved is not None
    assert moved == pytest.approx((scale * found.low + shift, scale * found.high + shift), abs=1e-8)
    assert found.low <= fmean(values) + 1e-9
    assert found.high >= fmean(values) - 1e-9


def test_quantiles_are_linear_between_neighbours() -> None:
    assert [quantile([3.0, 1.0, 2.0], s) for s in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 2.5, 3]


def test_wilson_by_hand_and_as_the_shares_that_a_test_does_not_refuse() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    z = 1.959964
    assert wilson(0.0, 256) == pytest.approx((0.0, z * z / (256 + z * z)), abs=1e-8)
    for share, count in ((0.1, 20), (0.93, 45), (1.0, 7)):
        for end in wilson(share, count):  # at both ends the share lies z deviations from it
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), abs=1e-6)
