"""Invariances of every method's gradient: packing, chunking, order, dropped rows, prompts that are read once.

METHODS takes further names. CoVRL's packing, chunking and dropped rows are in test_step.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.passes import passes
from training.test_step import PROBLEMS, gradient, make_run

from covrl.generation.base import Draw
from covrl.models.copies import frozen_copy
from covrl.models.critic import Critic, HeadOnTrunk
from covrl.models.shared import lay_out
from covrl.records import Credit, Group, Rollout, ScoredGroup, Span
from covrl.scoring.pack import PassLimits, make_unit, padded_tokens
from covrl.training import loop
from covrl.training.gradient import add_gradient
from covrl.training.losses import outputs
from covrl.training.reading_plan import ReadingPlan, plan_of_step, reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "verifree": ("verifree", {}),
    "jepo": ("jepo", {}),
    "jepo, multi, kl": ("jepo", {"bound": "multi", "kl_weight": 0.1}),
    "latro": ("latro", {}),
    "latro, sft": ("latro", {"sft_penalty": 1.0, "unfinished": "worst"}),
    "rationalise": ("rationalise", {}),
    "opsd": ("opsd", {}),
    "nrt": ("nrt", {}),
    "ravr": ("ravr", {}),
    "rlpr": ("rlpr", {}),
    "nover": ("nover", {}),
    "grpo": ("grpo", {}),
    "grpo, exact kl and entropy": ("grpo", {"kl": "exact", "kl_weight": 0.1, "entropy_weight": 0.1}),
    "grpo, posterior control": ("grpo", {"posterior_share": 0.5}),
    "dr_grpo": ("dr_grpo", {}),
    "dapo": ("dapo", {"overlong_buffer": 8}),
    "rloo": ("rloo", {}),
    "reinforce_pp": ("reinforce_pp", {}),
    "gspo": ("gspo", {}),
    "cispo": ("cispo", {}),
    "psr": ("psr", {}),
    "nsr": ("nsr", {"denominator": "kept"}),
    "w_reinforce": ("w_reinforce", {}),
    "rapo": ("rapo", {}),
    "rapo, full": ("rapo", {"penalty": "fkl_full"}),
    "dash": ("dash", {}),
    "dash, paper": ("dash", {"filter": "paper"}),
    "rover": ("rover", {}),
    "ppo": ("ppo", {}),
    "ppo, on the trunk, kl in the reward": (
        "ppo",
        {"critic": "trunk", "kl": "k1", "kl_in": "reward", "kl_weight": 0.1, "whiten": False},
    ),
    "vineppo": ("vineppo", {"continuations": 2, "steps": "sentences"}),
    "cure": ("cure", {}),
    "cure, per parent": ("cure", {"branches": 1, "baseline": "per_parent", "resample": False}),
    "clip_delta": ("clip_delta", {}),
    "tempo": ("tempo", {}),
    "thr": ("thr", {"kl": "k3", "kl_weight": 0.1}),
    "nthr": ("nthr", {}),
    "tw_grpo": ("tw_grpo", {}),
    "steer": ("steer", {}),
    "steer, linear and exact": ("steer", {"weights": "linear", "metric": "exact", "aggregation": "sequence_mean"}),
    "dhpo": ("dhpo", {"gate": "high_entropy"}),
    "c3po": ("c3po", {"budget": 400, "cut": "token"}),
    "grpo_lambda": ("grpo_lambda", {"top_share": 0.5}),
    "train_long_think_short": ("train_long_think_short", {"start": 30, "end": 10, "instruction": "{budget}"}),
    "rlsp": ("rlsp", {"exploration": 5.0}),
    "prorl": ("prorl", {"kl_weight": 0.1}),
    "prorl, second version": ("prorl", {"normalise": "batch", "kl": "k2", "kl_weight": 0.1, "resample": False}),
    "a_star_po": ("a_star_po", {"estimate": "zero", "beta": 0.1}),
    "recap": ("recap", {}),
}


COVRL: dict[str, tuple[str, dict[str, Any]]] = {
    "covrl": ("covrl", {}),
    "covrl, sampled kl": ("covrl", {"kl": "sampled", "ratio": "mixture"}),
    "covrl, contrast": ("covrl", {"contrast": 0.5}),
    "covrl, exact nll and kl in return": ("covrl", {"nll": "exact", "kl_in_return": True}),
}


def method_run(case: str, dtype: str = "float64", **more: Any) -> Run:
    """A run of the method; models beside the policy are copies that have moved away from it."""
    name, settings = (METHODS | COVRL)[case]
    run = make_run(dtype=dtype, name=name, **settings | more)
    run.reward = (lambda problem, text: float(len(text) % 2)) if run.algorithm.verified else None
    for i, spec in enumerate(run.algorithm.models):
        beside = HeadOnTrunk(run.models["policy"]) if spec.on_trunk else frozen_copy(run.models["policy"])
        beside = Critic(beside) if spec.trainable and not spec.on_trunk else beside
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in beside.own_weights():
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        run.models[spec.name] = beside
    run.take_parameters()
    run.step_scorer = lambda asked: [tuple(len(step) % 5 / 5 for step in one.steps) for one in asked]
    return run


DRAWN: dict[str, list[Group]] = {}


def sampled(run: Run) -> list[Group]:
    """What a run samples before its first step: frozen records, so that tests of the same settings share them."""
    settings = run.config.model_dump_json()
    if settings not in DRAWN:
        DRAWN[settings] = _sampled(run)
    return DRAWN[settings]


def _sampled(run: Run) -> list[Group]:
    groups = sample(run, PROBLEMS, Draw(0, 0))
    if run.algorithm.samples == "response" and not branched(groups):
        return [replace(g, rollouts=tuple(_answered(run, r) for r in g.rollouts)) for g in groups]
    return groups


def branched(groups: Sequence[Group] | Sequence[ScoredGroup]) -> bool:
    """Whether some rollouts go on from others, which have to stay as they were sampled."""
    return any(r.request.parent is not None for g in groups for r in g.rollouts)


def _answered(run: Run, rollout: Rollout) -> Rollout:
    """An untrained model hardly ever ends a response: where the thought was closed, every other one gets an answer."""
    thought = run.prompts.thought(rollout)
    if thought is None or rollout.request.index % 2:
        return rollout
    said = ":" + str(8 * rollout.request.index) + ";"
    ids = thought.trace_ids + run.prompts.encode(said)
    log_probs = (-1.0,) * len(ids)
    steps = (Span(0, 2), Span(2, len(ids))) if rollout.steps else ()
    made = replace(rollout, trace_ids=ids, log_probs=log_probs, finish="closed", text=thought.text + said)
    return replace(made, steps=steps, step_scores=(0.3, 0.8)[: len(steps)])


def credited(run: Run) -> tuple[list[ScoredGroup], list[list[Credit]]]:
    kept = run.algorithm.admit(score_groups(run, sampled(run))).kept
    assert len(kept) >= 2
    finishes = {r.finish for g in kept for r in g.rollouts}
    assert branched(kept) or ("closed" in finishes and len(finishes) > 1)
    return kept, run.algorithm.credit(kept)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("case", METHODS)
def test_packs_chunks_and_order_do_not_change_the_gradient(case: str, dtype: str, tolerance: float) -> None:
    run = method_run(case, dtype)
    groups, credits = credited(run)
    whole = gradient(run, PassLimits(1 << 20, 1 << 30), groups, credits)
    assert float(whole.norm()) > 0
    for limits in (PassLimits(1, 1), PassLimits(150, 4 * 97 * 3), PassLimits(700, 1 << 20)):
        other = gradient(run, limits, groups, credits)
        assert float((other - whole).norm() / whole.norm()) < tolerance
    turned = gradient(run, PassLimits(200, 1 << 20), groups[::-1], credits[::-1])
    assert float((turned - whole).norm() / whole.norm()) < tolerance


@pytest.mark.parametrize("case", [*METHODS, *COVRL])
def test_the_order_of_a_groups_traces_does_not_change_the_gradient(case: str) -> None:
    run = method_run(case)
    limits, groups = PassLimits(1 << 20, 1 << 30), score_groups(run, sampled(run))
    turned = [ScoredGroup(g.problem, g.rollouts[::-1], g.scores[::-1]) for g in groups]
    found = []
    for scored in (groups, turned):
        algorithm = method_run(case).algorithm  # a fresh one: a filter may remember the batch before
        kept = algorithm.admit(scored).kept
        found.append(gradient(run, limits, kept, algorithm.credit(kept)))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-10


@contextmanager
def tokens_spared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """For each forward that reads shared prompts once, while entered: how many tokens that spared it."""
    seen: list[int] = []

    def noted(rows: Any, *named: Any) -> Any:
        made = lay_out(rows, *named)
        seen.append(sum(len(ids) for ids, _ in rows) - len(made.ids))
        return made

    with monkeypatch.context() as patch:
        patch.setattr("covrl.models.model.lay_out", noted)
        yield seen


@pytest.mark.parametrize("case", [*METHODS, *COVRL])
def test_prompts_that_are_read_once_do_not_change_the_gradient(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded models share prompts; those that tests build do not, so no other test here reads a group that way.

    Scores, credit and gradient all come from the shared path, in small packs and whole, and so does what is read in the
    training forward.
    """
    wide, narrow = PassLimits(1 << 20, 1 << 30), PassLimits(150, 1 << 20)
    run = method_run(case)
    with tokens_spared(monkeypatch) as none:
        plain = gradient(run, wide, *credited(run))
    assert not none
    run = method_run(case)  # a fresh one: a filter may remember the batch before
    for model in run.models.values():
        model.paths = model.paths._replace(shared=True)
    run.limits = narrow
    with tokens_spared(monkeypatch) as spared:
        groups, credits = credited(run)
        assert len(spared) > len(run.models)  # several passes of each
        assert max(spared) > 0
        found = [gradient(run, limits, groups, credits) for limits in (narrow, wide)]
        found.append(on_policy_gradient(run, wide))
    assert all(float((shared - plain).norm() / plain.norm()) < 1e-10 for shared in found)


