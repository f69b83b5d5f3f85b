"""The rule by which the claim about safe learning rates is decided."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kl_band  # ty: ignore[unresolved-import]
from kl_band import BANDS, PLAIN, RATES, SEEDS, Range, decided, safe, verdict, widest  # ty: ignore[unresolved-import]


def marks(text: str) -> list[bool]:
    return [c == "x" for c in text.ljust(len(RATES), ".")]


def test_the_range_is_the_longest_unbroken_row_and_open_at_the_grids_ends() -> None:
    assert widest(marks("..xx.xxx")) == Range(RATES[5], RATES[7], False)
    assert widest(marks("xx.")) == Range(RATES[0], RATES[1], True)
    assert widest([True] * len(RATES)) == Range(RATES[0], RATES[-1], True)
    assert widest(marks("")) is None


def test_a_rate_is_safe_if_every_seed_is_and_not_as_soon_as_one_is_not() -> None:
    assert safe([0.95, 1.0]) is True
    assert safe([0.94, 1.0]) is safe([0.94]) is False
    assert safe([0.99]) is safe([]) is None


def known(text: str) -> list[bool | None]:
    return [{"x": True, ".": False, "?": None}[c] for c in text]


@pytest.mark.parametrize(
    ("ours", "plain", "expected"),
    [
        (".xxxxxx..", "..xxx....", True),  # 32 against 4
        ("..xxxx...", "..xxx....", True),
        ("..xxx....", "..xxx....", False),
        (".???????.", ".xxxxxx..", None),  # 64 is possible, 32 times 2 is wanted
        (".??????..", ".xxxxxx..", False),  # at most 32
        ("?xxxxxx..", "..xxx....", True),  # open, and wide enough already
        ("xxxxxxxxx", "xxxxxxxx.", None),  # both end with the grid
        (".xxx.....", "?????????", None),
        (".........", ".xx......", False),
    ],
)
def test_it_is_decided_as_soon_as_what_is_missing_cannot_change_it(
    ours: str, plain: str, expected: bool | None
) -> None:
    assert decided(known(ours), known(plain)) is expected
    said = verdict("band", {PLAIN: known(plain), "band": known(ours)})
    assert {True: "at least doubles", False: "does not double", None: "not decided"}[expected] in said


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
    assert "not decided" in (tmp_path / "kl_band.md").read_text()
