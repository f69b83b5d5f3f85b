"""PSR, NSR and W-REINFORCE: learning from successes, failures, or mostly failures (Zhu et al., arXiv 2506.01347).

    A = λ on every token of a right response, −μ on every token of a wrong one; no baseline, no deviation
    PSR  λ = 1, μ = 0      NSR  λ = 0, μ = 1      W-REINFORCE  λ = 0.1, μ = 1      (λ = μ = 1 is REINFORCE on ±1)
    loss = Σ over tokens of −min(ρA, clip(ρ, 0.8, 1.2)A) / number of tokens

Evidence (spec C2, catalogue 3.17): CONFIRMED in the authors' code. It first cuts the batch to the rows that have
weight, so PSR and NSR divide by kept tokens only and their steps are larger than W-REINFORCE's at the same rate: that
is ``denominator = "kept"``, a labelled option, in which the rows cut lose their KL and entropy bonus too. The default
divides by all tokens, so that the three differ in their weights alone (INFERRED: the sane convention). The authors'
configuration also has an entropy bonus of 1e-3 (CONFIRMED-code), which is off here. NSR has no floor to push against:
watch lengths and entropy.

A response is weighed by its verdict alone: whatever shapes a reward or compares rewards would do nothing or harm, and
is refused. So is a reward function whose value is neither 0 nor 1: how right a response is cannot be told from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod, Marked, outcome
from covrl.config import Settings
from covrl.records import Credit, Rollout, ScoredGroup, Scores

BY_VERDICT = "a response is weighed by its own verdict here (right_weight, wrong_weight)"


class SignedConfig(GroupConfig):
    """W-REINFORCE's defaults."""

    right_weight: float = Field(0.1, ge=0, description="λ: weight of right responses")
    wrong_weight: float = Field(1.0, ge=0, description="μ: weight of wrong responses")
    denominator: Literal["all", "kept"] = Field(
        "all",
        description="tokens that the sums are divided by: all, or those of rows with weight, the others being cut "
        "with their KL and entropy bonus as in the authors' code",
    )

    @model_validator(mode="after")
    def _by_verdict(self) -> SignedConfig:
        """Refuse what acts through rewards and their comparison, neither of which there is."""
        if "advantage" in self.model_fields_set:
            raise ValueError(f"advantage compares the rewards of a group, and {BY_VERDICT}; leave it out")
        self.refuse_contrast(BY_VERDICT)
        if self.kl != "none" and self.kl_in == "reward":
            raise ValueError(f"kl_in = 'reward' would do nothing: {BY_VERDICT}, not by its reward; set kl_in = 'loss'")
        if self.overlong_buffer:
            raise ValueError(f"overlong_buffer shapes the reward and would do nothing: {BY_VERDICT}; leave it out")
        if self.resample:
            raise ValueError(
                f"resample = true drops the groups that are all right or all wrong, which teach too: {BY_VERDICT}, "
                "without a baseline; leave it out"
            )
        if self.right_weight == self.wrong_weight == 0:
            raise ValueError("right_weight = 0 with wrong_weight = 0 leaves nothing to learn from; raise one of them")
        if self.denominator == "kept" and self.aggregation != "token_mean":
            raise ValueError(
                f"denominator = 'kept' counts tokens, which aggregation = {self.aggregation!r} does not divide by; "
                "set aggregation = 'token_mean', or denominator = 'all'"
            )
        return self


class PSRConfig(SignedConfig):
    """PSR's defaults."""

    right_weight: float = 1.0
    wrong_weight: float = 0.0


class NSRConfig(SignedConfig):
    """NSR's defaults."""

    right_weight: float = 0.0
    wrong_weight: float = 1.0


class WReinforce(GroupMethod):
    """W-REINFORCE: negative samples mostly; see the module's docstring."""

    name: ClassVar[str] = "w_reinforce"
    paper: ClassVar[str] = "arXiv 2506.01347"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = SignedConfig
    rollouts_wanted: int = 1
    by_verdict: str | None = BY_VERDICT

    def __init__(self, config: Any, setup: Setup) -> None:
        super().__init__(config, setup)
        self.signed: SignedConfig = config
        if config.denominator == "kept":
            self.streams = tuple(s._replace(denominator=self._kept_tokens) for s in self.streams)

    def advantages(self, marked: Sequence[Marked]) -> list[float | None]:
        return [None if m.outcome is None else self._sign(m.outcome) for m in marked]

    def credit_of(self, rollout: Rollout, scores: Scores, marked: Marked, advantage: Tensor) -> Credit:
        credit = super().credit_of(rollout, scores, marked, advantage)
        cut = self.signed.denominator == "kept" and not self._has_weight(rollout)
        nothing = {name: torch.zeros_like(weight) for name, weight in credit.weights.items()}
        return replace(credit, weights=nothing) if cut else credit

    def _sign(self, value: float) -> float:
        """λ for an outcome of 1, −μ for one of 0; there are no others (``by_verdict``)."""
        return self.signed.right_weight if value == 1.0 else -self.signed.wrong_weight

    def _kept_tokens(self, groups: Sequence[ScoredGroup]) -> float:
        return float(sum(r.loss_tokens for g in groups for r in g.rollouts if self._has_weight(r)))

    def _has_weight(self, rollout: Rollout) -> bool:
        value = outcome(rollout)
        return value is not None and self._sign(value) != 0


class PSR(WReinforce):
    """PSR: positive samples only; see the module's docstring."""

    name: ClassVar[str] = "psr"
    Config: ClassVar[type[Settings]] = PSRConfig


class NSR(WReinforce):
    """NSR: negative samples only; see the module's docstring."""

    name: ClassVar[str] = "nsr"
    Config: ClassVar[type[Settings]] = NSRConfig