def on_policy_gradient(run: Run, limits: PassLimits) -> Tensor:
    """The gradient of a first update, which reads and credits as much as it may in its training forward."""
    for p in run.parameters:
        p.grad = None
    plan = reading_plan(run.algorithm, on_policy=True)
    kept = run.algorithm.admit(score_groups(run, sampled(run), plan.before)).kept
    credits = run.algorithm.credit if plan.in_pass else run.algorithm.credit(kept)
    add_gradient(run.algorithm, run.models, kept, credits, limits, plan)
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in run.parameters])


@pytest.mark.parametrize("case", METHODS)
def test_scores_do_not_depend_on_packing(case: str) -> None:
    run = method_run(case)
    groups = sampled(run)
    wide = score_groups(run, groups)
    run.limits = PassLimits(1, 1)
    for a, b in zip(wide, score_groups(run, groups), strict=True):
        for x, y in zip(a.scores, b.scores, strict=True):
            assert x.values.keys() == y.values.keys()
            assert all(torch.allclose(x.values[k], y.values[k], rtol=1e-10, atol=1e-12) for k in x.values)


@pytest.mark.parametrize("case", METHODS)
def test_rows_without_weight_change_nothing_but_the_denominators(case: str) -> None:
    run = method_run(case)
    groups, credits = credited(run)
    idle = [[c if i % 2 else Credit() for i, c in enumerate(row)] for row in credits]
    zeros = [
        [c if i % 2 else Credit({k: torch.zeros_like(v) for k, v in c.weights.items()}) for i, c in enumerate(row)]
        for row in credits
    ]
    limits = PassLimits(1 << 20, 1 << 30)
    assert torch.equal(gradient(run, limits, groups, idle), gradient(run, limits, groups, zeros))


