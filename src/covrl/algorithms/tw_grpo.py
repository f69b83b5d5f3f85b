"""TW-GRPO: positions at which a group's responses differ weigh more (code longmalongma/TW-GRPO, 2025).

    p_i,t   the next-token distribution of response i at its token t; uniform where the response has ended
    m̄_t     mean_i log p_i,t                                      over the vocabulary, entry by entry
    D_t     mean_i Σ_v [ exp(d) − d − 1 ],  d = m̄_t − log p_i,t, held within ±11
    w_t     1 + (α − 1)·(D_t − min D)/(max D − min D)             α = 1.7; one weight for a position of the group
    loss    Σ_tokens w_t·(−min(ρA, clip(ρ, 1−0.2, 1+0.28)A)) / number of tokens,  A = (r − mean)/(std + 1e-4)

With α = 1 this is GRPO with a token mean (VERIFIED). D sums k3 over the vocabulary without weights, so it is no KL; and
the same position is not the same content once responses have parted.

Evidence (catalogue 3.19): CONFIRMED in the authors' code: D and its clamp, the uniform stand-in (which lifts D late in
a group), min-max over positions, α = 1.7 in their script and 1.4 by default, both clips, the floor 1e-4. INFERRED
(ours): weights are those of the policy that sampled, and constants. Theirs have gradient, a defect, and old log-probs
that are the new ones, so that no clip ever binds. D where all positions are alike: w = 1.

Its reward for questions with several right choices and its inverted questions are rewards and data, not built here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod
from covrl.config import Settings
from covrl.records import Credit, Output, ScoredGroup
from covrl.scoring.groups import GroupReading, GroupStates

DIVERGENCE = Output("trace", "group_divergence")
LARGEST = 11.0
"""Bound on |d| (CONFIRMED-code)."""


class TWGRPOConfig(GroupConfig):
    """TW-GRPO's defaults."""

    clip_high: float = 0.28
    alpha: float = Field(1.7, ge=1, description="α, the largest weight of a position. CONFIRMED: 1.7; 1 is GRPO")

    @model_validator(mode="after")
    def _of_the_prior(self) -> TWGRPOConfig:
        if self.posterior_share:
            raise ValueError("posterior_share: positions of responses to two prompts are not compared; take grpo")
        return self


class TWGRPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "tw_grpo"
    paper: ClassVar[str] = "TW-GRPO, 2025"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = TWGRPOConfig
    std_epsilon: ClassVar[float] = 1e-4

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: TWGRPOConfig = config
        super().__init__(config, setup)
        self.group_readings = (GroupReading("prior", divergences, "group_divergence"),)

    def _credit_group(self, group: ScoredGroup) -> list[Credit]:
        found = super()._credit_group(group)
        scores = [s[DIVERGENCE].cpu().double() for s in group.scores]
        weights = position_weights(scores, self.own.alpha)
        return [weighted(own, weight) for own, weight in zip(found, weights, strict=True)]

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the mean weight of a token, by which a step is larger than GRPO's."""
        scores = [[s[DIVERGENCE].cpu().double() for s in group.scores] for group in groups]
        every = [weight for row in scores for weight in position_weights(row, self.own.alpha)]
        mean = float(torch.cat(every).mean()) if every else float("nan")
        return super().monitors(groups, credits) | {"tw_grpo/mean_weight": mean}


def weighted(own: Credit, weight: Tensor) -> Credit:
    """The credit with the policy's weights times ``weight`` ``[T]``."""
    policy = own.weights["policy"]
    weights = {**own.weights, "policy": policy * weight.to(policy)}
    return Credit(weights, own.constants, own.reward, own.advantage)


def position_weights(divergences: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """w of each token, ``[T_i]``, from D at its position: the longest response has those of all positions."""
    longest = max(divergences, key=len, default=torch.zeros(0))
    room = float(longest.max() - longest.min()) if len(longest) else 0.0
    if room <= 0:
        return [torch.ones_like(own) for own in divergences]
    return [1 + (alpha - 1) * (own - longest.min()) / room for own in divergences]


def divergences(states: GroupStates) -> list[Tensor]:
    """D at each position of a group, given to every response that has the position: ``[T_i]``."""
    lengths = [len(targets) for targets in states.targets]
    longest = max(lengths, default=0)
    at_once = max(1, states.positions // max(len(lengths), 1))
    parts = [_divergence(states, slice(at, min(at + at_once, longest))) for at in range(0, longest, at_once)]
    if not parts:
        return [hidden.new_zeros(0) for hidden in states.hidden]
    every = torch.cat(parts)
    return [every[:length] for length in lengths]


def _divergence(states: GroupStates, at: slice) -> Tensor:
    """D at some positions ``[n]``; of the responses that still run there, and the uniform for the others."""
    logs = [states.log_probs(hidden[at]) for hidden in states.hidden if len(hidden) > at.start]
    count, vocabulary = len(states.hidden), logs[0].shape[1]
    uniform = -math.log(vocabulary)
    total = logs[0].new_full((at.stop - at.start, vocabulary), 0.0)
    running = total.new_zeros(at.stop - at.start)
    for part in logs:
        total[: len(part)] += part
        running[: len(part)] += 1
    mean = (total + (count - running)[:, None] * uniform) / count
    found = (count - running) * _spread(mean - uniform)
    for part in logs:
        found[: len(part)] += _spread(mean[: len(part)] - part)
    return found / count


def _spread(difference: Tensor) -> Tensor:
    """Σ_v exp(d) − d − 1, ``[n, V] -> [n]``."""
    d = difference.clamp(-LARGEST, LARGEST)
    return (d.exp() - d - 1).sum(dim=-1)
