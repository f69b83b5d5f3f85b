"""What a posterior template does with the answer that it shows, without training: the second part of a pre-flight.

    utility    share of right answers after posterior traces − after prior traces, both answered from the prior prompt
    hinted     share of right answers after posterior traces − of greedy answers without a thought
    pull       share of answers that are a wrong hint after traces that were shown it − the same after prior traces
    margin     ELBO(y) − ELBO(y′), y′ a wrong answer, each from traces under its own hint, nats (:mod:`.hints`)
    kl         mean over posterior traces of log q(z|x,y) − log p(z|x), nats a trace

A low KL, a utility above 0 and a hint that matters are reported to predict whether training with the answer in sight
works (arXiv 2602.04942, CONFIRMED in its text). The measures as they are here are INFERRED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from covrl.evaluation.accuracy import Graded
from covrl.evaluation.anchoring import Said, anchoring, answers_said
from covrl.evaluation.bench import Bench, Thoughts, measured
from covrl.evaluation.calibration import own_verdicts
from covrl.evaluation.hints import fit_metrics, hint_margin, hint_metrics, log_weights, own_bounds, read_foils
from covrl.evaluation.posterior_gain import Worth, gain_sentence, posterior_gain, sample_roles
from covrl.evaluation.trace_monitors import hedging_metrics, length_metrics
from covrl.generation.base import Draw, Sampling
from covrl.precision import wide
from covrl.prompts import Prompts
from covrl.records import Credit, Output, Problem, Request, Rollout, ScoredGroup, Scores, Verdict
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

P, Q, ANSWER = Output("trace", "prior"), Output("trace", "posterior"), Output("answer", "prior")


@dataclass(frozen=True, slots=True)
class TemplateTrial:
    """One template: its figures, and its closed posterior traces with their scores and the verdicts on their text.

    ``groups`` has each problem's first prior trace and then its posterior traces, ``own`` the latters' verdicts.
    """

    name: str
    groups: tuple[ScoredGroup, ...]
    own: tuple[tuple[Verdict, ...], ...]
    figures: dict[str, Any]


def try_template(
    bench: Bench, name: str, prompts: Prompts, thoughts: Thoughts, foils: Sequence[str | None], words: Sequence[str]
) -> TemplateTrial:
    """Sample ``Bench.traces`` posterior traces a problem and one under the foil, and measure all of the above.

    ``words`` are those that show doubt. Problems without a foil count in what needs none.
    """
    sampling = Sampling(bench.evaluator.max_trace_tokens, prompts.config.close, bench.temperature)
    drawn = [
        pair
        for part in sample_roles(
            bench.evaluator.generator, prompts, bench.problems, sampling, bench.traces, bench.seed, ("posterior",),
            bench.rows,
        )
        for pair in part
    ]  # fmt: skip
    groups = _scored(bench, prompts, thoughts, drawn)
    wrong = _under_foils(bench, prompts, sampling, foils)
    answering = replace(bench.evaluator, prompts=prompts)
    pairs = [(p, foils[i // bench.traces] or "") for i, (p, _) in enumerate(drawn)]
    said = answers_said(answering, pairs, [r for _, r in drawn], bench.temperature, bench.seed)
    asked = [(bench.problems[i], str(foils[i])) for i, _ in wrong]
    followed = answers_said(answering, asked, [r for _, r in wrong], bench.temperature, bench.seed + 1)
    texts = [Graded(p, r, "", "unknown", answering.label(p, r) if answering.label else None) for p, r in drawn]
    own = own_verdicts(answering, texts)
    rows = [tuple(own[i : i + bench.traces]) for i in range(0, len(own), bench.traces)]
    figures = _answer_figures(bench, thoughts, said, dict(zip([i for i, _ in wrong], followed, strict=True)))
    figures |= _margin(bench, prompts, groups, wrong, foils) | _trace_figures(bench, prompts, groups, words)
    worth = [Worth(g.problem.id, r.source, _nats(s)) for g in groups for r, s in _posterior(g)]
    worth += [Worth(g.problem.id, "prior", _nats(s)) for g, s in zip(thoughts.graded, thoughts.scores, strict=True)]
    gain = posterior_gain(worth, bench.seed)
    figures["posterior_gain"] = gain.record() | {"sentence": gain_sentence(gain)}
    return TemplateTrial(name, tuple(groups), tuple(rows), {"template": name} | figures)


def _scored(
    bench: Bench, prompts: Prompts, thoughts: Thoughts, drawn: Sequence[tuple[Problem, Rollout]]
) -> list[ScoredGroup]:
    """Each problem's first prior trace and its posterior traces under both prompts."""
    size, pairs = bench.traces, []
    for i, first in enumerate(thoughts.graded[::size]):
        pairs += [(first.problem, first.rollout), *drawn[i * size : (i + 1) * size]]
    contexts = (Context("prior", prompts.prior_row), Context("posterior", prompts.posterior_row))
    readings = (
        Reading("trace", ("prior",), log_prob, (P.name,)),
        Reading("answer", ("prior",), log_prob, (ANSWER.name,)),
        Reading("trace", ("posterior",), log_prob, (Q.name,)),
    )
    scores = bench.read(contexts, readings, pairs)
    step = size + 1
    return [
        ScoredGroup(pairs[i][0], tuple(r for _, r in pairs[i : i + step]), tuple(scores[i : i + step]))
        for i in range(0, len(pairs), step)
    ]


