"""The benchmark of the claim: its arms, the order of its cells within the budget, and how outcomes are read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from exact import world
from models import save_tiny
from projects import write_rows

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import claim  # ty: ignore[unresolved-import]
import claim_tasks  # ty: ignore[unresolved-import]
from claim_arms import ARMS, AnswerSFT, AnswerSFTConfig  # ty: ignore[unresolved-import]

from covrl.algorithms.base import Setup
from covrl.generation.base import Draw


def line(arm: str, seed: int, marks: str, rate: float = 1e-5, task: str = "text") -> claim.Line:
    exam = claim.DEV if seed == claim.TUNING_SEED else claim.TEST
    cell = claim.cell_of(arm, task, rate, seed, exam)
    return claim.Line(cell, marks.count("1") / len(marks), marks, 1800.0, 40_000.0)


def finished(**marks: str) -> list[claim.Line]:
    """Tuned and measured on all seeds; every seed of an arm has the same marks."""
    found = []
    for name, row in marks.items():
        arm = name.replace("_", "-")
        found += [line(arm, claim.TUNING_SEED, "10" if rate == 1e-5 else "00", rate) for rate in claim.RATES[arm]]
        found += [line(arm, seed, row) for seed in claim.SEEDS]
    return found


def test_the_answer_without_a_thought_is_fitted_by_its_mean_log_likelihood() -> None:
    run = world.make_run(name="jepo")
    run.algorithm = AnswerSFT(AnswerSFTConfig(), Setup(run.prompts, 1))
    (request,) = run.algorithm.plan(world.PROBLEM, [], Draw(0, 0))
    assert request.prefix_ids == (world.CLOSE,)
    rollout = world.rollout(world.make_run(name="jepo"), (), "prior", True)
    expected = -world.plain_log_probs(run, (world.A,), (world.CLOSE, world.B, world.CLOSE)).mean()
    found, made = world.production_gradient(run, [rollout])
    assert made.losses["nll"] == pytest.approx(float(expected.detach()))
    assert world.relative(found, world.gradient_of(run, expected)) < 1e-9


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_on_every_task_with_these_settings(arm: str, tmp_path: Path) -> None:
    for task in claim_tasks.TASKS:
        (cell, *_) = claim.tuning(arm, task)
        config = claim.cell_config(cell, tmp_path, tmp_path)
        assert config.training.learning_rate == claim.RATES[arm][0]
        assert config.problems.shuffle_hints == (arm == "covrl-shuffled")
        assert config.prompts.posterior_template == "check"
        assert config.evaluation.verifier == claim_tasks.TASKS[task].verifier
    assert {arm.number for arm in ARMS.values()} >= {1, 3, 4, 6, 7, 8}, "the specification's minimum"


def test_cells_come_in_order_and_an_arm_is_measured_at_its_best_rate() -> None:
    todo = list(claim.wanted(["text"], []))
    assert len(todo) == 3 * len(ARMS)
    assert [c.method for c in todo[:4]] == ["covrl"] * 3 + ["covrl-shuffled"]
    tuned = [line("covrl", claim.TUNING_SEED, "10" if rate == 3e-5 else "00", rate) for rate in claim.RATES["covrl"]]
    measured = [cell for cell in claim.wanted(["text"], tuned) if cell.exam == claim.TEST]
    assert [(cell.rate, cell.seed) for cell in measured] == [(3e-5, seed) for seed in claim.SEEDS]
    assert claim.spent(tuned) == pytest.approx(1.5)
    assert list(claim.wanted(["text"], finished(**dict.fromkeys((a.replace("-", "_") for a in ARMS), "10")))) == []


def said(lines: list[claim.Line]) -> list[bool | None]:
    return [there for _, there, _ in claim.readings(lines, "text")]


GOOD, BAD = "1" * 80 + "0" * 20, "1" * 40 + "0" * 60


def test_outcomes_are_read_by_the_table_and_nothing_is_decided_without_its_cells() -> None:
    assert said([]) == [None] * 5
    others = dict.fromkeys(("covrl_shuffled", "jepo", "rationalise", "rationalise_uniform", "answer_sft"), BAD)
    ahead = finished(covrl=GOOD, **others)
    assert said(ahead) == [True, False, False, False, False]
    assert said(finished(covrl=BAD, **others)) == [False, True, True, True, True]
    assert said([found for found in ahead if found.cell.method != "jepo"]) == [None, False, False, None, None]
    found = claim.contrast(ahead, "text", "covrl", "jepo")
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.interval.low == pytest.approx(0.4, abs=0.12)
    assert "not decided" in claim.page([])
    assert "**yes: the claim holds for this model" in claim.page(ahead)


def test_a_worked_sum_has_its_running_totals() -> None:
    asked = "State the final answer to the following arithmetic problem: 4 + 12 - 7 ="
    assert claim_tasks.problem({"question": asked, "answer": "9"}, True)["answer"] == (
        "4 plus 12 is 16, and 16 minus 7 is 9"
    )
    assert claim_tasks.problem({"question": asked, "answer": "9"}, False)["answer"] == "9"


def test_a_cell_is_a_line_when_it_is_finished_and_the_budget_ends_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny("llama", tmp_path / "model")
    problems = tmp_path / "out" / "problems" / "numeric"
    problems.mkdir(parents=True)
    for split in claim_tasks.SIZES:
        rows = [{"id": f"{split}{i}", "question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(4)]
        write_rows(problems / f"{split}.jsonl", rows)
    monkeypatch.setattr(claim, "TOKENS", 100)
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path), "--model", str(tmp_path / "model")]
    small = ["--set", "generation.max_trace_tokens=8", "--set", "training.rollouts_per_problem=2"]
    monkeypatch.setattr(sys, "argv", ["claim.py", "--tasks", "numeric", "--most", "1", *folders, *small])
    assert claim.main() == 0
    (done,) = claim.read_lines(tmp_path / "claim.jsonl")
    assert (done.cell.method, len(done.marks)) == ("covrl", 4)
    assert done.seconds > 0
    assert done.generated >= 100
    assert "1/3" in (tmp_path / "claim.md").read_text()
    monkeypatch.setattr(claim, "HOURS", done.seconds / 7200)
    assert claim.main() == 0
    assert "the budget" in capsys.readouterr().out
    assert len(claim.read_lines(tmp_path / "claim.jsonl")) == 1
