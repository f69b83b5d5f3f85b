"""What a run measures on its held-out problems between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from covrl.evaluation.accuracy import Evaluation, Evaluator, Graded
from covrl.evaluation.hints import hint_margin, own_bounds
from covrl.evaluation.information import first_reading, information_metrics
from covrl.evaluation.majority import majority_marks
from covrl.evaluation.thoughts import thought_baselines, thought_metrics
from covrl.evaluation.trace_monitors import fork_share
from covrl.generation.base import Draw, Sampling, samples_with_trainer
from covrl.problems.foils import foils
from covrl.records import Observe, Problem, Request, Rollout, ScoredGroup
from covrl.rewards.likelihood import reward_floor
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading
from covrl.training.memory import with_fewer_rows
from covrl.training.metrics import reads_hints
from covrl.training.rollouts import response_tokens, sampling_of
from covrl.training.run import Run
from covrl.training.scores import has_room, scores_of

VOTES = 5
"""Answers to each held-out problem of which the most frequent one is graded, where the reward watch asks for it."""

READ_PROBLEMS, READ_TRACES = 12, 3
"""Held-out problems, and traces of each, on which it is measured what the answer takes from its trace."""


class Marks(NamedTuple):
    """What the reward watch sees, a mark a problem: ``1`` if the answer is right, else ``0``; "" where not measured.

    Of one sampled answer, and of the most frequent of several.
    """

    sampled: str = ""
    majority: str = ""


NO_MARKS = Marks()


def held_out_metrics(run: Run) -> tuple[dict[str, float], Marks]:
    """Log-likelihood of the first ``evaluation.problems``, and accuracy where there is a grader; and the marks of it.

    ``eval/accuracy`` is greedy, ``eval/sampled`` of one sampled trace and answer a problem, ``eval/answer_greedy`` of
    greedy answers after the same sampled traces: it tells what is lost in the thought from what is lost in the answer.
    ``eval/majority``, of the most frequent of :data:`VOTES` answers, is measured where the reward watch asks.
    """
    if run.evaluator is None or not run.held_out:
        return {}, NO_MARKS
    problems = run.held_out[: run.config.evaluation.problems]
    traces = _sampled_traces(run, problems)
    metrics = _log_prob(run, problems, traces) | _reading(run, problems) | _hint_margin(run, problems)
    if run.evaluator.grade is None:
        return metrics, NO_MARKS
    graded, marks = _graded(run, run.evaluator, problems, traces)
    return metrics | graded, marks


def _graded(
    run: Run, evaluator: Evaluator, problems: Sequence[Problem], traces: Sequence[Rollout]
) -> tuple[dict[str, float], Marks]:
    """Accuracy of greedy answers, and of those after the sampled ``traces``, one a problem."""
    draw, temperature = Draw(run.config.training.seed, 0, "held-out likelihood"), run.config.generation.temperature
    asked, most = _prior_requests(run, problems), response_tokens(run.prompts, run.config.generation)

    def after(heat: float) -> list[Graded]:
        return with_fewer_rows(run, asked, most, lambda: evaluator.answered(problems, traces, heat, draw))

    answered, greedy = after(temperature), Draw(run.config.training.seed, 0)
    found = with_fewer_rows(run, asked, most, lambda: evaluator(problems, 0.0, greedy))
    metrics = {"eval/sampled": Evaluation(tuple(answered)).accuracy, "eval/accuracy": found.accuracy}
    if evaluator.answer_temperature != 0:
        metrics["eval/answer_greedy"] = Evaluation(tuple(after(0.0))).accuracy
    metrics["eval/unknown_share"] = found.unknown
    metrics |= {} if found.sound is None else {"eval/sound": found.sound}
    majority = _majority(run, evaluator, problems, answered)
    if majority:
        metrics["eval/majority"] = majority.count("1") / len(majority)
    return metrics, Marks("".join("1" if g.verdict == "right" else "0" for g in answered), majority)


def _majority(run: Run, evaluator: Evaluator, problems: Sequence[Problem], answered: Sequence[Graded]) -> str:
    """The majority's marks, of the answers that there are and as many more as make :data:`VOTES`; "" if not asked."""
    if not run.guard.watch.in_doubt:
        return ""
    more = [(problem, index) for problem in problems for index in range(1, VOTES)]
    asked = [Request(p.id, i, run.prompts.prior(p), "prior") for p, i in more]
    draw, most = Draw(run.config.training.seed, 0), response_tokens(run.prompts, run.config.generation)
    temperature = run.config.generation.temperature
    found = iter(with_fewer_rows(run, asked, most, lambda: evaluator.examine(more, temperature, draw)))
    rows = [(first, *(next(found) for _ in range(1, VOTES))) for first in answered]
    return majority_marks(rows, run.config.evaluation.verifier, evaluator.grade)


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


def _hint_margin(run: Run, problems: Sequence[Problem]) -> dict[str, float]:
    """What a wrong hint costs on the first held-out problems, nats, where the method reads both prompts.

    One trace under the hint and one under the foil of each, with the same random numbers at every evaluation.
    """
    if not reads_hints(run) or not run.config.report.thoughts_every:
        return {}
    few = problems[:READ_PROBLEMS]
    shown = [(p, replace(p, answer=foil, hint=foil)) for p, foil in zip(few, foils(few), strict=True) if foil]
    asked = [problem for pair in shown if has_room(run, pair[1]) for problem in pair]
    requests = [Request(p.id, i % 2, run.prompts.posterior(p), "posterior") for i, p in enumerate(asked)]
    if not requests:
        return {}
    traces = _generated(run, requests)
    bounds = own_bounds(partial(scores_of, run), run.prompts, list(zip(asked, traces, strict=True)))
    found = hint_margin(bounds[::2], bounds[1::2])
    return {} if found is None else {"eval/hint_margin": found.nats, "eval/hint_margin_upper": found.at_most}


def _sampled_traces(run: Run, problems: Sequence[Problem], indices: Sequence[int] | None = None) -> list[Rollout]:
    """A prior trace a problem at the temperature of training, with the same random numbers at every evaluation.

    Where each has one, forks are observed in the first. A problem that comes often has another of the ``indices`` each
    time.
    """
    asked = _prior_requests(run, problems)
    if samples_with_trainer(run.generator) and indices is None:  # other engines may not know entropies
        forks = Observe(entropy=True, top_k=2)
        asked = [replace(r, observe=forks) if i < READ_PROBLEMS else r for i, r in enumerate(asked)]
    if indices is not None:
        asked = [replace(request, index=index) for request, index in zip(asked, indices, strict=True)]
    return _generated(run, asked)


def _generated(run: Run, asked: Sequence[Request]) -> list[Rollout]:
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
    forks = fork_share(traces)
    metrics |= {} if forks is None else {"eval/forks": forks}
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
