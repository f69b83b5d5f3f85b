"""How much the answer takes from its trace: exact values, the same whatever the packs, and what is said of a fall."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from exact import world
from exact.world import A, B
from hypothesis import given
from hypothesis import strategies as st
from training.test_step import make_run

from covrl.evaluation.information import FIRST, entropy, groups_watched, information, information_metrics
from covrl.evaluation.thoughts import ANSWER, Baseline, closed_thoughts, thought_baselines, thought_metrics
from covrl.generation.base import Draw
from covrl.guards.reading_watch import ReadingWatch, Seen, reading_warnings
from covrl.records import Group, Output, Problem, ScoredGroup
from covrl.scoring.pack import PassLimits
from covrl.training import loop
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups, scores_of
from covrl.training.step import take_step

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], (LOG2, 0.0)),
        ([[0.5, 0.5], [0.5, 0.5]], (0.0, LOG2)),
        ([[1.0, 0.0], [1.0, 0.0]], (0.0, 0.0)),
        # H(.75, .25) − ½ H(.5, .5)
        ([[1.0, 0.0], [0.5, 0.5]], (0.562335 - 0.5 * LOG2, 0.5 * LOG2)),
    ],
)
def test_golden_values(rows: list[list[float]], expected: tuple[float, float]) -> None:
    assert information(torch.tensor(rows)) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.lists(st.floats(0.01, 5), min_size=4, max_size=4), min_size=2, max_size=6))
def test_it_is_the_mean_divergence_from_the_mean_and_at_most_log_n(weights: list[list[float]]) -> None:
    p = torch.tensor(weights, dtype=torch.float64)
    p = p / p.sum(dim=1, keepdim=True)
    found = information(p)
    divergence = float((p * (p / p.mean(dim=0)).log()).sum(dim=1).mean())
    assert found.information == pytest.approx(divergence, abs=1e-12)
    assert 0 <= found.information <= math.log(len(p)) + 1e-12
    assert found.entropy == pytest.approx(float(entropy(p).mean()))


def test_as_many_groups_are_watched_as_memory_allows_and_at_least_one() -> None:
    assert groups_watched(151_936, 8) == 13
    assert groups_watched(49_152, 8) == 42
    assert groups_watched(1_000_000, 512) == 1


def by_hand(run: Run, groups: list[ScoredGroup]) -> tuple[float, float]:
    """From the model's own forward, one row at a time."""
    found = []
    for group in groups:
        each = []
        for rollout in group.rollouts:
            if rollout.valid:
                row = run.prompts.prior_row(group.problem, rollout)
                with torch.no_grad():
                    logits = run.models["policy"].model(torch.tensor([row.ids[: row.spans["answer"].start]])).logits
                each.append(torch.softmax(logits[0, -1], dim=-1))
        if len(each) > 1:
            found.append(information(torch.stack(each)))
    return sum(f.information for f in found) / len(found), sum(f.entropy for f in found) / len(found)


@pytest.mark.parametrize("name", ["covrl", "jepo", "rationalise"])
@pytest.mark.parametrize("tokens", [1, 150, 1 << 20])
def test_a_step_measures_what_the_model_gives_whatever_its_passes(name: str, tokens: int) -> None:
    """Where a group is read in its training pass, and where it is too large for one and scored first."""
    run = make_run(name=name, training={"learning_rate": 1e-9, "stream_norms_every": 0, "steps": 3})
    run.guard.config = run.config = run.config.model_copy(
        update={"guards": run.config.guards.model_copy(update={"publish_check_every": 0})}
    )
    run.limits = PassLimits(tokens, 1 << 20)
    run.done = 1  # the first step measures streams, which scores first
    groups = score_groups(run, sample(run, run.source.take(5), Draw(run.config.training.seed, 1)))
    run.source.load_state_dict(make_run().source.state_dict())
    kept = run.algorithm.admit(groups).kept
    report = take_step(run)
    found = report.metrics["answer/information"], report.metrics["answer/entropy"]
    assert found == pytest.approx(by_hand(run, kept), rel=1e-5)
    assert found[0] > 0


def test_only_the_first_groups_keep_their_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covrl.training.scores.groups_watched", lambda *_: 2)
    run = make_run()
    groups = score_groups(run, sample(run, run.source.take(5), Draw(0, 0)))
    has = [any(FIRST in s.values for s in group.scores) for group in groups]
    assert has[2:] == [False] * 3
    assert any(has[:2])
    assert "answer/information" in take_step(run).metrics


