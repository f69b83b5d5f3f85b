"""NRT: native reasoning training, forms of the answer's token probabilities as reward (arXiv 2602.11549).

With c_j = π(y_j|x,z,y_<j) for the T tokens of the reference answer, and b_j the same after an empty thought, under the
policy of before the update and held constant,

    R = f(c)         log_prob    Σ log c_j            weight of answer token j,   1
                     prob        Π c_j                (∂f/∂c_j) c_j:              R
                     geometric   (Π c_j)^(1/T)                                    R/T
                     arithmetic  mean c_j                                         c_j/T
                     inverse     mean c_j/b_j                                     c_j/(b_j T)
                     surprise    mean −log b_j · c_j                              −log b_j · c_j/T
    ∇E[R] = E[ R ∇log π(z) + Σ_j (∂f/∂c_j) c_j ∇log c_j ]

    policy   −sg(clip(ρ, 1−0.2, 1+0.28)) A log π(z_t),   ρ = π_new/π_old; 0 where ρ has left the range in A's direction
    nll      −w_j log c_j,  w_j = 1 (fixed), or the weight above (exact), at the weights that sampled the trace
    both summed over tokens and divided by the number of traces

"inverse" and "surprise" weigh the tokens that the model cannot guess without thinking. ``gain`` takes f(b) off and
counts a loss as 0: R = max(0, f(c) − f(b)).

Evidence. CONFIRMED in the authors' code: the forms, b under the policy of before the update, rewards divided by the
group's sample deviation, the fixed weight 1 for every form, CISPO's weight between 0.8 and 1.28 with tokens beyond it
dropped, no KL, no entropy bonus, rate 2e-6, 8 traces, 2,048 tokens of thought, a batch of 256 in mini-batches of 64;
max(0, ·) stands commented out there, though the paper has it (CONFIRMED-3rd). VERIFIED by enumeration: with leave-one-
out and exact weights the expected gradient is that of E[R] with b constant; ``log_prob`` is then JEPO with one trace
and ``prob`` is VeriFree. INFERRED: division by the number of traces where theirs is a constant, the floor of b, and a
trace that does not close: f = 0, and in ``log_prob`` the group's worst minus 1.

What the authors' code does differently: where the sampled end does not match the template, 0.3 of a cross-entropy
teaches the answer's opening; here such a trace has no answer, and its reward says so.

A user's reward function adds to R. A batch may serve for several updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Admission, LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import (
    ADVANTAGES,
    ANSWER,
    EMPTY,
    OnePrompt,
    P,
    constant,
    likelihood_warnings,
    shaping,
    with_a_valid_trace,
    worst_for_invalid,
)
from covrl.config import Settings
from covrl.objectives import traces
from covrl.objectives.kl import LARGEST_LOG_RATIO
from covrl.records import Credit, ScoredGroup
from covrl.rewards.likelihood import reward_floor

Form = Literal["log_prob", "prob", "geometric", "arithmetic", "inverse", "surprise"]


class NRTConfig(Settings):
    """NRT's switches."""

    form: Form = Field("surprise", description="f, the reward. CONFIRMED: all of them; surprise has the best figures")
    gain: bool = Field(
        False, description="max(0, f(c) − f(b)) as reward: in the paper (CONFIRMED-3rd), not in the code (CONFIRMED)"
    )
    answer_weight: Literal["fixed", "exact"] = Field(
        "fixed",
        description="weight of an answer token's log-likelihood: 1 (CONFIRMED, whatever f), or f's own derivative",
    )
    nll_weight: float = Field(1.0, ge=0, description="factor on the answer's term. CONFIRMED: 1")
    advantage: Literal["std", "mean", "leave_one_out"] = Field(
        "std", description="how a group's rewards are compared: divided by the deviation (CONFIRMED), or not (ours)"
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="the weight is at least 1 minus this. CONFIRMED: 0.2")
    clip_high: float = Field(0.28, gt=0, description="the weight is at most 1 plus this. CONFIRMED: 0.28")
    baseline_floor: float = Field(
        1e-6, gt=0, lt=1, description="least b_j of inverse and surprise, whose weights else have no limit (INFERRED)"
    )

    @model_validator(mode="after")
    def _used(self) -> NRTConfig:
        self.refuse_idle("baseline_floor", self.form not in WEIGHTED, f"form = {self.form!r}")
        self.refuse_idle("answer_weight", self.nll_weight == 0, "nll_weight = 0")
        return self


