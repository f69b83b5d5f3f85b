"""Credited groups as a person reads them: no tensors, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from covrl.prompts import Prompts
from covrl.records import (
    SOUND,
    Credit,
    Problem,
    Rollout,
    ScoredGroup,
    Scores,
    TokenView,
    TraceGroup,
    TraceLabel,
    TraceView,
    Verdict,
)
from covrl.training.monitors import thought_only


def trace_group(
    group: ScoredGroup, credits: Sequence[Credit], prompts: Prompts, label: TraceLabel | None = None
) -> TraceGroup:
    """A group with rewards, advantages, KL (nats over the whole trace) and per-token log-probs where they were read."""
    rows = zip(group.rollouts, group.scores, credits, strict=True)
    return TraceGroup(group.problem, tuple(_view(group.problem, *row, prompts, label) for row in rows))


def _view(
    problem: Problem, rollout: Rollout, scores: Scores, credit: Credit, prompts: Prompts, label: TraceLabel | None
) -> TraceView:
    kl = float(scores["trace", "kl"].sum()) if ("trace", "kl") in scores else None
    return TraceView(
        source=rollout.source,
        text=rollout.text,
        finish=rollout.finish,
        reward=credit.reward,
        advantage=credit.advantage,
        kl=kl,
        correct=_mark(problem, thought_only(rollout, prompts.config.close), label),
        tokens=_tokens(rollout, scores, prompts),
        rewards=rollout.rewards,
        index=rollout.request.index,
        parent=rollout.request.parent,
    )


def _mark(problem: Problem, rollout: Rollout, label: TraceLabel | None) -> Verdict | None:
    """A verifier's verdict; without one, whether the label says that the trace is sound."""
    if rollout.correct is not None or label is None:
        return rollout.correct
    return "right" if label(problem, rollout) == SOUND else "wrong"


def _tokens(rollout: Rollout, scores: Scores, prompts: Prompts) -> tuple[TokenView, ...]:
    """Tokens are decoded one by one, so a character that several of them spell is shown in pieces.

    Those of a given prefix come first, without log-probs.
    """

    def spelt(ids: Sequence[int]) -> list[str]:
        return [str(prompts.tokenizer.decode([i], skip_special_tokens=False)) for i in ids]

    given = tuple(TokenView(text, None, None) for text in spelt(rollout.request.prefix_ids))
    texts = spelt(rollout.trace_ids)
    prior, posterior = (
        scores["trace", name].tolist() if ("trace", name) in scores else [None] * len(texts)
        for name in ("prior", "posterior")
    )
    return given + tuple(TokenView(*token) for token in zip(texts, prior, posterior, strict=True))
