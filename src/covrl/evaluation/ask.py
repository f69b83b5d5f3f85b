"""`covrl ask`: one question to several models, under the prior prompt and, with an answer, under the posterior."""

from __future__ import annotations

from dataclasses import dataclass

from covrl.evaluation.likelihood import answer_log_probs
from covrl.generation.base import Draw, Generator, Sampling
from covrl.models.model import LanguageModel
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout


@dataclass(frozen=True, slots=True)
class Reply:
    """One trace: the model and prompt that wrote it, and log p of the given answer after it (nats, or None)."""

    model: str
    source: str
    rollout: Rollout
    answer_log_prob: float | None


def ask(
    name: str,
    model: LanguageModel,
    engine: Generator,
    prompts: Prompts,
    question: str,
    answer: str | None,
    sampling: Sampling,
    count: int,
    seed: int,
) -> list[Reply]:
    """``count`` traces from each prompt that can be written: the posterior prompt needs an answer."""
    problem = Problem("ask", question, answer or "")
    sources = {"prior": prompts.prior(problem)} | ({"posterior": prompts.posterior(problem)} if answer else {})
    requests = [
        Request(problem.id, i + count * (source != "prior"), ids, source)
        for source, ids in sources.items()
        for i in range(count)
    ]
    rollouts = engine.generate(requests, sampling, Draw(seed, 0))
    found = answer_log_probs(model, prompts, [(problem, r) for r in rollouts]) if answer else [None] * len(rollouts)
    return [Reply(name, r.source, r, None if f is None else f.total) for r, f in zip(rollouts, found, strict=True)]
