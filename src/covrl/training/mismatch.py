"""Sampler against trainer: how far apart their log-probs of the sampled tokens are, and what corrects for it.

An engine that is not the trainer's own model (other kernels, another dtype, another machine) draws from a distribution
π_sampler that differs from the π that is trained, so that every estimate is slightly off policy. Both log-probs of
each sampled token are known, so the difference is measured on every step and corrected by truncated importance
sampling: weights w = min(π / π_sampler, C) on what a trace is worth.

Evidence. Source: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025). The
token-level weight and its cap from above are CONFIRMED-2nd (TRL and verl implement them); C = 2 is the default of
several implementations, the authors' own choice is not known to us (INFERRED). Weighting every stream on the trace's
tokens and not the policy loss alone is INFERRED (ours): a KL that is estimated from the sampled token needs it, one
that is exact over the vocabulary has the same expectation with and without. Which gradient each level has is
VERIFIED by enumeration (``tests/exact/test_mismatch.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from covrl.algorithms.base import Stream
from covrl.config import GenerationConfig
from covrl.objectives import truncated_importance
from covrl.objectives.ratio import Level
from covrl.precision import wide
from covrl.records import Credit, Output, Problem, Rollout, Row, ScoredGroup, Scores, Span
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

SOURCE_READING = Reading("trace", ("sampled from",), log_prob, ("sampled from",))
SAMPLED_FROM = Output("trace", "sampled from")

LARGE_GAP = 0.1
"""Mean difference (nats a token) above which a step has a warning. Rounding in bfloat16 gives about 0.01 (INFERRED)."""


FEW = 8
"""Traces that are read for the measurement alone, on a step that reads none of them as they were sampled."""


def _as_sampled(problem: Problem, rollout: Rollout) -> Row:
    """The row that the sampler had before it: the request's own prompt, and the trace."""
    del problem
    before = rollout.request.prompt_ids + rollout.request.prefix_ids
    ids = before + rollout.trace_ids
    return Row(ids, {"trace": Span(len(before), len(ids))})


SOURCE_CONTEXT = Context("sampled from", _as_sampled)
"""For methods whose own scores do not hold the log-probs under the prompt that a trace was sampled from."""


