"""`covrl ask`: one question to several models, under the prior prompt and, with an answer, under the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator
from covrl.prompts import Prompts
from covrl.records import Output, Problem, Request, Rollout
from covrl.scoring.head import log_prob
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import Context, Reading, score


@dataclass(frozen=True, slots=True)
class Reply:
    """One trace: who wrote it under which prompt, and how likely the given answer is behind it (nats, or None)."""

    model: str
    source: str
    rollout: Rollout
    answer_log_prob: float | None


def ask(
    name: str,
    model: LanguageModel,
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
    engine = TorchGenerator(model.model, prompts.tokenizer, len(requests))
    rollouts = engine.generate(requests, sampling, Draw(seed, 0))
    likelihoods = _answer_log_probs(model, prompts, problem, rollouts) if answer else [None] * len(rollouts)
    return [Reply(name, r.source, r, value) for r, value in zip(rollouts, likelihoods, strict=True)]


def _answer_log_probs(
    model: LanguageModel, prompts: Prompts, problem: Problem, rollouts: Sequence[Rollout]
) -> list[float | None]:
    context, reading = Context("prior", prompts.prior_row), Reading("answer", ("prior",), log_prob, ("prior",))
    pairs = [(problem, rollout) for rollout in rollouts]
    scores = score({"policy": model}, (context,), (reading,), pairs, 16384, 64 << 20)
    key = Output("answer", "prior")
    return [float(s[key].sum()) if key in s else None for s in scores]
