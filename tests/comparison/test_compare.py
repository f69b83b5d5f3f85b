"""`covrl compare`: what is typed, what is run, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_tasks import recipe_config

from comparison.results import result
from covrl.comparison import compare as module
from covrl.comparison.cells import Budget, Cell, Exam, write_result
from covrl.comparison.compare import Comparison, ask_for, compare
from covrl.comparison.own import Own
from covrl.comparison.run import Failure
from covrl.errors import UserError

CONFIG = recipe_config(())
OWN = Own("rare", CONFIG.model_dump(), CONFIG, facts={})


def asked(folder: Path, **changes: Any) -> Comparison:
    typed = {"methods": ("covrl", "covrl-shuffled"), "seeds": (0, 1), "rates": (1.5e-4,), "exams": (Exam("test", 8),)}
    return Comparison(**{"own": OWN, "budget": Budget("steps", 20), "folder": folder} | typed | changes)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Stand-ins for the processes: each cell's result is made up, but the shuffled control's seed 1 fails."""
    ran: list[Cell] = []

    def run_cells(orders, out, say, **_):
        cells = [cell for order in orders for cell in order.cells]
        ran.extend(cells)
        for cell in cells:
            if (cell.method, cell.seed) != ("covrl-shuffled", 1):
                write_result(out, cell, "abc", dict(result(cell, 0.5 + cell.seed / 10).figures))
        return [Failure(c, "it broke") for c in cells if (c.method, c.seed) == ("covrl-shuffled", 1)]

    monkeypatch.setattr(module, "run_cells", run_cells)
    return ran


def test_only_what_is_missing_is_run_and_what_failed_is_said(tmp_path: Path, workers: list[Cell]) -> None:
    _, failed = compare(asked(tmp_path), "covrl compare …")
    assert [(c.method, c.seed) for c in workers] == [
        ("base", 0), ("covrl", 0), ("covrl-shuffled", 0), ("covrl", 1), ("covrl-shuffled", 1),
    ]  # fmt: skip
    assert list(failed.values()) == ["it broke"]
    text = (tmp_path / "compare.md").read_text()
    assert "Missing: covrl-shuffled, rare, rate 0.00015, seeds 1." in text
    assert "Failed: covrl-shuffled, rare, rate 0.00015, seed 1: it broke" in text
    assert (tmp_path / "compare.html").read_text().startswith("<!doctype html>")
    assert len(list((tmp_path / "raw").iterdir())) == 4

    workers.clear()
    compare(asked(tmp_path, seeds=(0, 1, 2)), "again", name="more")
    assert [(c.method, c.seed) for c in workers] == [("covrl-shuffled", 1), ("covrl", 2), ("covrl-shuffled", 2)]
    assert (tmp_path / "more.md").is_file()
    assert asked(tmp_path, commit="other").missing() == asked(tmp_path).cells(), "another commit has none of them"


def test_what_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_own", lambda *_: (OWN, None))
    monkeypatch.setattr(Own, "check_methods", lambda *_: None)
    typed = ("covrl, covrl-shuffled,covrl", "0,1", "1e-4, 3e-4", "tokens", None, 1000, "test", 8, 9, tmp_path)
    found = ask_for(Path("rare.toml"), [], *typed)
    assert (found.methods, found.seeds, found.rates) == (("covrl", "covrl-shuffled"), (0, 1), (1e-4, 3e-4))
    assert (found.budget, found.exams) == (Budget("tokens", 1000), (Exam("test", 8, 9),))
    assert len(found.cells()) == 1 + 2 * 2 * 2


def test_a_folder_that_cannot_be_written_is_named(workers: list[Cell]) -> None:
    with pytest.raises(UserError, match="/proc/nowhere: cannot write there"):
        compare(asked(Path("/proc/nowhere")), "c")
    assert workers == []
