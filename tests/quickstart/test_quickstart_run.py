"""The quickstart as a function: what comes first, and that the base is measured as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from covrl.quickstart import run as quickstart_run
from covrl.quickstart.run import Measured, load_config, measure, quickstart
from covrl.reporting.terminal import Progress
from covrl.training.run import Run

SMALL = ["training.steps=1", "training.problems_per_step=2", "training.learning_rate=0.01", "evaluation.every=0"]


def test_training_comes_first_and_the_base_is_measured_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user sees the first step at once; the three evaluations of the base take longer than that step."""
    events: list[object] = []
    train = quickstart_run.train_run

    def few(run: Run, test: list, longer: list) -> Measured:
        events.append(("measured after", run.done))
        return measure(run, test[:12], longer[:4])

    def trained(run: Run, *given: object) -> object:
        events.append(("trained from", few(run, *problems)))
        return train(run, *given)  # ty: ignore[invalid-argument-type]

    task = quickstart_run.find_task("digits")
    problems = task.problems("test"), task.problems("longer")
    monkeypatch.setattr(quickstart_run, "measure", few)
    monkeypatch.setattr(quickstart_run, "train_run", trained)
    found = quickstart(load_config(SMALL), tmp_path / "run", Progress(total_steps=1, chance=task.chance(), title="t"))
    assert [e for e, _ in events] == ["measured after", "trained from", "measured after", "measured after"]
    before = next(what for name, what in events if name == "trained from")
    assert texts(found.base) == texts(before)
    assert texts(found.trained) != texts(before), "at this rate one step changes what is written"


def texts(measured: Measured) -> list[str]:
    return [g.rollout.text for found in (measured.greedy, measured.sampled, measured.longer) for g in found.graded]
