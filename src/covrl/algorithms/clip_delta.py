"""Clip and Delta: PPO with process rewards that cannot be farmed (Gao et al., arXiv 2410.15115).

    p_k       score of reasoning step k by a process reward model
    clip      p'_k = min(p_k − η, 0)                          most steps lose nothing, and no step gains
    delta     p'_k = p_k − p_{k+1}, the last keeps p_K        the sum from step k on is p_k, however many steps follow
    both      clip first, then delta
    r_t       success at the last token + α p'_k at the last token of step k;  then PPO with its critic

Evidence (catalogue 3.11): CONFIRMED-3rd, CHECKED by its golden values; no code is public. INFERRED: α = 0.5 (the
sources have 0.1 to 1); η = 0.9 as "most steps get 0"; what the last step has in delta, ``terminal`` (the sources
differ); refined scores are not normalised. Empty lines are no steps of their own: raw scores were farmed with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.ppo import PPO, PPOConfig
from covrl.config import Settings
from covrl.objectives.steps import clipped_scores, score_differences
from covrl.records import Rollout, Scores
from covrl.rewards.steps import token_rewards


class ClipDeltaConfig(PPOConfig):
    """The settings beside PPO's."""

    refine: Literal["clip", "delta", "both", "raw"] = Field(
        "both", description="how scores are bounded; raw, the sum of the scores, is a control that collapses"
    )
    step_weight: float = Field(0.5, ge=0, description="α")
    threshold: float = Field(0.9, description="η, of clip and both")
    terminal: Literal["score", "zero"] = Field("score", description="what the last step has in delta: its score, or 0")


class ClipDelta(PPO):
    """See the module's docstring."""

    name: ClassVar[str] = "clip_delta"
    paper: ClassVar[str] = "arXiv 2410.15115"
    evidence: ClassVar[str] = "third-hand: a summary and reviews; golden values checked"
    Config: ClassVar[type[Settings]] = ClipDeltaConfig
    wants_step_scores: bool = True

    def __init__(self, config: Any, setup: Setup) -> None:
        self.steps_config: ClipDeltaConfig = config
        super().__init__(config, setup)

    def refined(self, scores: Sequence[float]) -> list[float]:
        """p'_k of the steps of one response."""
        config = self.steps_config
        values = list(scores)
        if config.refine in ("clip", "both"):
            values = clipped_scores(values, config.threshold)
        if config.refine in ("delta", "both"):
            values = score_differences(values, keep_last=config.terminal == "score")
        return values

    def token_rewards(self, rollout: Rollout, scores: Scores) -> Tensor:
        plain = super().token_rewards(rollout, scores)
        if not rollout.steps:
            return plain
        extra = token_rewards(self.refined(rollout.step_scores), rollout.steps, len(rollout.trace_ids))
        return plain + self.steps_config.step_weight * extra.to(plain)
