"""One cell, in this process: what is trained, counted and measured. Tiny batches on the shipped base."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_tasks import cell_config

from covrl.algorithms.covrl import CoVRL
from covrl.api import build
from covrl.comparison import worker
from covrl.comparison.cells import Budget, Cell, Exam, read_results
from covrl.comparison.methods import VARIANTS
from covrl.comparison.training import planned_steps, train_cell
from covrl.comparison.worker import ORDER, Order, run_order

TINY = (
    "algorithm.name=covrl",
    "training.problems_per_step=2",
    "training.rollouts_per_problem=2",
    "evaluation.problems=4",
    "evaluation.every=2",
    "training.warmup_steps=1",
)
CELL = Cell("tiny", "rare", 1.5e-4, 3, Budget("steps", 3), Exam("dev", 2, 6))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "tiny", TINY)


def run_cell(cell: Cell) -> dict[str, Any]:
    ((_, figures),) = run_order(Order((cell,), cell_config(cell), Path()))
    return figures


def steady(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in figures.items() if k not in ("seconds", "finished")}


def test_the_cell_s_own_settings_come_last() -> None:
    config = cell_config(replace(CELL, setting="common", rate=2e-5))
    assert config.model.path == "covrl:digits-common"
    assert (config.training.learning_rate, config.training.seed, config.training.steps) == (2e-5, 3, 3)
    assert (config.training.problems_per_step, config.training.stream_norms_every) == (2, 0)
    assert cell_config(replace(CELL, method="covrl-shuffled")).problems.shuffle_hints
    assert cell_config(replace(CELL, method="base", rate=0.0)).model.path == "covrl:digits"


def test_a_cell_is_trained_counted_and_measured() -> None:
    figures = run_cell(CELL)
    json.dumps(figures, allow_nan=False)
    assert steady(run_cell(CELL)) == steady(figures), "the same cell gives the same figures"
    assert (figures["steps"], figures["stopped"]) == (3, None)
    assert [point["step"] for point in figures["curve"]] == [0, 1, 2, 3]
    assert figures["chance"] == pytest.approx(1 / 21)
    exam = figures["exam"]
    assert (exam["problems"], exam["n"]) == (6, 2)
    assert {"greedy", "avg@n", "pass@1", "pass@2", "sound", "sound_sampled"} <= exam.keys()
    # Four traces of eleven tokens a step; each is read once with gradients, under two prompts with its answer.
    last = figures["curve"][-1]
    assert {name: last[name] for name in figures["tokens"]} == figures["tokens"]
    assert figures["tokens"]["generated"] == 3 * 4 * 11
    assert figures["tokens"]["scored"] == 0
    assert figures["tokens"]["trained"] > 2 * figures["tokens"]["generated"]
    assert set(figures["seconds"]) == {"generate", "score", "train"}
    assert 0 < sum(figures["seconds"].values()) < time.process_time(), "CPU seconds of this process"
    other = run_cell(replace(CELL, seed=4))
    assert other["curve"] != figures["curve"]


def test_the_base_is_measured_as_it_is() -> None:
    cell = replace(CELL, method="base", setting="common", rate=0.0, seed=0, budget=Budget("steps", 0))
    figures = run_cell(cell)
    assert figures["steps"] == 0
    assert figures["tokens"] == {"generated": 0.0, "scored": 0.0, "trained": 0.0}
    assert len(figures["curve"]) == 1


def test_a_budget_of_tokens_ends_the_training_where_it_is_spent() -> None:
    figures = run_cell(replace(CELL, budget=Budget("tokens", 5 * 44 - 7)))
    assert figures["steps"] == 5
    assert figures["tokens"]["generated"] == 5 * 44
    assert figures["curve"][-1]["step"] == 5, "the last step is evaluated"


def test_a_budget_of_tokens_has_the_schedule_of_the_steps_it_lasts(tmp_path: Path) -> None:
    def rates(budget: Budget) -> list[float]:
        folder = tmp_path / str(budget)
        folder.mkdir()
        trained = train_cell(build(cell_config(replace(CELL, budget=budget))), budget, folder)
        return [report.metrics["optim/lr"] for report in trained.reports]

    found = rates(Budget("tokens", 5 * 44))
    assert found == rates(Budget("steps", 5))
    assert found[-1] < found[1]


def test_a_training_that_is_stopped_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CoVRL, "stop_reason", lambda self, metrics: "no use")
    figures = run_cell(CELL)
    assert (figures["steps"], figures["stopped"]) == (1, "stopped after step 1: no use")
    assert figures["exam"]["problems"] == 6


def test_the_command_writes_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = tmp_path / "cell.json"
    told = Order(
        (CELL, replace(CELL, exam=Exam("test"))), cell_config(CELL), tmp_path / "raw", tmp_path / "run", 2, "x"
    )
    assert ORDER.validate_json(ORDER.dump_json(told)) == told
    told = replace(told, cells=(CELL,), folder=None)
    order.write_bytes(ORDER.dump_json(told))
    monkeypatch.setattr(worker, "run_order", lambda order: [(cell, {"steps": 0}) for cell in order.cells])
    assert worker.main([str(order)]) == 0
    assert [r.cell for r in read_results(tmp_path / "raw")] == [CELL]
    assert worker.main([]) == 2
    assert "usage" in capsys.readouterr().err


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 20_000))
def test_planned_steps_last_as_long_as_the_tokens(used: list[int], amount: int) -> None:
    planned = planned_steps(used, amount)
    assert planned >= len(used)
    if planned > len(used):
        each = sum(used[-10:]) / len(used[-10:])
        assert abs(sum(used) + (planned - len(used)) * each - amount) <= each / 2 + 1e-6


def test_planned_steps() -> None:
    assert planned_steps([100.0], 1000) == 10
    assert planned_steps([100.0] * 4, 400) == 4
    assert planned_steps([100.0] * 5, 400) == 5, "what is done stays done"
    assert planned_steps([100.0, *[50.0] * 10], 1100) == 11 + 10, "only the last ten steps say how long one is"
    assert planned_steps([0.0], 400) == 1, "steps without tokens would never end"
