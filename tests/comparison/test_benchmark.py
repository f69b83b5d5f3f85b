"""benchmarks/comparison.py: what a stage wants, and what it says is missing. Nothing is trained here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from tuning import Tuning

from comparison.results import cell as made_cell
from comparison.results import result
from covrl.comparison.cells import COUNTING, Budget, Cell, Exam, write_result
from covrl.comparison.methods import BASE
from covrl.comparison.summary import Line, lines

# Its name is that of this folder, so it is loaded by its path.
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "comparison.py"
SPEC = importlib.util.spec_from_file_location("benchmarks_comparison", SCRIPT)
assert SPEC
assert SPEC.loader
benchmark = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = benchmark  # dataclasses look their module up
SPEC.loader.exec_module(benchmark)
readme_table = sys.modules["readme_table"]

TUNING = Tuning((100,), Budget("steps", 50), Exam("dev", 4, 1000), rates=(1.0, 2.0, 3.0), least=1.0, most=3.0)


def put(folder: Path, cell: Cell, score: float = 0.5, **more: object) -> None:
    write_result(folder / "raw", cell, "abc", result(cell, score, **more).figures)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two methods, of which the rate of ``covrl`` alone is tuned: it is 2."""
    monkeypatch.setattr(benchmark, "TUNING", TUNING)
    stage = benchmark.Stage(("covrl", "rlpr"), "rare", (0, 1))
    monkeypatch.setattr(benchmark, "STAGES", {"test-rare": (stage,), "test-common": ()})
    for rate, score in ((1.0, 0.3), (2.0, 0.6), (3.0, 0.4)):
        put(tmp_path, Cell("covrl", "rare", rate, 100, TUNING.budget, TUNING.exam), score)
    return tmp_path


def test_methods_without_a_tuned_rate_are_listed_and_counted_as_missing(folder: Path) -> None:
    (stage,) = benchmark.STAGES["test-rare"]
    cells = benchmark.wanted(stage, folder)
    assert [(c.method, c.rate) for c in cells] == [(BASE, 0.0), *[("covrl", 2.0)] * 2], "what can be run, once each"
    put(folder, next(c for c in cells if c.method == "covrl"))
    every = benchmark.lines_of("test-rare", folder)
    assert [(x.method, x.rate, len(x.results), x.missing) for x in every] == [
        (BASE, 0.0, 0, (0,)),
        ("covrl", 2.0, 1, (1,)),
        ("rlpr", None, 0, (0, 1)),
    ]
    assert benchmark.count(every) == "4 of 5 cells are missing, 2 of them at rates not tuned yet"
    benchmark.write("test-rare", folder)
    text = (folder / "test-rare.md").read_text()
    assert "| rlpr | – | 0/2 |" in text
    assert "- Missing: rlpr, rare, rate not tuned yet, seeds 0, 1." in text
    assert benchmark.count([x for x in every if x.rate is not None]) == "2 of 3 cells are missing"


def test_a_stage_with_rates_of_its_own_and_a_tuning_wait_for_no_rate(folder: Path) -> None:
    assert benchmark.untuned(benchmark.Stage(("rlpr",), "rare", (0,), rates=(1.0,)), folder) == []
    assert benchmark.untuned(benchmark.Stage(("rlpr",), "rare"), folder) == []


