"""How the posterior prompt uses its hint: against the model's own posterior, and against a wrong hint.

With w(z) = p(z|x) π(y|x,z) / q(z|x,y) for traces z ~ q, and a *foil* y′, another problem's answer in the place of y,

    ess        (Σw)² / Σw² within a question        traces; all N of them where q is the posterior, 1 at worst
    log_w_var  variance of log w within a question  nats²; 0 where q is the posterior
    contrast   mean_t of log q(z_t|x,y) − log q(z_t|x,y′)                                     nats a token
    blind      1 − Σ(δ_y − δ_y′)² / Σ(δ_y² + δ_y′²),  δ = log q(z_t|x,·) − log p(z_t|x)       share; 1: any hint will do
    margin     ELBO(y) − ELBO(y′), each from traces under its own hint:
               mean[ log π(·|x,z) + log p(z|x) − log q(z|x,·) ]                               nats

E_q[w] = p(y|x) for any q, and an exact posterior has contrast and margin log p(y|x)/p(y′|x) on average, although it
follows a wrong hint too (both verified by enumeration). So a foil's price tells more than whether a trace follows it.
``blind`` has no level of its own: read its change, and its difference between templates.

Source: ``answer_in_sight.md`` section 2.2, after arXiv 2602.14469 (anchoring; through secondary sources) and 2606.11709
(the contrast of a right and a wrong hint, CONFIRMED in its code). As monitors without a verifier: INFERRED.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, variance
from typing import NamedTuple

import torch
from torch import Tensor

from covrl.evaluation.thoughts import Read
from covrl.precision import wide
from covrl.problems.foils import foils
from covrl.prompts import Prompts
from covrl.records import Group, Output, Problem, Rollout, ScoredGroup, Scores
from covrl.rewards.likelihood import answer_reward
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading
from covrl.statistics import t_interval

P, Q, ANSWER = Output("trace", "prior"), Output("trace", "posterior"), Output("answer", "prior")
FOIL = Output("trace", "foil")

Place = tuple[str, int]
"""A rollout's problem and its index."""


class Fit(NamedTuple):
    """How near q is to the posterior on one question: ``ess`` in traces, ``log_w_var`` in nats²."""

    ess: float
    log_w_var: float


def fit_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """``posterior/ess`` (traces) and ``posterior/log_w_var`` (nats²), means over the questions.

    Of closed posterior traces that were read under both prompts; a question counts with at least two of them.
    """
    each = [posterior_fit(found) for group in groups if len(found := log_weights(group)) > 1]
    if not each:
        return {}
    return {"posterior/ess": fmean(f.ess for f in each), "posterior/log_w_var": fmean(f.log_w_var for f in each)}


def log_weights(group: ScoredGroup) -> list[float]:
    """log w of each closed posterior trace of a group, nats; log π is floored as rewards are."""
    return [
        _elbo(scores)
        for rollout, scores in zip(group.rollouts, group.scores, strict=True)
        if rollout.source == "posterior" and all(output in scores.values for output in (P, Q, ANSWER))
    ]


def _elbo(scores: Scores) -> float:
    return answer_reward(scores[ANSWER], "sum") + float(wide(scores[P] - scores[Q]).sum())


def posterior_fit(log_w: Sequence[float]) -> Fit:
    """Of log w (nats) of at least two traces of one question.

    Example:
        >>> posterior_fit([0.0, 0.0])
        Fit(ess=2.0, log_w_var=0.0)
    """
    w = [math.exp(value - max(log_w)) for value in log_w]
    return Fit(sum(w) ** 2 / sum(v * v for v in w), variance(log_w))


