"""What a run measures on its held-out problems between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from covrl.evaluation.information import first_reading, information_metrics
from covrl.evaluation.thoughts import thought_baselines, thought_metrics
from covrl.generation.base import Draw, Sampling
from covrl.records import Problem, Request, Rollout, ScoredGroup
from covrl.rewards.likelihood import reward_floor
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading
from covrl.training.memory import with_fewer_rows
from covrl.training.rollouts import response_tokens, sampling_of
from covrl.training.run import Run
from covrl.training.scores import scores_of

READ_PROBLEMS, READ_TRACES = 12, 3
"""Held-out problems, and traces of each, on which it is measured what the answer takes from its trace."""


def held_out_metrics(run: Run) -> tuple[dict[str, float], str]:
    """Log-likelihood of the first ``evaluation.problems``, and accuracy (greedy, sampled) where there is a grader.

    And the marks for the reward watch, a problem each: ``1`` if the sampled answer is right, else ``0``; without a
    grader there are none.
    """
    if run.evaluator is None or not run.held_out:
        return {}, ""
    problems = run.held_out[: run.config.evaluation.problems]
    traces = _sampled_traces(run, problems)
    metrics, marks = _log_prob(run, problems, traces) | _reading(run, problems), ""
    if run.evaluator.grade is not None:
        draw = Draw(run.config.training.seed, 0, "held-out likelihood")
        evaluator, temperature = run.evaluator, run.config.generation.temperature
        asked, most = _prior_requests(run, problems), response_tokens(run.prompts, run.config.generation)
        answered = with_fewer_rows(run, asked, most, lambda: evaluator.answered(problems, traces, temperature, draw))
        greedy = Draw(run.config.training.seed, 0)
        found = with_fewer_rows(run, asked, most, lambda: evaluator(problems, 0.0, greedy))
        marks = "".join("1" if graded.verdict == "right" else "0" for graded in answered)
        metrics["eval/sampled"] = marks.count("1") / len(marks)
        metrics |= {"eval/accuracy": found.accuracy, "eval/unknown_share": found.unknown}
        metrics |= {} if found.sound is None else {"eval/sound": found.sound}
    return metrics, marks


def _reading(run: Run, problems: Sequence[Problem]) -> dict[str, float]:
    """How much the answer takes from its trace, on the first held-out problems, where the method scores answers.

    Few problems and traces, as they are sampled for this alone; the same ones at every evaluation.
    """
    if not first_reading(run.algorithm.contexts, run.algorithm.scoring):
        return {}
    asked = [p for p in problems[:READ_PROBLEMS] for _ in range(READ_TRACES)]
    traces = _sampled_traces(run, asked, [i % READ_TRACES for i in range(len(asked))])
    context, reading = (Context("prior", run.prompts.prior_row),), Reading("answer", ("prior",), log_prob, ("prior",))
    readings = (reading, *first_reading(context, (reading,)))
    scores = scores_of(run, context, readings, list(zip(asked, traces, strict=True)))
    groups = [
        ScoredGroup(asked[i], tuple(traces[i : i + READ_TRACES]), tuple(scores[i : i + READ_TRACES]))
        for i in range(0, len(asked), READ_TRACES)
    ]
    found = information_metrics(groups, "eval/answer_")
    if run.config.report.thoughts_every:
        found |= thought_metrics(
            groups, thought_baselines(partial(scores_of, run), run.prompts, groups), "eval/thought_"
        )
    return found


def _sampled_traces(run: Run, problems: Sequence[Problem], indices: Sequence[int] | None = None) -> list[Rollout]:
    """A prior trace a problem at the temperature of training, with the same random numbers at every evaluation.

    A problem that comes often has another of the ``indices`` each time.
    """
    asked = _prior_requests(run, problems)
    if indices is not None:
        asked = [replace(request, index=index) for request, index in zip(asked, indices, strict=True)]
    draw = Draw(run.config.training.seed, 0, "held-out likelihood")
    thinking = Sampling(sampling_of(run).max_tokens, run.config.prompts.close, run.config.generation.temperature)
    return with_fewer_rows(run, asked, thinking.max_tokens, lambda: run.generator.generate(asked, thinking, draw))


def _prior_requests(run: Run, problems: Sequence[Problem]) -> list[Request]:
    return [Request(p.id, 0, run.prompts.prior(p), "prior") for p in problems]


def _log_prob(run: Run, problems: Sequence[Problem], traces: Sequence[Rollout]) -> dict[str, float]:
    """log p(y|x,z) behind one sampled prior trace a problem, nats, and the share of traces that were closed.

    ``eval/log_prob`` takes one that was not closed at the reward's floor; ``eval/log_prob_closed`` leaves it out.
    """
    pairs = list(zip(problems, traces, strict=True))
    values = answer_log_probs(run, pairs)
    closed = [value for value, (_, rollout) in zip(values, pairs, strict=True) if rollout.valid]
    metrics = {"eval/log_prob": sum(values) / len(values), "eval/closed_share": len(closed) / len(pairs)}
    return metrics | ({"eval/log_prob_closed": sum(closed) / len(closed)} if closed else {})


def answer_log_probs(run: Run, pairs: Sequence[tuple[Problem, Rollout]]) -> list[float]:
    """log p(y|x,z), nats, of each problem's answer after a trace; one that was not closed has the reward's floor."""
    prompts = run.prompts
    context, reading = Context("prior", prompts.prior_row), Reading("answer", ("prior",), log_prob, ("prior",))
    scores = scores_of(run, (context,), (reading,), pairs)
    return [
        float(s["answer", "prior"].sum()) if r.valid else reward_floor(len(prompts.answer(p)))
        for (p, r), s in zip(pairs, scores, strict=True)
    ]
