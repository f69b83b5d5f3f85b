"""DHPO: token and sequence ratio in one surrogate, each clipped in its own region (arXiv 2601.05607).

    ρ_t = π_new/π_old of the token,   s = exp(mean_t log ρ_t),   ρᶜ, sᶜ each clipped by bounds of its own
    ratio   min( [wρ + (1−w)s]A, [wρᶜ + (1−w)sᶜ]A )                     the branches are mixed, then compared
    loss    w·min(ρA, ρᶜA) + (1−w)·min(sA, sᶜA)                         a minimum for each branch, then mixed
    w       ½, or the token's entropy before the update between the least and largest of its response, no gradient

Both readings are equal unless the branches leave their regions on opposite sides (VERIFIED). w = 1 is GRPO's token
surrogate and w = 0 GSPO's (VERIFIED); s has its own value and each token's own gradient, as in GSPO.

Evidence (wave2 B6): no code is public. CONFIRMED-3rd (a reader of its equations 8 to 11): each branch is clipped before
they are mixed, entropies are min-max normalised, averaging gave 55.4 and entropy 54.3 at 4B. INFERRED: the reading
``combine = "ratio"``, high entropy to the token branch (``gate``), the bounds (DAPO's and GSPO's), the mean over
responses of token means. With one update a batch both ratios are 1, and this is GRPO.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup
from covrl.algorithms.group import ENTROPY, Aggregation, GroupConfig, GroupMethod, P
from covrl.config import Settings
from covrl.objectives import between_extremes, clipped_ratio, sequence_mean
from covrl.objectives.kl import LARGEST_LOG_RATIO


class DHPOConfig(GroupConfig):
    """DHPO's settings; ``clip_low`` and ``clip_high`` are the token branch's."""

    clip_high: float = 0.28
    aggregation: Aggregation = "sequence_mean"
    sequence_clip_low: float = Field(3e-4, ge=0, description="ε below 1 of the sequence branch (INFERRED: GSPO's)")
    sequence_clip_high: float = Field(4e-4, ge=0, description="ε above 1 of the sequence branch (INFERRED: GSPO's)")
    combine: Literal["ratio", "loss"] = Field("ratio", description="mixed ratios, or a minimum for each branch")
    gate: Literal["constant", "high_entropy", "low_entropy"] = Field(
        "constant", description="w: token_share, or which tokens take the token ratio (direction INFERRED)"
    )
    token_share: float = Field(0.5, ge=0, le=1, description="w of gate = 'constant'; 1 is GRPO, 0 GSPO")

    @model_validator(mode="after")
    def _two_branches(self) -> DHPOConfig:
        for name, needed in (("ratio", "token"), ("surrogate", "clip"), ("dual_clip", None)):
            if getattr(self, name) != needed:
                raise ValueError(f"{name}: DHPO mixes both ratios, each with its own clip; leave it out")
        if self.posterior_share:
            raise ValueError("posterior_share: p/q corrects each token's advantage, and no sequence ratio; take grpo")
        self.refuse_idle("token_share", self.gate != "constant", f"gate = {self.gate!r}")
        return self


class DHPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "dhpo"
    paper: ClassVar[str] = "arXiv 2601.05607"
    evidence: ClassVar[str] = "third-hand: a reader of its equations; no public code"
    Config: ClassVar[type[Settings]] = DHPOConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: DHPOConfig = config
        super().__init__(config, setup)

    def _surrogate(self, tokens: LossTokens) -> Tensor:
        own, new, weight = self.own, tokens.new[P], tokens.weight["policy"]
        share = self.token_share(tokens)
        token = (new - tokens.old[P]).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        mean = sequence_mean(token.detach(), tokens.owner["trace"]).clamp_max(10.0)
        sequence = mean + new - new.detach()  # the sequence's value, the token's gradient
        if own.combine == "loss":
            by_token = clipped_ratio(token, weight, own.clip_low, own.clip_high)
            by_sequence = clipped_ratio(sequence, weight, own.sequence_clip_low, own.sequence_clip_high)
            return share * by_token + (1 - share) * by_sequence
        rho, s = token.exp(), sequence.exp()
        free = share * rho + (1 - share) * s
        bound = share * rho.clamp(1 - own.clip_low, 1 + own.clip_high) + (1 - share) * s.clamp(
            1 - own.sequence_clip_low, 1 + own.sequence_clip_high
        )
        return torch.where((weight >= 0) == (free <= bound), free, bound)

    def token_share(self, tokens: LossTokens) -> Tensor | float:
        """w, constant or of each token ``[N]``."""
        if self.own.gate == "constant":
            return self.own.token_share
        height = between_extremes(tokens.old[ENTROPY], tokens.owner["trace"])
        return height if self.own.gate == "high_entropy" else 1 - height