WEIGHTED: dict[str, Callable[[Tensor], Tensor]] = {"inverse": torch.reciprocal, "surprise": lambda b: -b.log()}
"""The forms that weigh each answer token by its probability b after an empty thought, and how."""


class NRT(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "nrt"
    paper: ClassVar[str] = "arXiv 2602.11549"
    evidence: ClassVar[str] = "confirmed in the authors' code; exact form verified by enumeration"
    Config: ClassVar[type[Settings]] = NRTConfig

    def __init__(self, config: NRTConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.reads_empty = config.gain or config.form in WEIGHTED
        if self.reads_empty:
            self.read_empty_thought()
        self.streams = (
            Stream("policy", "trace", 1.0, traces),
            Stream("nll", "answer", config.nll_weight, traces),
        )

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        return with_a_valid_trace(groups)

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        empty = next(s.values[EMPTY] for s in group.scores if EMPTY in s.values) if self.reads_empty else None
        found = [self._valued(s[ANSWER], empty) if ANSWER in s else None for s in group.scores]
        rewards = self._rewards([None if f is None else f[0] for f in found])
        rewards = [reward + shaping(rollout) for reward, rollout in zip(rewards, group.rollouts, strict=True)]
        advantages = ADVANTAGES[self.config.advantage](rewards)
        credits = []
        for scores, own, reward, advantage in zip(group.scores, found, rewards, advantages, strict=True):
            weights = {"policy": constant(scores[P], advantage)}
            if own is not None:
                weights["nll"] = own[1] if self.config.answer_weight == "exact" else torch.ones_like(own[1])
            credits.append(Credit(weights, reward=reward, advantage=advantage))
        return credits

    def _valued(self, answer: Tensor, empty: Tensor | None) -> tuple[float, Tensor]:
        """R of one trace and its answer's exact weights ``[A]``, from log-probs ``[A]`` after it and after none."""
        value, weights = reward_and_weights(answer, self.config.form, self._importance(empty))
        if not self.config.gain:
            return value, weights
        assert empty is not None
        gained = value - reward_and_weights(empty, self.config.form, self._importance(empty))[0]
        return max(gained, 0.0), weights * float(gained > 0)

    def _importance(self, empty: Tensor | None) -> Tensor | None:
        """The weight of each answer token in the forms that have one, ``[A]``."""
        if empty is None or self.config.form not in WEIGHTED:
            return None
        return WEIGHTED[self.config.form](empty.exp().clamp_min(self.config.baseline_floor))

    def _rewards(self, found: Sequence[float | None]) -> list[float]:
        """With a stand-in for traces that do not close."""
        if self.config.form == "log_prob" and not self.config.gain:
            return worst_for_invalid(found, 1.0)
        return [0.0 if value is None else value for value in found]

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        drift = (tokens.new[P] - tokens.old[P]).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
        ratio, weight = drift.exp(), tokens.weight["policy"]
        beyond = ((weight > 0) & (ratio > high)) | ((weight < 0) & (ratio < low))
        return {
            "policy": -ratio.clamp(low, high).masked_fill(beyond, 0.0) * tokens.new[P],
            "nll": -tokens.new[ANSWER],
        }

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Those of what the reward is made of: sums of logs have a floor, whole probabilities vanish."""
        made_of = {"log_prob": "log", "prob": "probability"}.get(self.config.form, "order")
        return likelihood_warnings(metrics, made_of)


def reward_and_weights(answer: Tensor, form: Form, importance: Tensor | None) -> tuple[float, Tensor]:
    """f(c) and (∂f/∂c_j) c_j ``[A]``, from log c ``[A]`` and the tokens' importance ``[A]`` where the form has one."""
    count = len(answer)
    if form == "log_prob":
        return max(float(answer.sum()), reward_floor(count)), torch.ones_like(answer)
    if form == "prob":
        value = float(answer.sum().exp())
        return value, constant(answer, value)
    if form == "geometric":
        value = float(answer.mean().exp())
        return value, constant(answer, value / count)
    weights = answer.exp() / count if importance is None else importance * answer.exp() / count
    return float(weights.sum()), weights