def _under_foils(
    bench: Bench, prompts: Prompts, sampling: Sampling, foils: Sequence[str | None]
) -> list[tuple[int, Rollout]]:
    """A trace under each problem's wrong answer, with the problem's place; problems without one are left out."""
    shown = [(i, replace(p, hint=f)) for i, (p, f) in enumerate(zip(bench.problems, foils, strict=True)) if f]
    found: list[tuple[int, Rollout]] = []
    for at in range(0, len(shown), bench.rows):
        part = shown[at : at + bench.rows]
        requests = [Request(p.id, 2 * bench.traces, prompts.posterior(p), "shuffled") for _, p in part]
        rollouts = bench.evaluator.generator.generate(requests, sampling, Draw(bench.seed, 0, "roles"))
        found += zip([i for i, _ in part], rollouts, strict=True)
    return found


def _answer_figures(
    bench: Bench, thoughts: Thoughts, said: Sequence[Said | None], followed: dict[int, Said | None]
) -> dict[str, Any]:
    """Utility, what hinted thoughts are worth over none, and the pulls of both hints."""
    found: dict[str, dict[str, list[Said]]] = {}
    shares, beyond = [], []
    for i, problem in enumerate(bench.problems):
        part = slice(i * bench.traces, (i + 1) * bench.traces)
        before, after = [s for s in thoughts.said[part] if s], [s for s in said[part] if s]
        if not before or not after:
            continue
        right = fmean(s.own for s in after)
        shares.append(right - fmean(s.own for s in before))
        beyond.append(right - float(thoughts.direct[i].verdict == "right"))
        under = followed.get(i)
        if under is not None:
            found[problem.id] = {"prior": before, "posterior": after, "shuffled": [under]}
    return {
        "utility": measured(shares),
        "hinted": measured(beyond),
        "anchoring": anchoring(found) if found else None,
    }


def _margin(
    bench: Bench,
    prompts: Prompts,
    groups: Sequence[ScoredGroup],
    wrong: Sequence[tuple[int, Rollout]],
    foils: Sequence[str | None],
) -> dict[str, Any]:
    """The price of a wrong hint, over problems that have closed traces under both."""
    pairs = [(replace(bench.problems[i], answer=str(foils[i]), hint=foils[i], accepted=()), r) for i, r in wrong]
    against = own_bounds(bench.read, prompts, pairs)
    right = [fmean(found) if (found := log_weights(groups[i])) else None for i, _ in wrong]
    margin = hint_margin(right, against)
    both = sum(a is not None and b is not None for a, b in zip(right, against, strict=True))
    if margin is None:
        return {"margin": None}
    return {"margin": {"value": margin.nats, "interval": [margin.at_least, margin.at_most], "problems": both}}


def _trace_figures(
    bench: Bench, prompts: Prompts, groups: Sequence[ScoredGroup], words: Sequence[str]
) -> dict[str, Any]:
    """How the traces look, and how near q is to p and to the posterior."""
    own = [(r, s) for g in groups for r, s in _posterior(g)]
    found = length_metrics(groups, [[Credit()] * len(g.rollouts) for g in groups]) | hedging_metrics(groups, words)
    found |= fit_metrics(groups)
    context = Context("posterior", prompts.posterior_row)
    foil = read_foils(bench.read, context, groups, len(groups), lambda _: True)
    found |= hint_metrics(groups, foil)
    return {
        "closed": sum(r.valid for r, _ in own) / len(own),
        "tokens": fmean(len(r.trace_ids) for r, _ in own),
        "kl": fmean(float(wide(s[Q] - s[P]).sum()) for _, s in own if P in s and Q in s),
        "monitors": found,
    }


def _posterior(group: ScoredGroup) -> list[tuple[Rollout, Scores]]:
    rows = zip(group.rollouts, group.scores, strict=True)
    return [(rollout, scores) for rollout, scores in rows if rollout.source == "posterior"]


def _nats(scores: Scores) -> float | None:
    return float(scores[ANSWER].sum()) if ANSWER in scores else None
