"""Short seeded runs that must learn, or must stop and say why. Nothing here is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import character_tokenizer
from training.test_step import make_run

from covrl.api import build
from covrl.errors import TrainingStoppedError
from covrl.generation.base import Draw
from covrl.problems.source import ProblemSource
from covrl.problems.tasks import find_task
from covrl.quickstart.run import load_config
from covrl.records import Problem
from covrl.rewards import likelihood
from covrl.training import loop
from covrl.training.rollouts import sample
from covrl.training.run import Run

SHORT = [
    "training.steps=14",
    "training.learning_rate=6e-4",
    "training.warmup_steps=0",
    "training.schedule='constant'",
    "training.problems_per_step=24",
    "training.stream_norms_every=0",
    "evaluation.every=0",
]


def dev_accuracy(run: Run) -> float:
    assert run.evaluator is not None
    return run.evaluator(find_task("digits").problems("dev")[:200], 0.0, Draw(0, 0)).accuracy


def test_a_short_run_improves_the_base_and_its_control_does_not() -> None:
    ends = {}
    for shuffled in ("false", "true"):
        run = build(load_config([*SHORT, f"problems.shuffle_hints={shuffled}"]))
        before = dev_accuracy(run)
        reports = list(loop.steps(run))
        ends[shuffled] = (before, dev_accuracy(run), reports[0].metrics, reports[-1].metrics)
    before, after, first, last = ends["false"]
    assert before <= 0.1
    assert after >= 0.5
    assert last["reward/prior"] > first["reward/prior"] + 2
    assert ends["true"][1] < after - 0.3
    assert any("unsound lessons" in w for w in reports[0].warnings), "the control's failure has a name"


def test_training_meets_no_problem_of_dev_or_test() -> None:
    run = build(load_config([]))
    held = {p.question for split in ("base", "dev", "test") for p in find_task("digits").problems(split)}
    seen = {p.question for p in run.source.take(2 * len(run.source.problems))}
    assert len(seen) == len(find_task("digits").problems("train"))
    assert not seen & held


def long_answer_run(**algorithm: Any) -> Run:
    """Problems whose answers are 60 tokens, read by a model that gives every character about the same chance."""
    run = make_run(training={"steps": 2}, **algorithm)
    tokenizer = character_tokenizer()
    few = torch.tensor(tokenizer.convert_tokens_to_ids(list("ab;:e")))
    head = run.models["policy"].model.get_output_embeddings()
    with torch.no_grad():  # five likely characters: about 1.6 nats a token
        bias = torch.full((head.weight.shape[0],), -12.0, dtype=head.weight.dtype)
        bias[few] = 0.0
        head.weight *= 0.2
        head.bias = torch.nn.Parameter(bias)
    run.parameters = run.models["policy"].parameters()
    problems = [Problem(f"long{i}", "ab"[i % 2] * 3, "ab" * 29 + "a" * (i % 3)) for i in range(5)]
    run.source = ProblemSource(problems, 0)
    return run


def test_answers_of_60_tokens_train_without_flooring_everything() -> None:
    run = long_answer_run()
    for report in loop.steps(run):
        assert report.metrics["reward/floored_share"] < 0.05
        assert report.metrics["nll/selected_share"] > 0
        assert all(report.metrics[f"grad_norm/{stream}"] > 0 for stream in ("policy", "kl", "nll"))


def test_a_step_whose_answers_are_all_floored_stops_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the growing floor is for: under a fixed one the same run would see no difference between traces."""
    monkeypatch.setattr(likelihood, "FLOOR_TOKENS", 10**9)
    with pytest.raises(TrainingStoppedError, match=r"at the reward's floor.*algorithm\.reward = 'mean'"):
        list(loop.steps(long_answer_run()))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_one_source_alone_is_a_mode_of_its_own(alpha: float) -> None:
    run = make_run(training={"steps": 1}, alpha=alpha)
    (report,) = loop.steps(run)
    present = "prior" if alpha else "posterior"
    assert {n for n in report.metrics if n in ("reward/prior", "reward/posterior", "reward/gap")} == {
        f"reward/{present}"
    }
    assert (report.metrics["loss/nll"] > 0) is bool(alpha)


def test_no_valid_trace_means_no_update() -> None:
    run = make_run(training={"steps": 1})
    run.config = run.config.model_copy(update={"prompts": run.config.prompts.model_copy(update={"close": "☃"})})
    before = [p.detach().clone() for p in run.parameters]
    (report,) = loop.steps(run)
    assert report.metrics["groups/kept"] == 0
    assert report.metrics["trace/invalid_share"] == 1
    assert any("invalid traces" in w for w in report.warnings)
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_a_method_may_ask_for_more_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(training={"steps": 1})
    admit, rounds = run.algorithm.admit, []

    def twice(groups):
        rounds.append(len(groups))
        return admit(groups)._replace(want_more=len(rounds) < 2)

    monkeypatch.setattr(run.algorithm, "admit", twice)
    (report,) = loop.steps(run)
    assert rounds == [5, 10]
    assert report.metrics["groups/kept"] > 5


def test_a_group_is_planned_until_the_method_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler can look at what came back and ask again: here once more for each invalid trace."""
    run = make_run()
    plan = run.algorithm.plan

    def retry(problem, history, draw):
        if not history:
            return plan(problem, history, draw)
        if len(history) > 4:
            return []
        return [replace(r.request, index=4 + i) for i, r in enumerate(history) if not r.valid]

    monkeypatch.setattr(run.algorithm, "plan", retry)
    groups = sample(run, run.source.take(5), Draw(0, 0))
    for group in groups:
        assert len(group.rollouts) == 4 + sum(not r.valid for r in group.rollouts[:4])