@pytest.mark.parametrize("case", METHODS)
def test_a_step_reports_finite_metrics(case: str) -> None:
    run = method_run(case)
    report = take_step(run)
    assert report.metrics["groups/sampled"] % len(PROBLEMS) == 0
    assert report.metrics["grad_norm/total"] >= 0
    shares = {k: v for k, v in report.metrics.items() if k.endswith("_share") and v == v}
    assert all(0 <= v <= 1 for v in shares.values())


def plan_of(case: str) -> ReadingPlan:
    """How a step of the method reads its traces, where it is the first update since they were sampled."""
    return reading_plan(method_run(case).algorithm, on_policy=True)


READ_OFF = [case for case in METHODS if plan_of(case).read_off]


def test_the_group_family_reads_off_what_its_credit_does_not_need() -> None:
    others = {"verifree", "rlpr", "grpo, posterior control", "reinforce_pp, kl", "rover"}
    assert set(METHODS) - set(READ_OFF) >= others & set(METHODS)
    family = {"grpo", "grpo, exact kl and entropy", "dapo", "rloo", "gspo", "cispo", "nsr", "rapo", "dash"}
    assert family <= set(READ_OFF)


@pytest.mark.parametrize("case", READ_OFF)
def test_what_is_read_off_is_what_scoring_reads_and_the_gradient_is_the_same(case: str) -> None:
    """On the first update since the rollouts; traces without weight are not read."""
    run = method_run(case)
    groups, credits = credited(run)
    expected = gradient(run, run.limits, groups, credits)
    plan = reading_plan(run.algorithm, on_policy=True)
    bare = [
        replace(g, scores=short.scores)
        for g, short in zip(groups, score_groups(run, groups, plan.before), strict=True)  # ty: ignore[invalid-argument-type]
    ]
    again = run.algorithm.credit(bare)
    for p in run.parameters:
        p.grad = None
    made = add_gradient(run.algorithm, run.models, bare, again, run.limits, plan)
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in run.parameters])
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    off = set(outputs(plan.read_off))
    for group, full, row in zip(made.groups, groups, again, strict=True):
        for scores, known, own in zip(group.scores, full.scores, row, strict=True):
            weighs = any(bool(w.any()) for w in own.weights.values())
            assert (off <= scores.values.keys()) == weighs
            for output, value in scores.values.items():
                assert torch.allclose(value, known.values[output], atol=1e-10)