def read_foils(
    read: Read,
    posterior: Context,
    groups: Sequence[Group | ScoredGroup],
    count: int,
    fits: Callable[[Problem], bool],
) -> dict[Place, Tensor]:
    """log q(z_t|x,y′) ``[T]`` of the first prior and the first posterior trace of the first ``count`` groups.

    ``posterior`` is the method's context that shows the hint: the foil is shown by the same template. Left out are
    traces that it does not read, and problems whose foil ``fits`` no context of the model.
    """
    pairs = [
        (replace(group.problem, hint=foil), rollout)
        for group, foil in zip(groups[:count], foils([g.problem for g in groups])[:count], strict=True)
        if foil is not None and fits(replace(group.problem, hint=foil))
        for rollout in _one_of_each_source(group)
        if posterior.render(group.problem, rollout) is not None
    ]
    if not pairs:
        return {}
    scores = read((posterior._replace(name="foil"),), (Reading("trace", ("foil",), log_prob, ("foil",)),), pairs)
    return {(p.id, r.request.index): s.values[FOIL] for (p, r), s in zip(pairs, scores, strict=True)}


def _one_of_each_source(group: Group | ScoredGroup) -> list[Rollout]:
    scored = [rollout for rollout in group.rollouts if rollout.request.scored]
    return list({rollout.source: rollout for rollout in reversed(scored)}.values())


def hint_metrics(groups: Sequence[ScoredGroup], foil: Mapping[Place, Tensor]) -> dict[str, float]:
    """``hint/contrast_prior``, ``hint/contrast_posterior`` (nats a token, by the trace's source), ``hint/blind_share``.

    Over all tokens of the traces that were read under the question's prompt, the hint and a foil: by
    :func:`read_foils`, or by a method that scores a foil itself.
    """
    right: dict[str, list[Tensor]] = {}
    wrong: dict[str, list[Tensor]] = {}
    for group in groups:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            under = foil.get((group.problem.id, rollout.request.index), scores.values.get(FOIL))
            if under is not None and P in scores.values and Q in scores.values:
                prior = wide(scores[P])
                right.setdefault(rollout.source, []).append(wide(scores[Q]) - prior)
                wrong.setdefault(rollout.source, []).append(under.to(prior) - prior)
    if not right:
        return {}
    metrics = {
        f"hint/contrast_{source}": float((torch.cat(right[source]) - torch.cat(wrong[source])).mean())
        for source in right
    }
    blind = blind_share(*(torch.cat([part for own in side.values() for part in own]) for side in (right, wrong)))
    return metrics if blind is None else metrics | {"hint/blind_share": blind}


def blind_share(right: Tensor, wrong: Tensor) -> float | None:
    """1 − Σ(δ_y − δ_y′)² / Σ(δ_y² + δ_y′²) of gaps ``[N]`` to the prior; None where no hint changes anything.

    Example:
        >>> blind_share(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))
        1.0
        >>> blind_share(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        0.0
    """
    whole = float((right**2 + wrong**2).sum())
    return 1 - float(((right - wrong) ** 2).sum()) / whole if whole > 0 else None


class Margin(NamedTuple):
    """``nats``: mean over problems of ELBO(y) − ELBO(y′); ``at_most``, ``at_least``: its limits (95 %, two-sided)."""

    nats: float
    at_most: float
    at_least: float


def own_bounds(read: Read, prompts: Prompts, pairs: Sequence[tuple[Problem, Rollout]]) -> list[float | None]:
    """log π(y|x,z) + log p(z|x) − log q(z|x,y) of each trace, nats, for the problem's own hint and answer.

    For a foil the problem has it as its answer and its hint. None for a trace that did not close.
    """
    contexts = (Context("prior", prompts.prior_row), Context("posterior", prompts.posterior_row))
    readings = (
        Reading("trace", ("prior",), log_prob, (P.name,)),
        Reading("answer", ("prior",), log_prob, (ANSWER.name,)),
        Reading("trace", ("posterior",), log_prob, (Q.name,)),
    )
    scores = read(contexts, readings, pairs)
    return [_elbo(s) if ANSWER in s.values else None for s in scores]


def hint_margin(right: Sequence[float | None], wrong: Sequence[float | None]) -> Margin | None:
    """From each problem's bound under the hint and under the foil, of one trace or a mean; None for fewer than two."""
    each = [a - b for a, b in zip(right, wrong, strict=True) if a is not None and b is not None]
    ends = t_interval(each)
    return None if ends is None else Margin(fmean(each), ends.high, ends.low)
