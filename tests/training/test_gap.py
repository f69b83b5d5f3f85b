"""The sampler's gap is measured on every step, whatever a step reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training.test_step import make_run
from training.test_step_methods import METHODS, method_run

from covrl.records import StepReport
from covrl.training import loop, mismatch
from covrl.training.run import Run

NAMES = ("sampler/gap_mean", "sampler/gap_max", "sampler/kl", "sampler/truncated_share")


def step(run: Run) -> StepReport:
    report = next(loop.steps(run))
    assert all(name in report.metrics for name in NAMES), report.metrics
    assert 0 <= report.metrics["sampler/gap_max"] < 1e-6
    return report


@pytest.mark.parametrize("case", [*METHODS, "covrl"])
def test_every_method_measures_its_sampler_on_a_step(case: str) -> None:
    run = make_run() if case == "covrl" else method_run(case)
    run.config = run.config.model_copy(
        update={"training": run.config.training.model_copy(update={"stream_norms_every": 0})}
    )
    step(run)


@pytest.mark.parametrize("case", ["grpo", "dapo", "rationalise", "gspo"])
def test_a_step_without_any_weight_measures_it_on_a_few_traces(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all rewards are equal nothing is trained on; the traces are those of the weights before the update."""
    run = method_run(case)
    run.reward = (lambda problem, text: 1.0) if run.algorithm.verified else None
    read: list[int] = []
    of_few = mismatch.Mismatch.of_few

    def counted(self: Any, groups: Any, reader: Any) -> dict[str, float]:
        return of_few(self, groups, lambda c, r, pairs: read.append(len(pairs)) or reader(c, r, pairs))

    monkeypatch.setattr(mismatch.Mismatch, "of_few", counted)
    step(run)
    assert read == [mismatch.FEW]


def test_measuring_a_few_changes_nothing_that_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr("covrl.training.step.sampler_gap", lambda *_: {})
        run = method_run("rationalise")
        list(loop.steps(run))
        found.append([p.detach().clone() for p in run.parameters])
    assert all(map(torch.equal, *found))


def test_a_step_that_reads_its_traces_anyway_reads_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("read for the measurement alone")

    monkeypatch.setattr(mismatch.Mismatch, "of_few", never)
    step(make_run())
    step(method_run("grpo"))
    step(method_run("latro"))
