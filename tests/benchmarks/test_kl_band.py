"""The rule by which the claim about safe learning rates is decided."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from kl_band import PLAIN, RATES, Range, safe, verdict, widest  # ty: ignore[unresolved-import]


def marks(text: str) -> list[bool]:
    return [c == "x" for c in text.ljust(len(RATES), ".")]


def test_the_range_is_the_longest_unbroken_row_and_open_at_the_grids_ends() -> None:
    assert widest(marks("..xx.xxx")) == Range(RATES[5], RATES[7], False)
    assert widest(marks("xx.")) == Range(RATES[0], RATES[1], True)
    assert widest([True] * len(RATES)) == Range(RATES[0], RATES[-1], True)
    assert widest(marks("")) is None


def test_a_rate_is_safe_if_every_seed_is() -> None:
    assert safe([0.99, 0.95, 1.0])
    assert not safe([0.99, 0.94, 1.0])
    assert not safe([0.99, 0.99])


def test_the_claim_holds_only_if_the_range_doubles_and_both_ends_are_known() -> None:
    two, four = Range(RATES[2], RATES[3], False), Range(RATES[2], RATES[4], False)
    assert "the claim holds here" in verdict("band", {PLAIN: two, "band": four})
    assert "does not hold" in verdict("band", {PLAIN: four, "band": four})
    assert "ends with the grid" in verdict("band", {PLAIN: two, "band": four._replace(open=True)})
    assert "no safe rate" in verdict("band", {PLAIN: two, "band": None})
