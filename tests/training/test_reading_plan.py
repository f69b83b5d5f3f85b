"""What a method declares that its credit and admission look at is true, and what is derived from it saves forwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.test_step_methods import COVRL, METHODS, method_run, sampled

from covrl.algorithms.base import Algorithm
from covrl.records import Output, ScoredGroup
from covrl.training.losses import outputs
from covrl.training.reading_plan import ReadingPlan, joined, reading_plan
from covrl.training.scores import score_groups

CASES = [*METHODS, *COVRL]


class Sealed(Mapping[Output, Tensor]):
    """Scores of which some may not be looked at, not even to see whether they are there."""

    def __init__(self, values: Mapping[Output, Tensor], hidden: set[Output]) -> None:
        self.values_, self.hidden = values, hidden

    def __getitem__(self, key: Output) -> Tensor:
        assert key not in self.hidden, f"looked at {key}"
        return self.values_[key]

    def __contains__(self, key: object) -> bool:
        assert key not in self.hidden, f"looked for {key}"
        return key in self.values_

    def __iter__(self) -> Iterator[Output]:
        assert not self.hidden, "looked at all scores"
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


def sealed(algorithm: Algorithm, groups: list[ScoredGroup], reads: Any) -> list[ScoredGroup]:
    """The groups with the scores hidden that are of models which ``reads`` does not name."""
    model_of = {context.name: context.model for context in algorithm.contexts}
    hidden = {
        output
        for reading in algorithm.scoring
        for output in outputs([reading])
        if reads != "all" and not {model_of[name] for name in reading.contexts} <= set(reads)
    }
    return [
        replace(g, scores=tuple(replace(s, values=Sealed(s.values, hidden)) for s in g.scores))  # ty: ignore[invalid-argument-type]
        for g in groups
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_method_looks_at_no_scores_but_those_that_it_declares(case: str) -> None:
    run = method_run(case)
    algorithm, scored = run.algorithm, score_groups(run, sampled(run))
    kept = algorithm.admit(sealed(algorithm, scored, algorithm.admission_reads)).kept
    assert kept
    for stream in algorithm.streams:
        assert stream.denominator(kept) > 0
    kept = method_run(case).algorithm.admit(scored).kept  # a fresh one: a filter may remember the batch before
    assert algorithm.credit(sealed(algorithm, kept, algorithm.credit_reads))


@pytest.mark.parametrize("case", CASES)
def test_credit_of_a_group_needs_that_group_alone_where_a_method_says_so(case: str) -> None:
    run = method_run(case)
    kept = run.algorithm.admit(score_groups(run, sampled(run))).kept
    together = run.algorithm.credit(kept)
    alone = [run.algorithm.credit([group])[0] for group in kept]
    same = all(
        a.weights.keys() == b.weights.keys() and all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)
        for one, other in zip(together, alone, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert same or run.algorithm.credit_scope == "batch"


def test_a_method_that_declares_nothing_is_scored_before() -> None:
    """Declarations are for speed: what a method does not say is taken for the case that is always right."""
    algorithm = method_run("covrl").algorithm
    defaults = {name: getattr(Algorithm, name) for name in ("credit_reads", "admission_reads", "credit_scope")}
    algorithm.__dict__.update(defaults)
    assert reading_plan(algorithm, on_policy=True) == ReadingPlan(algorithm.scoring, (), algorithm.training)


@pytest.mark.parametrize("case", CASES)
def test_off_policy_everything_is_scored_before(case: str) -> None:
    algorithm = method_run(case).algorithm
    assert reading_plan(algorithm, on_policy=False) == ReadingPlan(algorithm.scoring, (), algorithm.training)


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_plan_all_that_is_scored_is_read_once(case: str) -> None:
    """Before, off the training forward, or in a pass; and what is trained is read in every plan."""
    algorithm = method_run(case).algorithm
    plan = reading_plan(algorithm, on_policy=True)
    wanted = set(outputs(algorithm.scoring))
    if plan.in_pass:
        assert set(outputs(plan.in_pass)) == wanted | set(outputs(algorithm.training))
        assert (plan.before, plan.read_off) == ((), ())
    else:
        assert sorted([*outputs(plan.before), *outputs(plan.read_off)]) == sorted(wanted)
        assert set(outputs(plan.training)) == set(outputs(algorithm.training)) | set(outputs(plan.read_off))


def test_where_streams_are_measured_no_pass_credits() -> None:
    algorithm = method_run("covrl").algorithm
    assert reading_plan(algorithm, on_policy=True).in_pass
    assert reading_plan(algorithm, on_policy=True, single_pass=False) == reading_plan(algorithm, on_policy=False)


def test_a_wider_reading_takes_the_place_of_a_narrower_one() -> None:
    algorithm = method_run("covrl").algorithm
    assert joined(algorithm.training, algorithm.scoring) == algorithm.scoring
    assert joined(algorithm.scoring, algorithm.training) == algorithm.scoring
