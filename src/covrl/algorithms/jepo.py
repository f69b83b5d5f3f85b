"""JEPO, also called JLB: Jensen's evidence lower bound (Tang et al., arXiv 2503.19618, NeurIPS 2025).

The trace is a latent variable and the prior itself the proposal; with n traces z_i ~ π(·|x), ℓ_i = log π(y|x,z_i):

    log π(y|x)  ≥  J_n = E[ L_n ],   L_n = log (1/n) Σ_i exp ℓ_i            J_1 = E[ ℓ ] ≤ J_2 ≤ …

    single  ∇J_1 = E[ ∇log π(z) (ℓ − b) + ∇ℓ ]                              b: mean of the other traces' ℓ
    multi   ∇J_n = E[ Σ_i ∇log π(z_i) (L_n − L_{−i}) + Σ_i w_i ∇ℓ_i ]        w = softmax(ℓ),
            L_{−i}: the same bound from the other n−1 traces, which does not depend on z_i

    loss       −A_i Σ_t log π(z_it)  −  λ w_i Σ_j log π(y_j|x,z_i)  +  β k3(π‖π_ref)
    the first two divided by the number of traces (single, w_i = 1) or of questions (multi), the KL by that of traces

    A trace that does not close is in L_n and L_{−i} with the ℓ it is given, but not in w, which sums to 1 without it.

Evidence. The paper has no public code. CONFIRMED-2nd by its abstract and a public digest of its reviews: the two
bounds, the score term plus the supervised term, ablations over n, the supervised weight and a KL. VERIFIED by
enumeration: both expected gradients are exactly those of J_1 and J_n. INFERRED: the leave-one-out mean as b, the floor
of ℓ at −30 nats (CoVRL's), how traces that do not close are treated (``invalid_penalty`` stands for the paper's format
penalty), β = 0.

``token_weights = "spread"`` is the reward of DRO (R3, arXiv 2506.13351): tokens of the answer whose log-probs differ
between the group's traces count more,

    ℓ_i = A Σ_j w_j log π(y_j|x,z_i),   w_j = σ_j/Σσ,  σ_j the deviation of log π(y_j|x,z_i) over the group

CONFIRMED-text: w increases with σ. INFERRED: its form, the factor A (the answer's length), which makes equal w_j JEPO's
own ℓ, and that the supervised term keeps weight 1. DRO's reward less that after a masked thought is the same: it is one
number a question, which the baseline takes off (VERIFIED). Its filter of questions is not built here.

A user's reward r adds to ℓ (single), or its leave-one-out advantage over n to the trace's weight (multi), which is
the gradient of E[L_n + mean r].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Admission, LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import (
    ANSWER,
    ON_POLICY,
    REFERENCE,
    OnePrompt,
    P,
    answer_log_likelihoods,
    constant,
    empty_log_likelihood,
    shaping,
    softmax,
    with_a_valid_trace,
    worst_for_invalid,
)
from covrl.config import Settings
from covrl.objectives import groups_count, kl_estimate, leave_one_out, traces
from covrl.records import Credit, ScoredGroup
from covrl.rewards.likelihood import reward_floor


class JEPOConfig(Settings):
    """JEPO's switches."""

    bound: Literal["single", "multi"] = Field(
        "single", description="single: E[log π(y|x,z)]; multi: E[log of the mean of π(y|x,z) over the group]"
    )
    token_weights: Literal["equal", "spread"] = Field(
        "equal",
        description="weights of the answer's tokens in the reward: equal, the bound's; spread, DRO's: more for tokens "
        "whose log-probs differ between traces",
    )
    nll_weight: float = Field(1.0, ge=0, description="λ on the answer's term. 1 is the bound's gradient (VERIFIED)")
    nll: Literal["all", "read"] = Field(
        "all",
        description="all: after every trace, as in the bound's gradient; read: only after traces with "
        "ℓ > log π(y|x,∅), the answer after an empty thought (ours, as in covrl): the others teach it to ignore them",
    )
    invalid_penalty: float = Field(
        1.0, ge=0, description="ℓ of a trace that does not close: the group's worst minus this (INFERRED)"
    )
    kl_weight: float = Field(
        0.0, ge=0, description="β of a k3 loss to the frozen base; 0 keeps no reference model (INFERRED default)"
    )

    @model_validator(mode="after")
    def _used(self) -> JEPOConfig:
        if self.bound == "multi" and self.token_weights == "spread":
            raise ValueError(
                "token_weights = 'spread' with bound = 'multi': weighted log-probs make no bound; take bound = 'single'"
            )
        self.refuse_idle("nll", self.nll_weight == 0, "nll_weight = 0")
        return self


