"""Branches, auxiliary and unscored rollouts, and given prefixes in whole steps: what is read, and what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.test_step import PROBLEMS, gradient, make_run
from training.test_step_methods import method_run

from covrl.algorithms.base import Algorithm, Stream
from covrl.generation.base import Draw
from covrl.objectives import trace_tokens
from covrl.records import Credit, Output, Problem, Request, Rollout, ScoredGroup
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, PassLimits, Reading, make_unit, score
from covrl.training.reading_plan import plan_of_step
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import credit, take_step

P = Output("trace", "prior")
DRAW = Draw(0, 0)
LIMITS = PassLimits(1 << 20, 1 << 30)


class Branching(Algorithm):
    """Two roots a problem, then of each a branch that trains and one that is neither read nor trained.

    A branch that trains is worth one more than the tokens of the unread one of its root; a root is worth one.
    """

    name, paper, evidence = "branching", "none", "a test"
    one_update = "its loss has no ratio"

    def __init__(self, prompts: Any, merges: bool) -> None:
        self.prompts = prompts
        self.contexts = (Context("prior", prompts.response_row),)
        self.scoring = self.training = (Reading("trace", ("prior",), log_prob, ("prior",)),)
        if merges:
            self.admission_reads, self.credit_scope = (), "group"
        self.streams = (Stream("policy", "trace", 1.0, trace_tokens),)

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        prompt = self.prompts.prior(problem)
        if not history:
            return [Request(problem.id, i, prompt, "prior") for i in range(2)]
        if len(history) > 2:
            return []
        cuts = [(r, min(3, max(len(r.trace_ids) - 1, 0))) for r in history]
        trained = [r.branch(k, 2 + i, max_tokens=6) for i, (r, k) in enumerate(cuts)]
        probes = [r.branch(k, 4 + i, max_tokens=4) for i, (r, k) in enumerate(cuts)]
        return trained + [replace(p, trains=False, scored=False) for p in probes]

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        return [self._of(group) for group in groups]

    def _of(self, group: ScoredGroup) -> list[Credit]:
        probes = {r.request.parent: len(r.trace_ids) for r in group.rollouts if not r.request.scored}
        worth = [1.0 + (0 if r.request.parent is None else probes[r.request.parent]) for r in group.rollouts]
        scored = zip(worth, group.scores, strict=True)
        return [Credit({"policy": torch.full_like(s[P], w)}) if P in s else Credit() for w, s in scored]

    def loss(self, tokens: Any) -> dict[str, Tensor]:
        return {"policy": -tokens.new[P]}


def branching_run(merges: bool = False) -> Run:
    run = make_run()
    run.algorithm = Branching(run.prompts, merges)
    return run


def own_log_probs(run: Run, rollout: Rollout) -> Tensor:
    """``[T]`` by a plain forward on prompt, prefix and trace, with gradient."""
    before = run.prompts.prior(PROBLEMS[int(rollout.request.problem_id[1])]) + rollout.request.prefix_ids
    ids = torch.tensor([before + rollout.trace_ids])
    logs = torch.log_softmax(run.models["policy"].model(ids).logits[0, len(before) - 1 : -1], -1)
    return logs.gather(1, ids[0, len(before) :, None])[:, 0]


def test_a_method_branches_in_its_plan() -> None:
    """The second wave goes on from the first, is scored after prompt and prefix, and what is not scored is not read."""
    run = branching_run()
    groups = score_groups(run, sample(run, PROBLEMS, DRAW))
    for group in groups:
        assert [r.request.index for r in group.rollouts] == list(range(6))
        for r, scores in zip(group.rollouts, group.scores, strict=True):
            if r.request.parent is not None:
                root = group.rollouts[r.request.parent]
                assert r.request.prefix_ids == root.trace_ids[: len(r.request.prefix_ids)]
                assert r.text.startswith(run.prompts.tokenizer.decode(list(r.request.prefix_ids)))
            if not r.request.scored:
                assert (scores.values, scores.tokens) == ({}, 0)
                continue
            assert scores.tokens == len(run.prompts.prior(group.problem) + r.whole_ids)
            assert torch.allclose(scores[P], own_log_probs(run, r).detach(), atol=1e-10)
    assert sum(len(r.request.prefix_ids) for g in groups for r in g.rollouts) > 20


def test_an_unscored_rollout_costs_no_row() -> None:
    run = branching_run()
    pairs = [(g.problem, r) for g in sample(run, PROBLEMS, DRAW) for r in g.rollouts]
    model, read = run.models["policy"], []
    own = model.states
    model.states = lambda rows: read.extend(rows) or own(rows)  # ty: ignore
    made = (run.algorithm.contexts, run.algorithm.scoring)
    score(run.models, *made, pairs, LIMITS.tokens, LIMITS.logits_bytes)
    assert len(read) == sum(r.request.scored for _, r in pairs) == len(pairs) * 2 // 3
    read.clear()
    unscored = [pair for pair in pairs if not pair[1].request.scored]
    assert score(run.models, *made, unscored, LIMITS.tokens, LIMITS.logits_bytes)[0].values == {}
    assert read == []
    assert make_unit(0, *made, *unscored[0]).rows == {}


def test_the_gradient_is_that_of_the_sampled_tokens_alone_whatever_the_packs() -> None:
    """Prefixes are read and carry no loss; tokens of auxiliary traces are in no denominator."""
    run = branching_run()
    groups = score_groups(run, sample(run, PROBLEMS, DRAW))
    credits = run.algorithm.credit(groups)
    found = gradient(run, LIMITS, groups, credits)
    for limits in (PassLimits(1, 1), PassLimits(90, 97 * 4 * 3)):
        other = gradient(run, limits, groups, credits)
        assert float((other - found).norm() / found.norm()) < 1e-10
    for p in run.parameters:
        p.grad = None
    trained = [(r, c) for g, row in zip(groups, credits, strict=True) for r, c in zip(g.rollouts, row, strict=True)]
    trained = [(r, c) for r, c in trained if r.request.trains]
    terms = [-(c.weights["policy"] * own_log_probs(run, r)).sum() for r, c in trained]
    (torch.stack(terms).sum() / sum(len(r.trace_ids) for r, _ in trained)).backward()
    plain = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in run.parameters])
    assert float(plain.norm()) > 0
    assert float((found - plain).norm() / plain.norm()) < 1e-10


@pytest.mark.parametrize("merges", [False, True])
def test_whole_steps_with_branches(merges: bool) -> None:
    """Read before or in the training forward: the same weights come out."""
    run, other = branching_run(merges), branching_run(False)
    for one in (run, other):
        report = take_step(one)
        assert report.metrics["groups/kept"] == 5
    assert bool(plan_of_step(run, run.config.training.steps - 1).in_pass) == merges
    for p, q in zip(run.parameters, other.parameters, strict=True):
        assert torch.allclose(p, q, atol=1e-9)


@pytest.mark.parametrize("name", ["covrl", "grpo", "ppo"])
def test_tokens_that_the_policy_did_not_write_carry_no_loss(name: str) -> None:
    """As a tool's output would: read by all that comes after, in no stream on the trace and in no count of tokens."""
    run = method_run(name)
    groups = [replace(g, rollouts=tuple(map(with_output, g.rollouts))) for g in sample(run, PROBLEMS, DRAW)]
    kept = run.algorithm.admit(score_groups(run, groups)).kept
    credits = credit(run, kept)
    on_trace = [s.name for s in run.algorithm.streams if s.span == "trace"]
    seen = 0
    for row in credits:
        for own in row:
            for stream in on_trace:
                if stream in own.weights:
                    assert not own.weights[stream][1:3].any()
                    seen += bool(own.weights[stream].any())
    assert seen
    assert trace_tokens(kept) == sum(r.loss_tokens for g in kept for r in g.rollouts)
    assert trace_tokens(kept) < sum(len(r.trace_ids) for g in kept for r in g.rollouts)
    found = gradient(run, LIMITS, kept, credits)
    zeroed = [[replace(own, weights=dict(own.weights)) for own in row] for row in run.algorithm.credit(kept)]
    for row in zeroed:
        for own in row:
            for stream in on_trace:
                if stream in own.weights:
                    own.weights[stream][1:3] = 0.0  # ty: ignore[invalid-assignment]
    assert float(found.norm()) > 0
    assert float((found - gradient(run, LIMITS, kept, zeroed)).norm() / found.norm()) < 1e-12


def with_output(rollout: Rollout) -> Rollout:
    """Its second and third token came from elsewhere."""
    return replace(rollout, written=tuple(i not in (1, 2) for i in range(len(rollout.trace_ids))))
