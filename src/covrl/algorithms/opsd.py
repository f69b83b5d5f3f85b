"""OPSD: on-policy self-distillation from a teacher that sees the answer (arXiv 2601.18734).

The model writes a trace without the answer, and is drawn at each of its tokens to the distribution that a teacher,
shown the answer, has there. The trace itself is treated as fixed: no reward, no return.

    z ~ p(·|x)          q̄ = the teacher under the posterior prompt: the base, a moving average, or the policy itself
    full      loss = mean over tokens of  clip( D(q̄ ‖ p) ),  over the whole vocabulary, gradient through p alone
              D = forward KL(q̄‖p) · reverse KL(p‖q̄) · jsd
              clip = token min(D, τ) · entry Σ_v min(d_v, τ) · none
    sampled   loss = mean over tokens of −sg( log q̄(z_t) − log p(z_t) ) · log p(z_t)
    nll       −λ mean_j log p(y_j|x,z) on traces that close (ours, as CoVRL's; off)

Relations, all VERIFIED by enumeration:

* CoVRL's KL(m‖p) with m held still is half of the forward divergence at the same states; with m live it is another
  gradient.
* The sampled form has the per-state gradient of the reverse KL, not that of KL(p‖q̄) over whole traces, which would
  need the return.
* Reverse divergences summed over the student's own states are KL(p‖q̄) of whole traces.
* The forward divergence to the exact posterior at *its own* traces has the gradient of log p(y|x): that is EM.

Evidence. CONFIRMED in the authors' code of March 2026: the divergences, the full vocabulary as default, the initial
policy as teacher, a moving average of 0.999 as an option, LoRA at 2e-4, traces of 1,024 to 2,048 tokens. CONFIRMED-3rd:
the later default, the forward KL with a clip of 0.05 on each entry; TRL has it too. INFERRED, ours: the clip of the
sum as default and its limit, the mean over all tokens of the batch, no top-k, no temperature of its own, the NLL.

A user's reward r adds a policy gradient with A = r − mean_group(r) beside the distillation (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import (
    ANSWER,
    ANSWER_READING,
    FROZEN,
    ON_POLICY,
    TRACE_READING,
    TRACE_SCORING,
    OnePrompt,
    P,
    constant,
    likelihood_metrics,
    mean,
    shaping,
)
from covrl.config import Settings
from covrl.models.spec import ModelSpec
from covrl.objectives import centred, prior_traces, trace_tokens
from covrl.objectives.distillation import Clip, Divergence, clipped_divergence, divergence_entries
from covrl.precision import wide
from covrl.records import Credit, Output, ScoredGroup, Scores
from covrl.rewards.likelihood import answer_reward
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

Q = Output("trace", "posterior")
DISTIL, WHOLE = Output("trace", "distil"), Output("trace", "divergence")
BOTH = ("prior", "posterior")

MOSTLY_CLIPPED = 0.5
"""Share of tokens beyond the clip from which a run is warned (INFERRED)."""

ROUNDING = 1e-6
"""Nats by which a divergence may be off without having been clipped, or being negative."""


class OPSDConfig(Settings):
    """OPSD's switches."""

    teacher: Literal["base", "average", "live"] = Field(
        "base",
        description="whose posterior prompt is followed: the model before training (CONFIRMED), a moving average of "
        "the policy (CONFIRMED as an option), or the policy itself, which is a feedback loop",
    )
    teacher_keep: float = Field(
        0.999, ge=0, lt=1, description="share of itself that the moving average keeps each step. CONFIRMED: 0.999"
    )
    estimator: Literal["full", "sampled"] = Field(
        "full", description="the divergence over the vocabulary, or the sampled token's log-ratio (both CONFIRMED)"
    )
    divergence: Divergence = Field(
        "forward", description="forward KL(q‖p) (CONFIRMED-3rd), reverse KL(p‖q), or jsd (CONFIRMED, March code)"
    )
    clip: Clip = Field(
        "token",
        description="what clip_limit bounds: a token's divergence (INFERRED), each entry of the vocabulary "
        "(CONFIRMED-3rd, and no divergence any more), or nothing (CONFIRMED, March code)",
    )
    clip_limit: float = Field(
        0.5,
        gt=0,
        description="τ in nats. INFERRED for a token: above the mean reported of mathematical tokens (0.06 to 0.14), "
        "below that of style tokens (0.8 to 0.9). For entries CONFIRMED-3rd: 0.05",
    )
    nll_weight: float = Field(0.0, ge=0, description="λ of the answer's NLL (ours; not in the paper)")

    @model_validator(mode="after")
    def _used(self) -> OPSDConfig:
        self.refuse_idle("teacher_keep", self.teacher != "average", f"teacher = {self.teacher!r}")
        for name in ("divergence", "clip", "clip_limit"):
            self.refuse_idle(name, self.estimator == "sampled", "estimator = 'sampled'")
        self.refuse_idle("clip_limit", self.clip == "none", "clip = 'none'")
        return self