def test_methods_that_score_no_answer_measure_nothing() -> None:
    run = make_run(name="grpo")
    run.reward = lambda problem, text: float(len(text))
    metrics = take_step(run).metrics
    assert not [name for name in metrics if name.startswith(("answer/", "thought/"))]
    assert information_metrics([]) == {}


@pytest.mark.parametrize("rounding", [-1e-12, 0.0, 1e-12])
def test_a_trace_without_a_token_helps_no_answer_whatever_rounding_says(rounding: float) -> None:
    run = world.make_run()
    (scored,) = score_groups(run, [Group(world.PROBLEM, (world.rollout(run, (2,), "prior", False),))])
    same = float(scored.scores[0][ANSWER].sum())
    for empty, helps in ((same + rounding, 0.0), (same - 0.01, 1.0)):
        found = thought_metrics([scored], {world.PROBLEM.id: Baseline(empty, same)})
        assert found["thought/helps_share"] == helps


def test_gain_and_read_are_those_of_the_model_by_hand() -> None:
    run = world.make_run(group=3)
    problems = (world.PROBLEM, Problem("other", "b", "a"))
    drawn = (((A, 2), (B, 2), (A, B)), ((B, B, 2), (A, A)))  # the last one of each does not close
    groups = [
        Group(p, tuple(world.rollout(run, ids, "prior", False, p, i) for i, ids in enumerate(rows)))
        for p, rows in zip(problems, drawn, strict=True)
    ]
    scored = score_groups(run, groups)
    baselines = thought_baselines(partial(scores_of, run), run.prompts, groups)
    found = thought_metrics(scored, baselines)

    def log_p(question: int, thought: tuple[int, ...], answer: tuple[int, ...]) -> float:
        return float(world.plain_log_probs(run, (question, *thought), answer).sum().detach())

    first = (log_p(A, (A, 2), (B, 2)) + log_p(A, (B, 2), (B, 2))) / 2
    second = log_p(B, (B, B, 2), (A, 2))
    gains = first - log_p(A, (2,), (B, 2)), second - log_p(B, (2,), (A, 2))
    reads = first - log_p(A, (B, B, 2), (B, 2)), second - log_p(B, (A, 2), (A, 2))
    empty = log_p(A, (2,), (B, 2)), log_p(B, (2,), (A, 2))
    each = [log_p(A, ids, (B, 2)) > empty[0] for ids in ((A, 2), (B, 2))] + [gains[1] > 0]
    assert found == pytest.approx(
        {
            "thought/gain": sum(gains) / 2,
            "thought/read": sum(reads) / 2,
            "thought/helps_share": sum(each) / 3,
            "thought/empty_log_prob": sum(empty) / 2,
        }
    )


def test_a_problem_alone_has_no_other_trace_to_be_compared_with() -> None:
    run = world.make_run(group=2)
    rollouts = tuple(world.rollout(run, (A, 2), "prior", False, index=i) for i in range(2))
    assert thought_baselines(partial(scores_of, run), run.prompts, [Group(world.PROBLEM, rollouts)]) == {}


def test_of_both_prompts_traces_those_of_the_prior_count() -> None:
    run = world.make_run(group=2)
    both = tuple(world.rollout(run, (A, 2), source, False, index=i) for i, source in enumerate(("posterior", "prior")))
    assert [r.source for r in closed_thoughts(run.prompts, Group(world.PROBLEM, both))] == ["prior"]
    assert [r.source for r in closed_thoughts(run.prompts, Group(world.PROBLEM, both[:1]))] == ["posterior"]


def test_looks_at_thoughts_come_on_their_steps() -> None:
    run = make_run(training={"steps": 7})
    run.config = run.config.model_copy(update={"report": run.config.report.model_copy(update={"thoughts_every": 3})})
    seen = [r.step for r in loop.steps(run) if "thought/gain" in r.metrics]
    assert seen == [1, 3, 6, 7]


# Measured on a real model (start, and after 40 steps) and on the digits task.
HEDGED = Seen(1.08, 0.03, -12.0, 46), Seen(0.016, 1.78, -2.0, 14)
READ = Seen(1.08, 0.03, 0.05, 30), Seen(0.49, 0.50, 0.2, 14)
HEALTHY = Seen(0.98, 0.127, -10.1, 11), Seen(0.02, 0.11, -0.3, 11)


