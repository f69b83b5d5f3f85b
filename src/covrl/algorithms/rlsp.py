"""RLSP: PPO on the outcome plus a reward for exploring, which here is length (arXiv 2502.06773).

    r = 1 right,  0 wrong,  −0.5 without an answer in its place
    r ← r − C/(characters of the thought / 4)                    the longer it thinks, the less is taken off
    then PPO with its critic; r is the reward of the last token

Evidence (catalogue 3.21, wave2 A8): CONFIRMED-code: r, C = 1000 (0 is off), characters over 4 for tokens, PPO with
actor 2e-7, critic 2e-6, KL 0.05, λ = 0.95, temperature 0.7. Not built: the judge of creativity, which it mixes as
0.8·r + 0.2·judge. INFERRED: ``largest_penalty``, a bound that the code has not: a thought of 400 characters without an
answer has −10.5 there. No answer in its place stands for its missing box. Its sign is opposite to that of all that
save tokens, so ``overlong_buffer`` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import outcome
from covrl.algorithms.ppo import PPO, PPOConfig
from covrl.config import Settings
from covrl.records import Credit, Rollout, ScoredGroup, Scores

CHARACTERS_PER_TOKEN = 4
BOUNDED = 0.95
"""Share of responses at the bound from which a step warns: among them length makes no difference."""


class RLSPConfig(PPOConfig):
    """The settings beside PPO's."""

    exploration: float = Field(1000.0, ge=0, description="C; 0: none. CONFIRMED-code: 1000")
    largest_penalty: float = Field(1.0, gt=0, description="most that length takes off. INFERRED: no bound there")
    no_answer: float = Field(-0.5, le=0, description="r without an answer in its place. CONFIRMED-code")

    @model_validator(mode="after")
    def _one_sign(self) -> RLSPConfig:
        if self.overlong_buffer:
            raise ValueError(
                f"overlong_buffer = {self.overlong_buffer} takes off for length what RLSP gives for it; leave it out"
            )
        self.refuse_idle("largest_penalty", self.exploration == 0, "exploration = 0")
        return self


class RLSP(PPO):
    """See the module's docstring."""

    name: ClassVar[str] = "rlsp"
    paper: ClassVar[str] = "arXiv 2502.06773"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = RLSPConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.rlsp: RLSPConfig = config
        super().__init__(config, setup)

    def token_rewards(self, rollout: Rollout, scores: Scores) -> Tensor:
        rewards = super().token_rewards(rollout, scores)
        extra = torch.zeros_like(rewards)
        extra[-1:] = self.bonus(rollout)
        return rewards + extra

    def bonus(self, rollout: Rollout) -> float:
        """What r has beside the outcome: the lack of an answer, and the length of the thought."""
        answered = outcome(rollout) == 1.0 or self.prompts.said(rollout.text) is not None
        return (0.0 if answered else self.rlsp.no_answer) - self.penalty(rollout)

    def penalty(self, rollout: Rollout) -> float:
        """What length takes off."""
        characters = len(rollout.text.partition(self.prompts.config.close)[0])
        return length_penalty(characters, self.rlsp.exploration, self.rlsp.largest_penalty)

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also what length takes off in the mean, and the share of responses from which it takes the most."""
        taken = [self.penalty(rollout) for group in groups for rollout in group.rollouts]
        bound = self.rlsp.largest_penalty
        own = {
            "rlsp/penalty": sum(taken) / len(taken) if taken else float("nan"),
            "rlsp/bounded_share": sum(p >= bound for p in taken) / len(taken) if taken else float("nan"),
        }
        return super().monitors(groups, credits) | own

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Thoughts so short that no length makes a difference."""
        share = metrics.get("rlsp/bounded_share", 0.0)
        if not share > BOUNDED:
            return super().warnings(metrics)
        least = self.rlsp.exploration * CHARACTERS_PER_TOKEN / self.rlsp.largest_penalty
        return [
            *super().warnings(metrics),
            f"length makes no difference: {share:.0%} of the thoughts are shorter than {least:.0f} characters, where "
            "all lose the same; lower algorithm.exploration to about a quarter of a thought's characters",
        ]


def length_penalty(characters: int, exploration: float, largest: float) -> float:
    """C/(characters/4), at most ``largest``; 0 with C = 0.

    Example:
        >>> length_penalty(8000, 1000.0, 1.0)  # 0.5
    """
    if exploration == 0:
        return 0.0
    return min(exploration * CHARACTERS_PER_TOKEN / max(characters, 1), largest)
