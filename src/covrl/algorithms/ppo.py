"""PPO with a critic: Proximal Policy Optimization on responses (Schulman et al., arXiv 1707.06347; GAE 1506.02438).

    r_t       r at the last token (right 1, wrong 0, or the user's reward) − β kl_t with the KL in the reward
    δ_t       r_t + γ V(s_{t+1}) − V(s_t)           s_t is the state before token t; after the last token V = 0
    A_t       Σ_l (γλ)^l δ_{t+l},  then (A − mean)/(std + 1e-8) over all tokens of the batch where ``whiten``
    policy    −min(ρA, clip(ρ, 1−ε, 1+ε)A)
    value     ½ max((V − R)², (clip(V, V_old ± ε_v) − R)²)          R_t = A_t + V_old(s_t), before whitening

Evidence (catalogue 3.22 gives the golden of GAE). CONFIRMED in code (OpenAI baselines, TRL, verl): GAE, ε = 0.2,
whitening over tokens, the clipped value loss with the larger of the two. λ = 0.95 and γ = 1 are common for language
models (CONFIRMED-code, OpenRLHF and TRL); the critic's own rate, ten times the policy's, is too (verl 1e-5 beside
1e-6). INFERRED: a critic that starts at V = 0 everywhere, a response that is cut at the limit counts as ended, and an
unknown verdict trains neither policy nor critic. VERIFIED by enumeration: with γ = λ = 1, no whitening and any critic,
the policy's expected gradient is REINFORCE's, with the critic's values as its baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup, Stream
from covrl.algorithms.group import Aggregation, GroupConfig, GroupMethod, Marked, outcome
from covrl.config import Settings
from covrl.models.spec import ModelSpec
from covrl.objectives.returns import generalised_advantages, whitened
from covrl.objectives.written import written_part
from covrl.precision import wide
from covrl.records import Credit, Output, Rollout, ScoredGroup, Scores
from covrl.scoring.head import value
from covrl.scoring.pack import Context, Reading

VALUE, RETURN = Output("trace", "value"), Output("trace", "return")


class PPOConfig(GroupConfig):
    """PPO's settings beside the family's."""

    aggregation: Aggregation = "token_mean"
    gamma: float = Field(1.0, gt=0, le=1, description="γ, the discount of a token")
    lam: float = Field(0.95, ge=0, le=1, description="λ of GAE: 1 trusts the return, 0 the critic")
    whiten: bool = Field(True, description="advantages with mean 0 and deviation 1 over all tokens of the batch")
    critic: Literal["copy", "trunk"] = Field(
        "copy", description="a copy of the base with a value head, or a value head on the policy's own trunk"
    )
    critic_rate: float = Field(10.0, gt=0, description="the critic's learning rate over training.learning_rate")
    critic_learning_rate: float | None = Field(
        None, gt=0, description="the critic's largest learning rate itself, in the place of critic_rate"
    )
    value_weight: float = Field(1.0, gt=0, description="weight of the value loss; a copy has a gradient of its own")
    value_clip: float | None = Field(0.2, gt=0, description="ε_v: how far V moves before its loss stops to fall")

    @model_validator(mode="after")
    def _one_baseline(self) -> PPOConfig:
        if "advantage" in self.model_fields_set:
            raise ValueError(
                "advantage: PPO's advantages come from its critic; the group methods compare within groups"
            )
        self.refuse_idle("critic_rate", self.critic_learning_rate is not None, "a critic_learning_rate")
        self.refuse_contrast("PPO's advantages are its critic's; take a group method")
        if self.posterior_share:
            raise ValueError("posterior_share with a critic: values are of the prior's states; take a group method")
        return self


class PPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "ppo"
    paper: ClassVar[str] = "arXiv 1707.06347"
    evidence: ClassVar[str] = "confirmed in several repositories' code; gradient verified by enumeration"
    Config: ClassVar[type[Settings]] = PPOConfig
    rollouts_wanted: int = 1

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: PPOConfig = config
        super().__init__(config, setup)
        self.credit_reads = "all"
        self.credit_scope = "batch" if config.whiten else "group"
        self.streams += (Stream("value", "trace", config.value_weight, self.streams[0].denominator),)

    def _contexts(self) -> None:
        super()._contexts()
        critic = ModelSpec(
            "critic",
            trainable=True,
            head="value",
            on_trunk=self.own.critic == "trunk",
            rate=self.own.critic_rate if self.own.critic_learning_rate is None else 1.0,
            learning_rate=self.own.critic_learning_rate,
        )
        self.models += (critic,)
        self.contexts += (Context("critic", self.prompts.response_row, model="critic"),)
        reading = Reading("trace", ("critic",), value, (VALUE.name,))
        self.scoring += (reading,)
        self.training += (reading,)

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        rows = [
            [(r, s, outcome(r), *self._judged(r, s)) for r, s in zip(g.rollouts, g.scores, strict=True)] for g in groups
        ]
        known = [written_part(a, r.written) for row in rows for r, _, result, a, _ in row if result is not None]
        scale = whitened(known) if self.own.whiten else (lambda advantage: advantage)
        return [[self._credit_of(*trace, scale) for trace in row] for row in rows]

    def _judged(self, rollout: Rollout, scores: Scores) -> tuple[Tensor, Tensor]:
        """Advantage and return of each token, ``[T]`` each."""
        values = scores[VALUE]
        advantages = generalised_advantages(self.token_rewards(rollout, scores), values, self.own.gamma, self.own.lam)
        return advantages, advantages + values

    def token_rewards(self, rollout: Rollout, scores: Scores) -> Tensor:
        """r_t of each token, ``[T]``."""
        rewards = torch.zeros_like(scores[VALUE])
        if len(rewards):
            rewards[-1] = (outcome(rollout) or 0.0) - self.overlong(rollout)
        if self.config.kl != "none" and self.config.kl_in == "reward":
            rewards -= self.config.kl_weight * self.token_kl(rollout, scores)
        return rewards

    def _credit_of(
        self,
        rollout: Rollout,
        scores: Scores,
        result: float | None,
        advantages: Tensor,
        returns: Tensor,
        scale: Callable[[Tensor], Tensor],
    ) -> Credit:
        if result is None:  # unknown: no reward to learn from
            return Credit({})
        marked = Marked(result, result - self.overlong(rollout))
        credit = self.credit_of(rollout, scores, marked, scale(advantages))
        return replace(credit, constants={RETURN: returns})

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        value_loss = clipped_value_loss(tokens.new[VALUE], tokens.old[VALUE], tokens.old[RETURN], self.own.value_clip)
        return super().loss(tokens) | {"value": value_loss}

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the critic's mean value, and the share of the returns' variance that it explains."""
        pairs = [
            (wide(s[VALUE]), wide(own.constants[RETURN]))
            for group, row in zip(groups, credits, strict=True)
            for s, own in zip(group.scores, row, strict=True)
            if RETURN in own.constants
        ]
        if not pairs:
            return super().monitors(groups, credits)
        values, returns = (torch.cat(part) for part in zip(*pairs, strict=True))
        spread = float(returns.var(unbiased=False))
        explained = 1 - float((returns - values).var(unbiased=False)) / spread if spread > 0 else float("nan")
        own = {"value/mean": float(values.mean()), "value/explained_variance": explained}
        return super().monitors(groups, credits) | own


def clipped_value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """½ max((V − R)², (clip(V, V_old ± ε) − R)²) per token; the plain half square without a clip; ``[N]``."""
    plain = (new - returns) ** 2
    if clip is None:
        return 0.5 * plain
    held = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (held - returns) ** 2)
