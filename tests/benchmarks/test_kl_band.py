"""The rule by which the claim about safe learning rates is decided."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kl_band  # ty: ignore[unresolved-import]
from kl_band import BANDS, PLAIN, RATES, SEEDS, Range, safe, verdict, widest  # ty: ignore[unresolved-import]


def marks(text: str) -> list[bool]:
    return [c == "x" for c in text.ljust(len(RATES), ".")]


def test_the_range_is_the_longest_unbroken_row_and_open_at_the_grids_ends() -> None:
    assert widest(marks("..xx.xxx")) == Range(RATES[5], RATES[7], False)
    assert widest(marks("xx.")) == Range(RATES[0], RATES[1], True)
    assert widest([True] * len(RATES)) == Range(RATES[0], RATES[-1], True)
    assert widest(marks("")) is None


def test_a_rate_is_safe_if_every_seed_is() -> None:
    assert safe([0.95, 1.0])
    assert not safe([0.94, 1.0])
    assert not safe([0.99])


def test_the_claim_holds_only_if_the_range_doubles_and_both_ends_are_known() -> None:
    two, four = Range(RATES[2], RATES[3], False), Range(RATES[2], RATES[4], False)
    assert "the claim holds here" in verdict("band", {PLAIN: two, "band": four})
    assert "does not hold" in verdict("band", {PLAIN: four, "band": four})
    assert "ends with the grid" in verdict("band", {PLAIN: two, "band": four._replace(open=True)})
    assert "no safe rate" in verdict("band", {PLAIN: two, "band": None})


def test_it_orders_the_cells_that_are_missing_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def run(orders: Sequence[Any], out: Path, say: Any, share: Any) -> list[Any]:
        asked.extend(orders)
        assert (out, share) == (tmp_path / "raw", (1, 1))
        return []

    monkeypatch.setattr(kl_band, "run_cells", run)
    monkeypatch.setattr(sys, "argv", ["kl_band.py", "--folder", str(tmp_path), "--most", "20"])
    assert kl_band.main() == 0
    assert f"{2 * len(RATES) * len(SEEDS)} of" in capsys.readouterr().out
    assert len(asked) == 20
    banded = [order.config for order in asked if order.cells[0].method in BANDS]
    assert {tuple(c.algorithm.settings["kl_band"]) for c in banded} == {(0.02, 0.1)}
    assert all(order.config.training.learning_rate == order.cells[0].rate for order in asked)
    assert "no safe rate yet" in (tmp_path / "kl_band.md").read_text()
