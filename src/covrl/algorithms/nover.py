"""NOVER-style: incentive training by the rank of a perplexity (Liu et al., arXiv 2505.16022).

A whole response is sampled and trained; a slowly following copy π_ref of the policy reads the reference answer behind
its thought, and what counts is the order within the group, not the value:

    ppl      exp( −mean_j log π_ref(y_j|x,z) / max(1, 1 + log10 |z|) )                |z|: tokens of the thought
    rank     (V − place)/V among the V well-formed responses, place 0 for the lowest perplexity: 1 for the best
    short    share of the other well-formed responses that are longer *and* have a higher perplexity
    format   1 if the response is a closed thought and an answer between the tags
    R        rank + short + format, each with weight 1; a malformed response earns 0
    loss     −min(ρA, clip(ρ, 1−ε, 1+ε)A) + β k3(π‖π_ref),  A = R − mean_group(R),  mean over all tokens

Evidence. CONFIRMED in the authors' code: rank, short and format with weight 1, the perplexity and its length norm,
8 responses, advantages not divided by a deviation, β = 0.1, responses cut at the limit carry no loss, the reference
becomes 0.6 of itself + 0.4 of the policy every 100 steps, rate 1e-5 with LoRA of rank 16, temperature 0.6 to 0.7 by
version, 2,048 tokens. INFERRED: token-level ratios with ε = 0.2 and the mean over tokens; equal perplexities share
their places (the authors' sort favours the one that comes first, so its rewards depend on the order of a group).

What the authors' code does differently: it trains adapters, and the copy is of the adapters; later versions of its
configuration take sequence-level ratios with clip 0.1/0.28, Dr.GRPO's constant denominator and the loss on the fifth
of the tokens with the highest entropy. The length norm lowers the perplexity of longer thoughts by itself
(``length_norm = false`` takes it away), which ``short`` works against.

A user's reward function adds to R. A batch may serve for several updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import ANSWER, REFERENCE, OnePrompt, P, constant, likelihood_metrics, mean, shaping
from covrl.config import Settings
from covrl.models.spec import ModelSpec
from covrl.objectives import centred, clipped_ratio, kl_estimate, trace_tokens
from covrl.records import Credit, Rollout, ScoredGroup, Scores


class NOVERConfig(Settings):
    """NOVER's switches."""

    rank_weight: float = Field(1.0, ge=0, description="weight of the rank. CONFIRMED")
    short_weight: float = Field(1.0, ge=0, description="weight of being shorter and better than others. CONFIRMED")
    format_weight: float = Field(1.0, ge=0, description="weight of the format. CONFIRMED")
    length_norm: bool = Field(True, description="divide the answer's NLL by max(1, 1 + log10 |z|). CONFIRMED")
    beta: float = Field(0.1, ge=0, description="weight of the k3 loss to the reference copy. CONFIRMED")
    clip: float = Field(0.2, gt=0, description="ε (INFERRED)")
    sync_every: int = Field(100, ge=1, description="steps between moves of the reference copy. CONFIRMED")
    sync_keep: float = Field(0.6, ge=0, le=1, description="what the copy keeps of itself in a move. CONFIRMED")
    mask_truncated: bool = Field(True, description="responses cut at the limit carry no loss. CONFIRMED")


class NOVER(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "nover"
    paper: ClassVar[str] = "arXiv 2505.16022"
    evidence: ClassVar[str] = "reward confirmed in the authors' code, the loss a plain form of it"
    Config: ClassVar[type[Settings]] = NOVERConfig
    samples: Literal["thought", "response"] = "response"

    def __init__(self, config: NOVERConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.read_responses(model="reference")
        self.read_reference(ModelSpec("reference", "average", every=config.sync_every, keep=config.sync_keep))
        self.streams = (
            Stream("policy", "trace", 1.0, trace_tokens),
            Stream("kl", "trace", config.beta, trace_tokens),
        )

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        rewards = self.rewards(group)
        credits = []
        for rollout, scores, reward, advantage in zip(
            group.rollouts, group.scores, rewards, centred(rewards), strict=True
        ):
            masked = self.config.mask_truncated and rollout.finish == "length"
            weights = {"policy": constant(scores[P], advantage), "kl": constant(scores[P], 1.0)}
            credits.append(Credit({} if masked else weights, reward=reward, advantage=advantage))
        return credits

    def rewards(self, group: ScoredGroup) -> list[float]:
        """R of each response of a question."""
        rewards = [shaping(rollout) for rollout in group.rollouts]
        formed = [i for i, r in enumerate(group.rollouts) if self.well_formed(r, group.scores[i])]
        lengths = [self._thought_tokens(group.rollouts[i]) for i in formed]
        found = [
            log_perplexity(group.scores[i], length if self.config.length_norm else 0)
            for i, length in zip(formed, lengths, strict=True)
        ]
        parts = zip(formed, rank_rewards(found), short_rewards(found, lengths), strict=True)
        for i, rank, short in parts:
            rewards[i] += self.config.rank_weight * rank + self.config.short_weight * short + self.config.format_weight
        return rewards

    def well_formed(self, rollout: Rollout, scores: Scores) -> bool:
        """A closed thought, then an answer between the tags, with nothing in between."""
        return rollout.finish == "closed" and ANSWER in scores and self.prompts.said(rollout.text) is not None

    def _thought_tokens(self, rollout: Rollout) -> int:
        thought = self.prompts.thought(rollout)
        return len(thought.trace_ids) if thought else 0

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        new, old, clip = tokens.new, tokens.old, self.config.clip
        return {
            "policy": -clipped_ratio(new[P] - old[P], tokens.weight["policy"], clip, clip),
            "kl": kl_estimate(new[P], old[REFERENCE], "k3"),
        }

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the share of well-formed responses and the mean log perplexity without length norm, in nats."""
        formed = [
            (r, s)
            for group in groups
            for r, s in zip(group.rollouts, group.scores, strict=True)
            if self.well_formed(r, s)
        ]
        count = sum(len(group.rollouts) for group in groups)
        return likelihood_metrics(groups, credits) | {
            "format/answered_share": len(formed) / count if count else float("nan"),
            "answer/log_perplexity": mean([log_perplexity(s, 0) for _, s in formed]),
        }


def log_perplexity(scores: Scores, length: int) -> float:
    """NLL per token of the reference answer under the copy, divided for ``length`` tokens of thought (0: not)."""
    return -float(scores[ANSWER].mean()) / max(1.0, 1 + math.log10(max(length, 1)))


def rank_rewards(perplexities: Sequence[float]) -> list[float]:
    """(V − place)/V by ascending perplexity, place from 0; equal perplexities share the mean of their places."""
    count = len(perplexities)
    places = [
        sum(other < own for other in perplexities) + (sum(other == own for other in perplexities) - 1) / 2
        for own in perplexities
    ]
    return [(count - place) / count for place in places]


def short_rewards(perplexities: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Share of the others that are longer and have a higher perplexity; 0 for a single response."""
    pairs = list(zip(perplexities, lengths, strict=True))
    if len(pairs) < 2:
        return [0.0] * len(pairs)
    return [sum(p < q and n < m for q, m in pairs) / (len(pairs) - 1) for p, n in pairs]
