"""How the posterior prompt uses its hint: identities of exact posteriors, values by hand, and when it is looked at."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from exact import world
from exact.world import A, B
from torch import Tensor
from training.test_step import make_run

from covrl.evaluation.hints import (
    blind_share,
    fit_metrics,
    hint_margin,
    hint_metrics,
    own_bounds,
    posterior_fit,
    read_foils,
)
from covrl.records import Group, Output, Problem, Request, Rollout, ScoredGroup, Scores
from covrl.training import loop
from covrl.training.scores import score_groups, scores_of

P, Q, ANSWER = Output("trace", "prior"), Output("trace", "posterior"), Output("answer", "prior")


def test_the_fit_by_hand() -> None:
    """w = 1 and 3: (4)² / 10 = 1.6 traces; the logs are log 3 apart."""
    assert posterior_fit([0.0, math.log(3)]) == pytest.approx((1.6, math.log(3) ** 2 / 2))
    assert posterior_fit([-900.0, 0.0]) == pytest.approx((1.0, 900**2 / 2))


def group_of(prior: Tensor, posterior: Tensor, answer: Tensor, source: str = "posterior") -> ScoredGroup:
    """Traces of one token each with these log-probs ``[n]``."""
    rollouts = [Rollout(Request("p", i, (), source), (i,), (0.0,), "closed", "sampled", "") for i in range(len(prior))]
    rows = zip(prior, posterior, answer, strict=True)
    scores = [Scores({P: p[None], Q: q[None], ANSWER: a[None]}) for p, q, a in rows]
    return ScoredGroup(Problem("p", "?", "1"), tuple(rollouts), tuple(scores))


def test_an_exact_posterior_has_no_spread_and_the_margin_of_the_answers_odds() -> None:
    """Nine traces, two answers, everything enumerated."""
    torch.manual_seed(0)
    p = torch.log_softmax(torch.randn(9, dtype=torch.float64), dim=0)
    answers = torch.log_softmax(torch.randn(9, 3, dtype=torch.float64), dim=1)
    evidence = torch.logsumexp(p[:, None] + answers, dim=0)
    bounds = []
    for y in (0, 1):
        exact = p + answers[:, y] - evidence[y]
        found = fit_metrics([group_of(p, exact, answers[:, y])])
        assert found == pytest.approx({"posterior/ess": 9.0, "posterior/log_w_var": 0.0}, abs=1e-12)
        bounds.append([float(v) for v in p + answers[:, y] - exact])
    margin = hint_margin(*bounds)
    assert margin is not None
    assert margin.nats == pytest.approx(float(evidence[0] - evidence[1]))
    other = torch.log_softmax(torch.randn(9, dtype=torch.float64), dim=0)
    assert fit_metrics([group_of(p, other, answers[:, 0])])["posterior/log_w_var"] > 0.1


def test_prior_traces_and_single_ones_say_nothing_of_the_fit() -> None:
    values = torch.zeros(3, dtype=torch.float64)
    assert fit_metrics([group_of(values, values, values, "prior")]) == {}
    assert fit_metrics([group_of(values[:1], values[:1], values[:1])]) == {}


def test_a_style_that_any_hint_brings_is_blind_and_a_change_that_only_one_brings_is_not() -> None:
    content = torch.tensor([1.0, -1.0, 0.5, 0.0])
    assert blind_share(content, content) == pytest.approx(1.0)
    assert blind_share(content, torch.zeros(4)) == pytest.approx(0.0)
    assert blind_share(content, -content) == pytest.approx(-1.0)
    shares = [blind_share(content + style, -content + style) for style in (0.0, 1.0, 10.0, 1000.0)]
    assert shares == sorted(shares)  # ty: ignore[invalid-argument-type]
    assert shares[-1] > 0.999  # ty: ignore[unsupported-operator]
    assert blind_share(torch.zeros(3), torch.zeros(3)) is None


OTHER = Problem("other", "b", "a")


def both_groups(run: world.Run) -> list[Group]:
    """A prior and a posterior trace of each of two problems."""
    drawn = {"prior": (A, 2), "posterior": (B, A, 2)}
    return [
        Group(p, tuple(world.rollout(run, ids, s, False, p, i) for i, (s, ids) in enumerate(drawn.items())))
        for p in (world.PROBLEM, OTHER)
    ]


def test_contrast_and_blind_share_are_those_of_the_model_by_hand() -> None:
    run = world.make_run(group=2)
    groups = both_groups(run)
    posterior = next(c for c in run.algorithm.contexts if c.name == "posterior")
    foil = read_foils(partial(scores_of, run), posterior, groups, 1, lambda problem: problem.shown == "a")
    assert set(foil) == {("tiny", 0), ("tiny", 1)}
    assert read_foils(partial(scores_of, run), posterior, groups, 1, lambda problem: False) == {}
    found = hint_metrics(score_groups(run, groups), foil)
    gaps: dict[str, tuple[Tensor, Tensor]] = {}
    for source, ids in (("prior", (A, 2)), ("posterior", (B, A, 2))):
        p, right, wrong = (world.plain_log_probs(run, before, ids).detach() for before in ((A,), (A, B), (A, A)))
        gaps[source] = right - p, wrong - p
        assert found[f"hint/contrast_{source}"] == pytest.approx(float((right - wrong).mean()))
    right, wrong = (torch.cat([gaps[s][side] for s in gaps]) for side in (0, 1))
    blind = 1 - float(((right - wrong) ** 2).sum() / (right**2 + wrong**2).sum())
    assert found["hint/blind_share"] == pytest.approx(blind)
    assert hint_metrics(score_groups(run, groups), {}) == {}


def test_the_bound_of_a_trace_by_hand() -> None:
    run = world.make_run(group=2)
    wrong = Problem("tiny", "a", "a", hint="a")
    trace = world.rollout(run, (B, 2), "posterior", False)
    cut = world.rollout(run, (B, A), "posterior", False)
    (bound, none) = own_bounds(partial(scores_of, run), run.prompts, [(wrong, trace), (wrong, cut)])
    log_p, log_q = (float(world.plain_log_probs(run, b, (B, 2)).sum().detach()) for b in ((A,), (A, A)))
    answer = float(world.plain_log_probs(run, (A, B, 2), (A, 2)).sum().detach())
    assert bound == pytest.approx(answer + log_p - log_q)
    assert none is None


def test_the_margin_needs_two_problems_with_both_traces_closed() -> None:
    assert hint_margin([1.0, None, 2.0], [0.0, 1.0, None]) is None
    found = hint_margin([1.0, 3.0, None], [0.0, 0.0, 1.0])
    assert found is not None
    assert found.nats == 2.0
    assert found.at_most == pytest.approx(2 + 12.7062 * 1, rel=1e-4)  # Student's t of one degree, deviation √2 / √2


def test_looks_at_wrong_hints_come_on_their_steps_of_methods_that_read_both_prompts() -> None:
    def seen(name: str, steps: int, every: int = 3) -> list[int]:
        run = make_run(name=name, training={"steps": steps, "stream_norms_every": 0})
        changed = run.config.report.model_copy(update={"thoughts_every": every})
        run.config = run.config.model_copy(update={"report": changed})
        return [r.step for r in loop.steps(run) if "hint/blind_share" in r.metrics]

    assert seen("covrl", 5) == [1, 3, 5]
    assert seen("ravr", 1) == [1]
    assert seen("jepo", 1) == []
    assert seen("covrl", 1, every=0) == []