def source_log_probs(rollout: Rollout, scores: Scores) -> Tensor | None:
    """The trainer's log-probs ``[T]`` of a trace under the prompt that it was drawn from; None if not read."""
    if SAMPLED_FROM in scores.values:
        return scores.values[SAMPLED_FROM]
    return scores.values.get(Output("trace", rollout.source))


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How one run measures its sampler and corrects for it; ``of_trainer``: samples come from the trained model itself.

    Such a sampler is measured all the same and never corrected: what is left is the rounding of two ways to compute
    one distribution.
    """

    config: GenerationConfig
    of_trainer: bool

    def complete(
        self,
        pairs: Sequence[tuple[Problem, Rollout]],
        scores: list[Scores],
        read: Callable[[Sequence[Context], Sequence[Reading], Sequence[tuple[Problem, Rollout]]], list[Scores]],
    ) -> list[Scores]:
        """``scores`` with the log-probs under the prompts that traces were sampled from, where they are needed.

        Most methods read them anyway; traces of the others go through the model once more.
        """
        missing = [i for i, (_, r) in enumerate(pairs) if r.trace_ids and source_log_probs(r, scores[i]) is None]
        if self.of_trainer or not missing:
            return scores
        extra = read((SOURCE_CONTEXT,), (SOURCE_READING,), [pairs[i] for i in missing])
        found = dict(zip(missing, extra, strict=True))
        return [
            Scores({**s.values, **found[i].values}, s.tokens + found[i].tokens) if i in found else s
            for i, s in enumerate(scores)
        ]

    def of_few(
        self,
        groups: Sequence[ScoredGroup],
        read: Callable[[Sequence[Context], Sequence[Reading], Sequence[tuple[Problem, Rollout]]], list[Scores]],
    ) -> dict[str, float]:
        """The :meth:`metrics` of the first :data:`FEW` traces, which are read for nothing else."""
        pairs = [(g.problem, r) for g in groups for r in g.rollouts if r.trace_ids][:FEW]
        if not pairs:
            return {}
        scores = read((SOURCE_CONTEXT,), (SOURCE_READING,), pairs)
        return self.metrics([ScoredGroup(p, (r,), (s,)) for (p, r), s in zip(pairs, scores, strict=True)])

    def corrected(
        self, groups: Sequence[ScoredGroup], credits: list[list[Credit]], streams: Sequence[Stream]
    ) -> list[list[Credit]]:
        """The credits with the weights of each trace's streams times :func:`truncated_importance`.

        At the level of tokens these are the streams on the trace; at the level of sequences all of them, as the whole
        trace was drawn by the sampler. A sampler with the trainer's own log-probs changes no bit.
        """
        level = self.config.sampler_correction
        if self.of_trainer or level == "off":
            return credits
        on_trace = {stream.name for stream in streams if stream.span == "trace"}
        return [
            [
                _weighted(*trace, None if level == "sequence" else on_trace, level, self.config.sampler_cap)
                for trace in zip(group.rollouts, group.scores, row, strict=True)
            ]
            for group, row in zip(groups, credits, strict=True)
        ]

    def metrics(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Of all traces: mean and largest |Δ log-prob| (nats a token), KL(sampler‖π) a token, truncated share.

        The KL is the mean of r − 1 − log r with r = π/π_sampler over sampled tokens, which is never negative. The
        share is of tokens, or of traces at the level of sequences, whose weight the cap holds back.
        """
        pairs = [pair for g in groups for r, s in zip(g.rollouts, g.scores, strict=True) for pair in _both(r, s)]
        if not pairs:
            return {}
        level: Level = "sequence" if self.config.sampler_correction == "sequence" else "token"
        apart = torch.cat([wide(trainer) - wide(sampler) for trainer, sampler in pairs])
        weights = [truncated_importance(wide(t), wide(s), float("inf"), level) for t, s in pairs]
        return {
            "sampler/gap_mean": float(apart.abs().mean()),
            "sampler/gap_max": float(apart.abs().max()),
            "sampler/kl": float((apart.exp() - 1 - apart).mean()),
            "sampler/truncated_share": float(wide(torch.cat(weights) > self.config.sampler_cap).mean()),
        }


def mismatch_warnings(metrics: Mapping[str, float]) -> list[str]:
    """A sampler so far from the trainer that a correction cannot be trusted."""
    gap = metrics.get("sampler/gap_mean", 0.0)
    if gap <= LARGE_GAP:
        return []
    older = metrics.get("sampler/staleness_max", 0.0)
    why = f"its weights are up to {older:.0f} steps older (generation.ahead); else " if older else ""
    return [
        f"sampler mismatch: its log-probs are {gap:.2g} nats a token away from the trainer's on average; {why}look at "
        "dtype and version of the engine, and whether it has the new weights (docs/engines.md)"
    ]


def _weighted(
    rollout: Rollout, scores: Scores, credit: Credit, streams: set[str] | None, level: Level, cap: float
) -> Credit:
    """``credit`` with the weights of ``streams`` (None: all) corrected."""
    known = _both(rollout, scores)
    if not known or not credit.weights:
        return credit
    ratio = truncated_importance(*known[0], cap, level)
    weights = {k: w * ratio.to(w) if streams is None or k in streams else w for k, w in credit.weights.items()}
    return replace(credit, weights=weights)


def _both(rollout: Rollout, scores: Scores) -> list[tuple[Tensor, Tensor]]:
    """The trainer's and the sampler's log-probs of a trace, ``[T]`` each, as a list of one; empty if not known.

    Of a token that the policy did not write the trainer's stands on both sides: nothing was sampled there.
    """
    trainer = source_log_probs(rollout, scores)
    if trainer is None or not rollout.trace_ids:
        return []
    sampler = torch.tensor(rollout.log_probs, dtype=trainer.dtype, device=trainer.device)
    if rollout.written is not None:
        sampler = torch.where(torch.tensor(rollout.written, device=trainer.device), sampler, trainer)
    return [(trainer, sampler)]