def test_a_second_update_on_the_same_rollouts_needs_old_log_probs() -> None:
    run = make_run(name="grpo")
    run.config = run.config.model_copy(update={"training": run.config.training.model_copy(update={"epochs": 2})})
    assert reading_plan(run.algorithm, on_policy=True).read_off
    assert plan_of_step(run, 1) == ReadingPlan(run.algorithm.scoring, (), run.algorithm.training)


def test_a_run_reports_what_it_read_late() -> None:
    """Entropy and the sampler's gap are those of the traces that trained; nothing was scored before."""
    run = method_run("grpo")
    report = next(loop.steps(run))
    assert report.metrics["tokens/scored"] == 0
    assert report.metrics["tokens/trained"] > 0
    assert 0 < report.metrics["entropy/prior"] < 10
    assert report.metrics["sampler/gap_max"] < 1e-6


IN_PASS = [case for case in METHODS if plan_of(case).in_pass]


def test_methods_whose_credit_needs_one_groups_scores_alone_read_each_group_once() -> None:
    alone = {"verifree", "jepo", "jepo, multi, kl", "latro", "latro, sft", "rationalise", "nover", "opsd", "nrt"}
    assert alone <= set(IN_PASS)
    assert not {"rlpr", "ravr", "grpo", "reinforce_pp"} & set(IN_PASS)
    assert reading_plan(make_run().algorithm, on_policy=True).in_pass  # covrl