class JEPO(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "jepo"
    paper: ClassVar[str] = "arXiv 2503.19618"
    evidence: ClassVar[str] = "equations at second hand, no public code; gradients verified by enumeration"
    Config: ClassVar[type[Settings]] = JEPOConfig
    reward_in: ClassVar[Literal["probability", "log", "order"]] = "log"
    one_update: str | None = ON_POLICY

    def __init__(self, config: JEPOConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.nll == "read":
            self.read_empty_thought()
        per = traces if config.bound == "single" else groups_count
        self.streams: tuple[Stream, ...] = (
            Stream("policy", "trace", 1.0, per),
            Stream("nll", "answer", config.nll_weight, per),
        )
        if config.kl_weight:
            self.read_reference()
            self.streams += (Stream("kl", "trace", config.kl_weight, traces),)

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        return with_a_valid_trace(groups)

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        found = answer_log_likelihoods(group)
        worth = found if self.config.token_weights == "equal" else spread_log_likelihoods(group)
        likelihoods = worst_for_invalid(worth, self.config.invalid_penalty)
        bonus = [shaping(rollout) for rollout in group.rollouts]
        if self.config.bound == "single":
            values = leave_one_out([a + b for a, b in zip(likelihoods, bonus, strict=True)])
            shares = [1.0] * len(found)
        else:
            values = _improvements(likelihoods, bonus)
            shares = _shares(found)
        if self.config.nll == "read":
            empty = empty_log_likelihood(group)
            shares = [w if f is not None and f > empty else 0.0 for w, f in zip(shares, found, strict=True)]
        rows = zip(group.scores, likelihoods, bonus, values, shares, strict=True)
        credits = []
        for scores, likelihood, extra, value, share in rows:
            weights = {"policy": constant(scores[P], value)}
            if ANSWER in scores and share and self.config.nll_weight:
                weights["nll"] = constant(scores[ANSWER], share)
            if self.config.kl_weight:
                weights["kl"] = constant(scores[P], 1.0)
            credits.append(Credit(weights, reward=likelihood + extra, advantage=value))
        return credits

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        losses = {"policy": -tokens.new[P], "nll": -tokens.new[ANSWER]}
        if self.config.kl_weight:
            losses["kl"] = kl_estimate(tokens.new[P], tokens.old[REFERENCE], "k3")
        return losses


def log_mean_exp(values: Sequence[float]) -> float:
    """log of the mean of exp(v), without overflow."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values) / len(values))


def spread_weights(log_probs: Tensor) -> Tensor:
    """σ_j/Σσ ``[A]`` from the answer's log-probs after each of n traces ``[n, A]``; equal where nothing differs."""
    deviations = log_probs.std(dim=0, unbiased=False)
    total = deviations.sum()
    return deviations / total if float(total) > 0 else torch.full_like(deviations, 1.0 / len(deviations))


def spread_log_likelihoods(group: ScoredGroup) -> list[float | None]:
    """A Σ_j w_j log π(y_j|x,z) of each trace with DRO's weights, floored as the plain sum; None without an answer."""
    answers = [s[ANSWER] for s in group.scores if ANSWER in s]
    weights = spread_weights(torch.stack(answers))
    count = len(weights)
    values = iter(max(float((weights * a).sum()) * count, reward_floor(count)) for a in answers)
    return [next(values) if ANSWER in s else None for s in group.scores]


def _improvements(likelihoods: Sequence[float], bonus: Sequence[float]) -> list[float]:
    """L_n − L_{−i} of each trace, plus the share of its bonus; a single trace has nothing to be compared with."""
    count = len(likelihoods)
    if count == 1:
        return [0.0]
    whole = log_mean_exp(likelihoods)
    without = [log_mean_exp([v for j, v in enumerate(likelihoods) if j != i]) for i in range(count)]
    extra = leave_one_out(bonus)
    return [whole - rest + b / count for rest, b in zip(without, extra, strict=True)]


def _shares(found: Sequence[float | None]) -> list[float]:
    """softmax over the traces that have an answer, 0 for the others."""
    shares = iter(softmax([value for value in found if value is not None]))
    return [0.0 if value is None else next(shares) for value in found]
