"""Support metrics, answer entropy and majorities: published counts, enumeration, and the null."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.evaluation.support import (
    Support,
    answer_entropy,
    detectable,
    maj_at_k,
    nscr_interval,
    split_half_null,
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
    null = split_half_null(marks, draws=2000)
    assert null.gained == pytest.approx(null.lost, rel=0.1)
    assert null.gained > 0
    assert null.kept + null.gained + null.lost + null.neither == pytest.approx(len(marks))


def test_halves_of_one_right_sample_are_never_both_right() -> None:
    null = split_half_null([[True, False, False, False]], draws=400)
    assert null.kept == 0
    assert null.gained + null.lost == pytest.approx(1.0)
    with pytest.raises(ValueError, match="two samples"):
        split_half_null([[True]])


def test_the_interval_holds_the_figure_and_shrinks_with_problems() -> None:
    base, trained = [1, 1, 0, 0, 1, 1] * 10, [1, 0, 1, 0, 1, 1] * 10
    few, many = nscr_interval(base, trained), nscr_interval(base * 10, trained * 10, resamples=500)
    assert few.low <= support(base, trained).nscr <= few.high
    assert many.high - many.low < few.high - few.low


def test_what_n_samples_can_see() -> None:
    assert detectable(8192) == pytest.approx(3.657e-4, rel=1e-3)
    assert (1 - detectable(8192)) ** 8192 == pytest.approx(0.05, rel=1e-3)


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
