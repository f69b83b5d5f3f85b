"""REINFORCE++ (Hu, arXiv 2501.03262): no group baseline; advantages are normalised over the whole batch.

    A_{i,t} = r_i − β Σ_{u≥t} kl_u            the KL to the base is a reward of every token (k1)
    A       = (A − mean) / (std + 1e-8)       over all tokens of the batch, of all ranks
    loss    = Σ over tokens of −min(ρA, clip(ρ, 1−ε, 1+ε)A) / number of tokens

``baseline = "group"`` subtracts the group's mean from r first (the paper's REINFORCE++-baseline). Evidence: general
knowledge of the paper, not checked against its code; β = 0.01 for ``kl_weight`` is INFERRED, and so is 1e-8. The KL
is in the reward only: as a loss it would be another method's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import Divergence, GroupConfig, GroupMethod, Marked, at_each_token, outcome
from covrl.config import Settings
from covrl.objectives import written_part
from covrl.precision import wide
from covrl.records import Credit, Rollout, ScoredGroup, Scores

Row = tuple[Rollout, Scores, Marked, Tensor]


class ReinforcePPConfig(GroupConfig):
    """REINFORCE++'s defaults."""

    kl: Divergence = "k1"
    kl_in: Literal["loss", "reward"] = "reward"
    kl_weight: float = 0.01
    baseline: Literal["none", "group"] = Field("none", description="what is subtracted from the reward first")

    @model_validator(mode="after")
    def _kl_in_reward(self) -> ReinforcePPConfig:
        if self.kl != "none" and self.kl_in == "loss":
            raise ValueError("kl_in = 'loss': REINFORCE++ has its KL in the reward; set kl = 'none' to have none")
        if "advantage" in self.model_fields_set:
            raise ValueError(
                "advantage: REINFORCE++ normalises over the batch; baseline = 'group' subtracts means first"
            )
        self.refuse_contrast("REINFORCE++ compares over the batch; take grpo")
        if self.resample and self.baseline == "none":
            raise ValueError(
                "resample = true drops the groups that are all right or all wrong, which teach too with baseline = "
                "'none'; leave it out, or set baseline = 'group'"
            )
        return self


class ReinforcePP(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "reinforce_pp"
    paper: ClassVar[str] = "arXiv 2501.03262"
    evidence: ClassVar[str] = "general knowledge, not re-checked"
    credit_scope: Literal["group", "batch"] = "batch"
    Config: ClassVar[type[Settings]] = ReinforcePPConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        super().__init__(config, setup)
        self.own: ReinforcePPConfig = config
        self.rollouts_wanted = 2 if config.baseline == "group" else 1

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        rows = [self._returns(group) for group in groups]
        known = [written_part(returns, r.written) for row in rows for r, _, m, returns in row if m.outcome is not None]
        mean, deviation = self._moments(known)
        return [
            [
                self.credit_of(r, s, m, (returns - mean) / (deviation + 1e-8) * (m.outcome is not None))
                for r, s, m, returns in row
            ]
            for row in rows
        ]

    def _returns(self, group: ScoredGroup) -> list[Row]:
        """Each response with its return-to-go ``[T]``: outcome, length penalty, and the KL from each token on."""
        values = [outcome(r) for r in group.rollouts]
        rewards = [(v or 0.0) - self.overlong(r) for v, r in zip(values, group.rollouts, strict=True)]
        known = [reward for value, reward in zip(values, rewards, strict=True) if value is not None]
        baseline = sum(known) / len(known) if known and self.own.baseline == "group" else 0.0
        rows: list[Row] = []
        for rollout, scores, value, reward in zip(group.rollouts, group.scores, values, rewards, strict=True):
            kl = self._to_go(rollout, scores)
            whole = reward - float(kl[:1].sum())  # the KL from the first token on is that of the response
            rows.append((rollout, scores, Marked(value, whole), reward - baseline - kl))
        return rows

    def _to_go(self, rollout: Rollout, scores: Scores) -> Tensor:
        """β Σ_{u≥t} kl_u, ``[T]``."""
        if self.config.kl == "none":
            return at_each_token(rollout, 0.0)
        return self.config.kl_weight * self.token_kl(rollout, scores).flip(0).cumsum(0).flip(0)

    def _moments(self, returns: Sequence[Tensor]) -> tuple[float, float]:
        """Mean and sample deviation over all tokens of all ranks."""
        count = float(sum(len(r) for r in returns))
        mean = sum(float(wide(r).sum()) for r in returns) / max(count, 1.0)
        squares = sum(float((wide(r) - mean).square().sum()) for r in returns)
        return mean, math.sqrt(squares / max(count - 1.0, 1.0))
