"""RAPO: reward-aware forward-KL regularisation with an entropy bonus (Deng et al., arXiv 2510.03865).

    J     = E[r]  −  α·KL(p̂ ‖ π)  +  β·H(π)
    p̂     = p^φ / Z,   φ = 1 on right responses, φ₀ on wrong ones (p the frozen base; φ < 1 flattens it)
    loss  = −min(ρA, clip(ρ, 1−ε, 1+ε)A)  +  α·penalty  −  β·H,   A = (r − mean)/(std + 1e-6),  mean over tokens

    penalty, with d = log p̂ − log π at the sampled token, capped, and w = e^d
    fkl_f     w·d − w + 1             as the formula stands; its gradient is that of ½·E_p[(log p/π)²], not of the KL
    fkl_iw    −sg(w)·log π            gradient of the forward KL
    fkl_full  Σ_v p̂(v)(log p̂(v) − log π(v))                     the same, without the noise of the sampled token
    rkl_k2, rkl_k1_reward             honest reverse-KL baselines;   k3: what GRPO code calls a reverse KL;   none

Evidence (spec A). The paper's method section could not be read and no code was found: the objective, the tempered
reference and ``fkl_f`` are CONFIRMED-2nd; φ's form, Z per token and state, α, β and everything else are INFERRED. The
gradients above are VERIFIED by enumeration. The entropy term, not the forward KL, is what gives mass to answers
outside the base's support (VERIFIED): it is part of the method. A response with an unknown verdict has φ = 1 (ours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup, Stream
from covrl.algorithms.group import GroupConfig, GroupMethod, Marked, P
from covrl.config import Settings
from covrl.models.spec import ModelSpec
from covrl.objectives import forward_kl, tempered
from covrl.precision import wide
from covrl.records import Credit, Output, Rollout, ScoredGroup, Scores
from covrl.scoring.head import log_prob_entropy
from covrl.scoring.pack import Context, Reading

TARGET, IS_TEMPERED = Output("trace", "target"), Output("trace", "is_tempered")
PLAIN_KL, TEMPERED_KL = Output("trace", "plain_kl"), Output("trace", "tempered_kl")
BASELINES = {
    "rkl_k2": {"kl": "k2", "kl_in": "loss"},
    "rkl_k1_reward": {"kl": "k1", "kl_in": "reward"},
    "k3": {"kl": "k3", "kl_in": "loss"},
}


class RAPOConfig(GroupConfig):
    """RAPO's settings; α and β are starting points of the spec (INFERRED)."""

    alpha: float = Field(1e-3, gt=0, description="weight of the penalty (the paper's value is not known)")
    penalty: Literal["fkl_f", "fkl_iw", "fkl_full", "rkl_k2", "rkl_k1_reward", "k3", "none"] = Field(
        "fkl_f", description="see the module's docstring; fkl_f is the formula, fkl_iw and fkl_full its intent"
    )
    phi0: float = Field(0.5, ge=0, le=1, description="φ on wrong responses; 1 is the plain forward KL")
    largest_weight: float = Field(10.0, gt=1, description="cap on w = p̂/π, whose gradient is unbounded otherwise")
    entropy_weight: float = 1e-3

    @model_validator(mode="before")
    @classmethod
    def _baseline(cls, table: Any) -> Any:
        """The baselines are the family's own KL switches, with α as their weight."""
        if not isinstance(table, dict):
            return table
        named = [key for key in ("kl", "kl_in", "kl_weight") if key in table]
        if named:
            raise ValueError(f"{named[0]}: RAPO's penalty takes its place; set penalty and alpha")
        baseline = BASELINES.get(str(table.get("penalty")))
        return table | baseline | {"kl_weight": table.get("alpha", 1e-3)} if baseline else table

    @model_validator(mode="after")
    def _used(self) -> RAPOConfig:
        because = f"penalty = {self.penalty!r}"
        self.refuse_idle("alpha", self.penalty == "none", because)
        for name in ("phi0", "largest_weight"):
            self.refuse_idle(name, not self.penalty.startswith("fkl"), because)
        if self.penalty == "fkl_full" and self.phi0 == 0:
            raise ValueError(
                "phi0 = 0 with penalty = 'fkl_full' pulls every token of a wrong response to the uniform distribution, "
                "which ruins the policy; take phi0 from 0.5 to 0.9, or a sampled penalty (fkl_f, fkl_iw)"
            )
        if self.posterior_share and self.penalty != "none":
            raise ValueError(f"{because} with posterior_share: p/q corrects the advantage alone; take penalty = 'none'")
        return self


class RAPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "rapo"
    paper: ClassVar[str] = "arXiv 2510.03865"
    evidence: ClassVar[str] = "second-hand; the paper's own settings are not known"
    Config: ClassVar[type[Settings]] = RAPOConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: RAPOConfig = config
        super().__init__(config, setup)
        if config.penalty.startswith("fkl") and config.phi0 < 1:
            self.by_verdict = "the reference is tempered on wrong responses alone (phi0; 1 tempers none)"
        if config.penalty.startswith("fkl"):
            self.streams += (Stream("kl", "trace", config.alpha, self.streams[0].denominator),)
            self.credit_reads = "all" if self.credit_reads else ("reference",)

    def _contexts(self) -> None:
        super()._contexts()
        if not self.own.penalty.startswith("fkl"):
            return
        self.models = (ModelSpec("reference"),)
        self.contexts += (Context("reference", self.prompts.response_row, model="reference"),)
        head = partial(reference_log_probs, power=self.own.phi0)
        self.scoring += (Reading("trace", ("reference",), head, ("reference", "reference_tempered")),)
        if self.own.penalty == "fkl_full":
            whole = partial(policy_and_forward_kls, power=self.own.phi0)
            names = ("prior", "entropy", "plain_kl", "tempered_kl")
            self.training = (Reading("trace", ("prior", "reference"), whole, names),)
        else:
            self.training = (Reading("trace", ("prior",), log_prob_entropy, ("prior", "entropy")),)

    def credit_of(self, rollout: Rollout, scores: Scores, marked: Marked, advantage: Tensor) -> Credit:
        credit = super().credit_of(rollout, scores, marked, advantage)
        if self.own.penalty.startswith("fkl"):
            wrong = marked.outcome == 0.0
            target = scores["trace", "reference_tempered" if wrong else "reference"]
            constants = {TARGET: target, IS_TEMPERED: torch.full_like(target, float(wrong))}
            return Credit(credit.weights, constants, credit.reward, credit.advantage)
        return credit

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        losses = super().loss(tokens)
        if self.own.penalty == "fkl_full":
            losses["kl"] = torch.where(tokens.old[IS_TEMPERED] > 0, tokens.new[TEMPERED_KL], tokens.new[PLAIN_KL])
        elif self.own.penalty.startswith("fkl"):
            losses["kl"] = self._sampled(tokens.new[P], tokens.old[TARGET])
        return losses

    def _sampled(self, policy: Tensor, target: Tensor) -> Tensor:
        d = (target - policy).clamp(-20.0, math.log(self.own.largest_weight))
        if self.own.penalty == "fkl_iw":
            return -d.detach().exp() * policy
        return d.exp() * d - d.exp() + 1

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        metrics = super().monitors(groups, credits)
        rows = [pair for g, row in zip(groups, credits, strict=True) for pair in zip(g.scores, row, strict=True)]
        excess = [c.constants[TARGET] - s[P] for s, c in rows if TARGET in c.constants and P in s]
        if excess and self.own.penalty != "fkl_full":  # that has no cap
            capped = torch.cat(excess) > math.log(self.own.largest_weight)
            metrics["kl/capped_share"] = float(wide(capped).mean())
        return metrics


def reference_log_probs(logits: Sequence[Tensor], targets: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """(log p, log p̂ with φ = ``power``) of the targets under the reference, each ``[n]``."""
    (single,) = logits
    logs = torch.log_softmax(single, dim=-1)
    at = targets[:, None]
    return logs.gather(-1, at)[:, 0], tempered(logs, power).gather(-1, at)[:, 0]


def policy_and_forward_kls(logits: Sequence[Tensor], targets: Tensor, power: float) -> tuple[Tensor, ...]:
    """(log π, entropy of π, KL(p‖π), KL(p̂‖π)), each ``[n]``, for contexts (policy, reference)."""
    policy, reference = (torch.log_softmax(part, dim=-1) for part in logits)
    chosen, entropy = log_prob_entropy(logits[:1], targets)
    return chosen, entropy, forward_kl(policy, reference), forward_kl(policy, tempered(reference, power))
