"""What a run measures on its held-out problems between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from covrl.generation.base import Draw, Sampling
from covrl.records import Problem, Request
from covrl.rewards.likelihood import reward_floor
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading
from covrl.training.rollouts import sampling_of

if TYPE_CHECKING:
    from covrl.training.loop import Run


def held_out_metrics(run: Run) -> tuple[dict[str, float], str]:
    """Of the first ``evaluation.problems``: log-likelihood, and where there is a grader the accuracy.

    Beside them the marks of the answers that were sampled, ``"1"`` for right, one a problem: what the reward watch
    compares.
    """
    if run.evaluator is None or not run.held_out:
        return {}, ""
    problems = run.held_out[: run.config.evaluation.problems]
    metrics, marks = _log_prob(run, problems)
    if run.evaluator.grade is not None:
        found = run.evaluator(problems, 0.0, Draw(run.config.training.seed, 0))
        metrics |= {"eval/accuracy": found.accuracy, "eval/unknown_share": found.unknown}
        metrics |= {} if found.sound is None else {"eval/sound": found.sound}
    return metrics, marks


def _log_prob(run: Run, problems: Sequence[Problem]) -> tuple[dict[str, float], str]:
    """log p(y|x,z) behind one sampled prior trace a problem, nats, and the share of traces that were closed.

    With a grader also ``eval/sampled``, the share of right answers that are sampled behind the same traces, and each
    one's mark.
    ``eval/log_prob`` takes one that was not closed at the reward's floor; ``eval/log_prob_closed`` leaves it out.
    """
    prompts = run.prompts
    asked = [Request(p.id, 0, prompts.prior(p), "prior") for p in problems]
    draw = Draw(run.config.training.seed, 0, "held-out likelihood")
    thinking = Sampling(sampling_of(run).max_tokens, run.config.prompts.close, run.config.generation.temperature)
    pairs = list(zip(problems, run.generator.generate(asked, thinking, draw), strict=True))
    context, reading = Context("prior", prompts.prior_row), Reading("answer", ("prior",), log_prob, ("prior",))
    scores = run.read((context,), (reading,), run.limits, pairs)
    values = [
        float(s["answer", "prior"].sum()) if r.valid else reward_floor(len(prompts.answer(p)))
        for (p, r), s in zip(pairs, scores, strict=True)
    ]
    closed = [value for value, (_, rollout) in zip(values, pairs, strict=True) if rollout.valid]
    metrics = {"eval/log_prob": sum(values) / len(values), "eval/closed_share": len(closed) / len(pairs)}
    metrics |= {"eval/log_prob_closed": sum(closed) / len(closed)} if closed else {}
    if run.evaluator is None or run.evaluator.grade is None:
        return metrics, ""
    found = run.evaluator.answered(problems, [r for _, r in pairs], run.config.generation.temperature, draw)
    marks = "".join("1" if graded.verdict == "right" else "0" for graded in found)
    return metrics | {"eval/sampled": marks.count("1") / len(found)}, marks
