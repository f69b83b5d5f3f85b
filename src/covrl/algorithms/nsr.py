"""PSR, NSR and W-REINFORCE: learning from successes, failures, or mostly failures (Zhu et al., arXiv 2506.01347).

    A = λ on every token of a right response, −μ on every token of a wrong one; no baseline, no deviation
    PSR  λ = 1, μ = 0      NSR  λ = 0, μ = 1      W-REINFORCE  λ = 0.1, μ = 1      (λ = μ = 1 is REINFORCE on ±1)
    loss = Σ over tokens of −min(ρA, clip(ρ, 0.8, 1.2)A) / number of tokens

Evidence (spec C2, catalogue 3.17): CONFIRMED in the authors' code. It first cuts the batch to the rows that have
weight, so PSR and NSR divide by kept tokens only and their steps are larger than W-REINFORCE's at the same rate: that
is ``denominator = "kept"``, a labelled option. The default divides by all tokens, so that the three differ in their
weights alone (INFERRED: the sane convention). The authors' configuration also has an entropy bonus of 1e-3
(CONFIRMED-code), which is off here. NSR has no floor to push against: watch lengths and entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod, Marked, outcome
from covrl.config import Settings
from covrl.records import Rollout, ScoredGroup


class SignedConfig(GroupConfig):
    """W-REINFORCE's defaults."""

    right_weight: float = Field(0.1, ge=0, description="λ: weight of right responses")
    wrong_weight: float = Field(1.0, ge=0, description="μ: weight of wrong responses")
    denominator: Literal["all", "kept"] = Field(
        "all", description="tokens that the sum is divided by: all, or (the authors' code) those of rows with weight"
    )

    @model_validator(mode="after")
    def _no_comparison(self) -> SignedConfig:
        if "advantage" in self.model_fields_set:
            raise ValueError("advantage: a response is weighed by its own verdict here and compared with no group")
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
    evidence: ClassVar[str] = "confirmed in the authors' code"
    Config: ClassVar[type[Settings]] = SignedConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        super().__init__(config, setup)
        self.signed: SignedConfig = config
        if config.denominator == "kept":
            self.streams = tuple(s._replace(denominator=self._kept_tokens) for s in self.streams)

    def advantages(self, marked: Sequence[Marked]) -> list[float | None]:
        return [None if m.outcome is None else self._sign(m.outcome) for m in marked]

    def _sign(self, value: float) -> float:
        """λ for an outcome above one half, −μ for one below; the loss knows right and wrong only."""
        return self.signed.right_weight if value > 0.5 else -self.signed.wrong_weight

    def _kept_tokens(self, groups: Sequence[ScoredGroup]) -> float:
        return float(sum(len(r.trace_ids) for g in groups for r in g.rollouts if self._has_weight(r)))

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
