"""STEER: tokens whose update would change the entropy most are damped (code zz-haooo/STEER, 2025).

    Ω_t    |ρ_t A_t (1 − x_t)(log x_t + H_t)|              x_t = π_new(y_t), H_t the entropy, both without gradient
    w_t    damp     exp(−kΩ_t),  k = −log λ_min / max(Ω_max, 0.02),  held in [λ_min, 1]
           linear   λ_max − (λ_max − λ_min)(Ω_t − Ω_min)/(Ω_max − Ω_min),  held in [λ_min, λ_max]
    loss   mean over tokens of −w_t · min(ρA, clip(ρ, 1−0.2, 1+0.28)A), ρ at most 10 where A < 0

``metric = "exact"`` takes the first-order change of the entropy itself, |ρA (x(log x + H) − Σ_v π_v²(log π_v + H))|: on
random softmaxes the code's Ω correlates with the true change by 0.35 only (VERIFIED, catalogue 3.4). With λ_min = λ_max
= 1 the method is GRPO (VERIFIED).

Evidence (catalogue 3.4): CONFIRMED in the authors' code: Ω, both weights, λ, the floor 0.02, the clips, the dual clip,
no KL; x, H and ρ are those of the update's own forward. INFERRED (ours): Ω_min and Ω_max are of the whole batch at the
weights that sampled it. Theirs are of each micro-batch, so that the result depends on how the batch is cut up. On the
first update they are the batch's own; later an Ω beyond them is held in the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup
from covrl.algorithms.group import ENTROPY, GroupConfig, GroupMethod, P
from covrl.config import Settings
from covrl.objectives.kl import LARGEST_LOG_RATIO
from covrl.records import Credit, Output, ScoredGroup
from covrl.scoring.head import log_prob_entropy
from covrl.scoring.pack import Reading

LEAST, MOST, STRENGTH = Output("trace", "least"), Output("trace", "most"), Output("trace", "strength")
CONCENTRATION = Output("trace", "concentration")
SMALLEST, FLOOR = 1e-8, 0.02
"""Distance of x from 0 and 1, and the least Ω_max that ``damp`` divides by (CONFIRMED-code, both)."""


class STEERConfig(GroupConfig):
    """STEER's defaults."""

    clip_high: float = 0.28
    dual_clip: float | None = Field(10.0, gt=1, description="bound on the ratio of negative advantages")
    weights: Literal["damp", "linear"] = Field("damp", description="from Ω to a weight; linear lifts small Ω above 1")
    least_weight: float = Field(0.8, gt=0, le=1, description="λ_min. CONFIRMED: 0.8")
    largest_weight: float = Field(1.2, ge=1, description="λ_max of weights = 'linear'. CONFIRMED: 1.2")
    metric: Literal["code", "exact"] = Field("code", description="Ω of the authors' code, or the first-order change")

    @model_validator(mode="after")
    def _steers(self) -> STEERConfig:
        self.refuse_idle("largest_weight", self.weights == "damp", "weights = 'damp'")
        if (self.ratio, self.surrogate) != ("token", "clip"):
            raise ValueError(
                f"ratio = {self.ratio!r} with surrogate = {self.surrogate!r}: Ω is made of PPO's ratio of each token; "
                "leave both out"
            )
        if self.kl == "exact":
            raise ValueError("kl = 'exact' is read with the reference, apart from Ω; take k2 or k3")
        return self


class STEER(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "steer"
    paper: ClassVar[str] = "STEER, 2025"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = STEERConfig
    credit_scope: Literal["group", "batch"] = "batch"

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: STEERConfig = config
        super().__init__(config, setup)
        self.credit_reads = "all"

    def _contexts(self) -> None:
        """Ω takes the entropy of the training forward, and with ``exact`` one number more."""
        super()._contexts()
        head, names = log_prob_entropy, (P.name, ENTROPY.name)
        if self.own.metric == "exact":
            head, names = log_prob_entropy_concentration, (*names, CONCENTRATION.name)
        reading = Reading("trace", ("prior",), head, names)
        self.scoring = tuple(reading if r.outputs[0] == P.name else r for r in self.scoring)
        self.training = (reading,)

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        """The family's credit; beside it each token's |A|, and the smallest and largest Ω of the batch."""
        credits = super().credit(groups)
        pairs = [pair for g, row in zip(groups, credits, strict=True) for pair in zip(g.scores, row, strict=True)]
        every = [self.strength(own) * self.change(scores.values).cpu().double() for scores, own in pairs]
        omega = torch.cat(every) if every else torch.zeros(0)
        least, most = (float(omega.min()), float(omega.max())) if len(omega) else (0.0, 0.0)
        return [[self._ranged(own, least, most) for own in row] for row in credits]

    def strength(self, own: Credit) -> Tensor:
        """|A| of each token ``[T]``: its weight, without the response's share in a mean over responses."""
        weight = own.weights["policy"].abs().cpu().double()
        return weight * len(weight) if self.config.aggregation == "sequence_mean" else weight

    def _ranged(self, own: Credit, least: float, most: float) -> Credit:
        like = self.strength(own)
        known = {STRENGTH: like, LEAST: torch.full_like(like, least), MOST: torch.full_like(like, most)}
        return replace(own, constants={**own.constants, **known})

    def change(self, values: Mapping[Output, Tensor]) -> Tensor:
        """|(1 − x)(log x + H)| of each token, or x times it with ``exact``'s second term, ``[N]``; without ρ and A."""
        entropy = values[ENTROPY].detach()
        x = values[P].detach().exp().clamp(SMALLEST, 1 - SMALLEST)
        if self.own.metric == "exact":
            return (x * (x.log() + entropy) - values[CONCENTRATION].detach()).abs()
        return torch.nan_to_num((1 - x) * (x.log() + entropy), 0.0, 0.0, 0.0).abs()

    def weight_of(self, omega: Tensor, least: Tensor, most: Tensor) -> Tensor:
        """w of each token ``[N]``, from its Ω and the batch's smallest and largest."""
        low, high = self.own.least_weight, self.own.largest_weight
        if self.own.weights == "damp":
            return (omega * math.log(low) / most.clamp_min(FLOOR)).exp().clamp(low, 1.0)
        room = most - least
        height = ((omega - least) / room.clamp_min(1e-30)).clamp(0.0, 1.0)
        return high - (high - low) * torch.where(room > 0, height, 0.5)

    def _surrogate(self, tokens: LossTokens) -> Tensor:
        new, old = tokens.new, tokens.old
        ratio = (new[P].detach() - old[P]).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        omega = ratio * old[STRENGTH] * self.change(new)
        return self.weight_of(omega, old[LEAST], old[MOST]) * super()._surrogate(tokens)


def log_prob_entropy_concentration(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`log_prob_entropy` gives, and Σ_v π_v²(log π_v + H) ``[n]``, of the one context that is read."""
    (single,) = logits
    logs = torch.log_softmax(single, dim=-1)
    probabilities = logs.exp()
    entropy = -(probabilities * logs).sum(dim=-1)
    squared = (probabilities.square() * (logs + entropy[:, None])).sum(dim=-1)
    return logs.gather(-1, targets[:, None])[:, 0], entropy, squared