def test_ravr_is_measured_with_the_beta_that_is_best_on_dev(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = benchmark.Stage((benchmark.RAVR,), "rare", (0,))
    monkeypatch.setattr(benchmark, "STAGES", {"test-rare": (stage,)})
    tuning = benchmark.Stage((benchmark.RAVR,), "rare")
    assert {c.method for c in benchmark.wanted(tuning, folder)} == {BASE, *benchmark.RAVRS}
    for method, best in (("ravr", 0.7), ("ravr-beta-0.3", 0.8), ("ravr-beta-0.1", 0.9)):
        (line,) = benchmark.lines_of("test-rare", folder)
        assert (line.method, line.rate, line.missing) == ("ravr-tuned", None, (0,)), "not all of them are tuned"
        for rate, score in ((1.0, 0.3), (2.0, best), (3.0, 0.4)):
            put(folder, Cell(method, "rare", rate, 100, TUNING.budget, TUNING.exam), score)
    assert [line.method for line in benchmark.lines_of("test-rare", folder)] == [BASE, "ravr-beta-0.1"]
    benchmark.write("test-rare", folder)
    text = (folder / "test-rare.md").read_text()
    assert "ravr 65.0 at rate 2, ravr-beta-0.3 75.0 at rate 2, ravr-beta-0.1 85.0 at rate 2" in text
    assert "Measured here: ravr-beta-0.1." in text


def test_only_methods_that_are_measured_have_a_drawing(folder: Path) -> None:
    for cell in benchmark.wanted(*benchmark.STAGES["test-rare"], folder):
        put(folder, cell)
    (folder / "curves").mkdir()
    (folder / "curves" / "grpo.svg").touch()
    (folder / "curves" / "rlpr.svg").write_text("drawn before its results were outdated")
    benchmark.write_curves(folder)
    assert sorted(path.name for path in (folder / "curves").iterdir()) == ["covrl.svg", "rlpr.svg"]


def test_the_beta_stage_says_whether_the_weak_kl_collapsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = benchmark.Stage(benchmark.BETAS, "rare", (0,), rates=(1.0,))
    monkeypatch.setattr(benchmark, "STAGES", {"beta": (stage,)})
    benchmark.write("beta", folder)
    text = (folder / "beta.md").read_text()
    assert text.startswith("# Comparison: beta\n")
    assert "## Peak and end of covrl-beta-0.1" in text
    assert "Not decided: results are missing at rate 1." in text


def test_reported_results_of_another_counting_are_run_again_and_tuned_ones_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = benchmark.STAGES["test-rare"]
    for rate, score in ((1.0, 0.3), (2.0, 0.4), (3.0, 0.6)):
        put(folder, Cell("rlpr", "rare", rate, 100, TUNING.budget, TUNING.exam), score, counting=1)
    cells = benchmark.wanted(stage, folder)
    assert {c.rate for c in cells if c.method == "rlpr"} == {3.0}, "old results on dev still choose rates"
    for cell in cells:
        put(folder, cell, counting=1 if cell.method == "rlpr" else COUNTING)
    ran: list[Cell] = []

    def run_cells(orders, out, say):
        ran.extend(cell for order in orders for cell in order.cells)
        for cell in ran:
            put(folder, cell)
        return []

    monkeypatch.setattr(benchmark, "run_cells", run_cells)
    assert benchmark.run(stage, folder) == 0
    assert [(c.method, c.seed) for c in ran] == [("rlpr", 0), ("rlpr", 1)]


def test_the_short_table_has_a_row_a_method_and_both_settings(tmp_path: Path) -> None:
    def lines_at(setting: str, gain: float) -> dict[str, Line]:
        cells = [*(made_cell("covrl", seed, setting) for seed in range(2)), made_cell("base", 0, setting)]
        made = lines(cells, {c: result(c, gain + c.seed / 10) for c in cells})
        return {line.method: line for line in made}

    rare, common = lines_at("rare", 0.5), lines_at("common", 0.6)
    text = readme_table.short_table({"rare": {"base": rare["base"], "covrl": rare["covrl"]}, "common": common})
    assert text.splitlines() == [
        "|  | rare, sampled | rare, sound | common, sampled | common, sound | forward + backward tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| chance | 4.8 |  | 4.8 |  |  |",
        "| base | 45.0 | 20.0 | 55.0 | 20.0 |  |",
        "| `covrl` | 50.0 (45.0–55.0) | 20.0 | 60.0 (55.0–65.0) | 20.0 | 800 |",
    ]
    assert "covrl" not in readme_table.short_table({"rare": rare, "common": {"base": common["base"]}})
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nbehind\n")
    readme_table.write_readme(text, readme)
    assert readme.read_text() == f"before\n{readme_table.BEGIN}\n{text}\n{readme_table.END}\nbehind\n"