class OPSD(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "opsd"
    paper: ClassVar[str] = "arXiv 2601.18734"
    evidence: ClassVar[str] = "confirmed in the authors' code of March 2026; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = OPSDConfig
    rollouts_wanted: int = 1
    one_update: str | None = ON_POLICY

    def __init__(self, config: OPSDConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.full = config.estimator == "full"
        if config.teacher == "base":
            self.models = (FROZEN,)
        elif config.teacher == "average":
            self.models = (ModelSpec("reference", "average", keep=config.teacher_keep),)
        teacher = "policy" if config.teacher == "live" else "reference"
        self.contexts += (Context("posterior", self.prompts.posterior_row, teacher),)
        self._readings()
        self.streams = (Stream("policy", "trace", 1.0, trace_tokens),)
        if self.full:
            self.streams = (Stream("distil", "trace", 1.0, trace_tokens), *self.streams)
        if config.nll_weight:
            self.streams += (Stream("nll", "answer", config.nll_weight, prior_traces),)
            self.training += (ANSWER_READING,)

    def _readings(self) -> None:
        if self.full:
            config = self.config
            made_of = {"form": config.divergence, "clip": config.clip, "limit": config.clip_limit}
            seen = Reading("trace", BOTH, partial(watched, **made_of), (*BOTH, DISTIL.name, WHOLE.name, "entropy"))
            self.scoring = (seen, ANSWER_READING)
            self.training = (Reading("trace", BOTH, partial(distilled, **made_of), (*BOTH, DISTIL.name)),)
        else:
            hinted = Reading("trace", ("posterior",), log_prob, ("posterior",))
            self.scoring = (TRACE_SCORING, hinted, ANSWER_READING)
            self.training = (TRACE_READING,)

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        advantages = centred([shaping(rollout) for rollout in group.rollouts])
        rows = zip(group.rollouts, group.scores, advantages, strict=True)
        return [self._credit(s, a, a if r.reward is not None else None) for r, s, a in rows]

    def _credit(self, scores: Scores, advantage: float, shown: float | None) -> Credit:
        """``reward`` is log p(y|x,z), which the loss does not use: for the report."""
        policy = constant(scores[P], advantage)
        weights = {"policy": policy} if self.full else {"policy": policy + scores[Q] - scores[P]}
        if self.full:
            weights["distil"] = constant(scores[P], 1.0)
        answer = scores.values.get(ANSWER)
        if answer is not None and self.config.nll_weight:
            weights["nll"] = constant(answer, 1.0 / len(answer))
        return Credit(weights, reward=None if answer is None else answer_reward(answer, "sum"), advantage=shown)

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        losses = {"policy": -tokens.new[P]}
        if self.full:
            losses["distil"] = tokens.new[DISTIL]
        if self.config.nll_weight:
            losses["nll"] = -tokens.new[ANSWER]
        return losses

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also what is left between student and teacher, and what the clip did.

        ``distil/nats_per_token`` is the divergence before the clip; sampled, the mean of log p − log q̄.
        ``distil/clipped_share`` and ``distil/negative_share``: tokens that the clip changed, and those with a loss
        below 0, which the clip of entries alone can make.
        """
        metrics = likelihood_metrics(groups, credits, stream="distil" if self.full else "policy")
        scores = [s for group in groups for s in group.scores if Q in s]
        if not scores:
            return metrics
        if not self.full:
            return metrics | {"distil/nats_per_token": mean(torch.cat([s[P] - s[Q] for s in scores]).tolist())}
        whole, used = (wide(torch.cat([s[output] for s in scores])) for output in (WHOLE, DISTIL))
        return metrics | {
            "distil/nats_per_token": float(whole.mean()),
            "distil/clipped_share": float(wide(used < whole - ROUNDING).mean()),
            "distil/negative_share": float(wide(used < -ROUNDING).mean()),
        }

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        found = super().warnings(metrics)
        if metrics.get("distil/clipped_share", 0.0) > MOSTLY_CLIPPED:
            found.append(
                f"clipped teacher: {metrics['distil/clipped_share']:.0%} of the tokens are further from the teacher "
                "than clip_limit; with clip = 'token' they teach nothing. Raise clip_limit, or shorten the hint"
            )
        return found


def distilled(
    logits: Sequence[Tensor], targets: Tensor, form: Divergence, clip: Clip, limit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(log p, log q̄, clipped divergence), each ``[n]``, for contexts (student, teacher); the teacher is a constant."""
    student, teacher = torch.log_softmax(logits[0], dim=-1), torch.log_softmax(logits[1].detach(), dim=-1)
    entries, at = divergence_entries(student, teacher, form), targets[:, None]
    return student.gather(-1, at)[:, 0], teacher.gather(-1, at)[:, 0], clipped_divergence(entries, clip, limit)


def watched(
    logits: Sequence[Tensor], targets: Tensor, form: Divergence, clip: Clip, limit: float
) -> tuple[Tensor, ...]:
    """What :func:`distilled` gives, then the divergence without a clip and the student's entropy: five of ``[n]``."""
    found = distilled(logits, targets, form, clip, limit)
    student, teacher = (torch.log_softmax(part.detach(), dim=-1) for part in logits)
    return *found, divergence_entries(student, teacher, form).sum(dim=-1), torch.special.entr(student.exp()).sum(dim=-1)