def test_hedging_is_named_and_agreeing_traces_are_not() -> None:
    found = reading_warnings(*HEDGED)
    assert [w.partition(":")[0] for w in found] == ["unread traces", "vanishing thoughts"]
    assert "1.08 to 0.02 nats" in found[0]
    assert reading_warnings(*HEALTHY) == []
    assert reading_warnings(HEALTHY[0], HEALTHY[1]._replace(length=4)) == []


def test_each_warning_wants_all_its_signs() -> None:
    start, now = HEDGED
    names = lambda a, b: [w.partition(":")[0] for w in reading_warnings(a, b)]  # noqa: E731
    assert names(start, now._replace(length=40)) == ["unread traces"]
    assert names(start, now._replace(reward=-13.0)) == ["vanishing thoughts"]
    assert names(start, now._replace(information=0.3)) == ["vanishing thoughts"]
    assert names(start, now._replace(information=0.6)) == []
    assert names(*READ) == ["vanishing thoughts"]
    assert names(start._replace(information=0.01), now) == []


def metrics(seen: Seen) -> dict[str, float]:
    names = ("answer/information", "answer/entropy", "reward/prior", "length/prior")
    return dict(zip(names, seen, strict=True))


def test_the_watch_compares_first_and_last_steps_and_goes_on_from_its_state() -> None:
    watch = ReadingWatch()
    said = [watch.step(metrics(HEDGED[0])) for _ in range(3)] + [watch.step(metrics(HEDGED[1])) for _ in range(2)]
    assert not any(said)
    assert watch.step({"time/step": 1.0}) == []
    other = ReadingWatch()
    other.load_state_dict(watch.state_dict())
    assert watch.step(metrics(HEDGED[1])) == other.step(metrics(HEDGED[1]))
    assert watch.last == other.last
    assert watch.step(metrics(HEDGED[1]))[0].startswith("unread traces")
    other.load_state_dict({})
    assert (other.first, list(other.last)) == ([], [])


def test_the_watch_is_part_of_what_the_guards_remember() -> None:
    first, second = make_run().guard, make_run().guard
    first.reading.step(metrics(HEDGED[0]))
    second.load_state_dict(first.state_dict())
    assert second.reading.first == [HEDGED[0]]


def test_a_step_that_is_not_finite_is_not_counted() -> None:
    watch = ReadingWatch()
    watch.step(metrics(HEDGED[0]._replace(reward=math.nan)))
    assert watch.first == []


def ablated(name: str, **settings: Any) -> tuple[Run, list[ScoredGroup]]:
    run = make_run(name=name, **settings)
    return run, run.algorithm.admit(score_groups(run, sample(run, run.source.take(5), Draw(0, 0)))).kept


@pytest.mark.parametrize("name", ["covrl", "jepo"])
def test_the_answer_is_trained_only_after_traces_that_make_it_likelier_than_none(name: str) -> None:
    run, groups = ablated(name, nll="read")
    plain = make_run(name=name).algorithm
    kept = left = 0
    for group, row, usual in zip(groups, run.algorithm.credit(groups), plain.credit(groups), strict=True):
        scores = group.scores
        empty = next(float(s.values[Output("direct", "direct")].sum()) for s in scores)
        for s, mine, before in zip(scores, row, usual, strict=True):
            assert torch.equal(mine.weights["policy"], before.weights["policy"])
            reads = ("answer", "prior") in s and float(s["answer", "prior"].sum()) > empty
            assert ("nll" in mine.weights) == (reads and "nll" in before.weights)
            kept += "nll" in mine.weights
            left += "nll" in before.weights and not reads
    assert kept
    assert left


def test_what_a_trace_adds_to_the_answer_is_a_reward_that_is_never_below_none() -> None:
    run, groups = ablated("covrl", reward="gain")
    for group, row in zip(groups, run.algorithm.credit(groups), strict=True):
        empty = next(float(s.values[Output("direct", "direct")].sum()) for s in group.scores)
        valid = [
            max(float(s["answer", "prior"].sum()) - empty, 0.0)
            for r, s in zip(group.rollouts, group.scores, strict=True)
            if r.valid
        ]
        assert [c.reward for c, r in zip(row, group.rollouts, strict=True) if r.valid] == pytest.approx(valid)
        worst = min(valid) - 1
        assert all(c.reward == pytest.approx(worst) for c, r in zip(row, group.rollouts, strict=True) if not r.valid)