def sizes(run: Run, groups: Sequence[ScoredGroup]) -> tuple[list[int], int]:
    """Padded tokens of each group as a pass of its own, smallest first, and of the largest trace."""
    made = (run.algorithm.contexts, reading_plan(run.algorithm, on_policy=True).in_pass)
    units = [[make_unit(i, *made, g.problem, r) for i, r in enumerate(g.rollouts)] for g in groups]
    return sorted(map(padded_tokens, units)), max(padded_tokens([u]) for row in units for u in row)


@pytest.mark.parametrize("case", [*IN_PASS, "covrl, exact nll and kl in return"])
@pytest.mark.parametrize("fit", ["all", "each", "some", "none"])
def test_a_merged_forward_has_the_gradient_and_the_credit_of_scoring_first(case: str, fit: str) -> None:
    """Groups that a pass does not hold are scored first and trained then, so that no pass is larger than it may be."""
    run = method_run(case)
    groups, credits = credited(run)
    expected = gradient(run, PassLimits(1 << 20, 1 << 30), groups, credits)
    plan = reading_plan(run.algorithm, on_policy=True)
    bare = score_groups(run, sampled(run), plan.before)
    assert not any(s.values for g in bare for s in g.scores)
    kept = run.algorithm.admit(bare).kept
    by_group, trace = sizes(run, kept)
    tokens = {"all": 1 << 20, "each": by_group[-1], "some": by_group[1], "none": by_group[0] - 1}[fit]
    assert trace <= tokens
    for p in run.parameters:
        p.grad = None
    with passes(run) as seen:
        made_of = (run.algorithm, run.models, kept, run.algorithm.credit)
        found = add_gradient(*made_of, PassLimits(tokens, 4 * 97 * 3), plan, watched=len(kept))
    merged = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in run.parameters])
    assert float((merged - expected).norm() / expected.norm()) < 1e-10
    assert max(p.tokens for p in seen) <= tokens
    assert found.passes == sum(p.learns for p in seen)
    scored_first = [any(s.tokens for s in g.scores) for g in found.groups]
    assert sum(scored_first) == sum(size > tokens for size in by_group)
    assert all(p.learns for p in seen) != any(scored_first)
    assert (found.passes == 1) == (fit == "all")
    for p in run.parameters:
        p.grad = None
    apart = add_gradient(
        run.algorithm, run.models, groups, credits, run.limits, reading_plan(run.algorithm, on_policy=False)
    )
    assert found.losses == pytest.approx(apart.losses, abs=1e-9)
    assert found.dropped == apart.dropped
    if fit == "none":  # then it is that, and what has no weight is not read twice
        assert (found.rows, found.tokens) == (apart.rows, apart.tokens)
    for one, other in zip(found.credits, credits, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.advantage == pytest.approx(b.advantage, abs=1e-9)
            assert a.weights.keys() == b.weights.keys()
            assert all(torch.allclose(a.weights[k], b.weights[k], atol=1e-9) for k in a.weights)
    for one, other in zip(found.groups, groups, strict=True):
        assert one.rollouts == other.rollouts
        for a, b in zip(one.scores, other.scores, strict=True):
            assert a.values.keys() == b.values.keys()
            assert all(torch.allclose(a.values[k], b.values[k], atol=1e-9) for k in b.values)


def test_a_step_is_merged_only_where_its_batch_serves_once_and_streams_are_not_measured() -> None:
    def merges(**training: Any) -> bool:
        run = make_run()
        run.config = run.config.model_copy(update={"training": run.config.training.model_copy(update=training)})
        return bool(plan_of_step(run, 1).in_pass)

    assert merges(stream_norms_every=0)
    assert not merges(stream_norms_every=1)
    assert not merges(stream_norms_every=0, epochs=2)
    assert not merges(stream_norms_every=0, mini_batches=2)
