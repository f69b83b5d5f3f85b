"""RAVR-style: reference-answer-guided variational reasoning (Lin et al., arXiv 2510.25206), at second hand.

The ELBO with the posterior alone as proposal, where CoVRL has the composite of prior and posterior:

    log π(y|x)  ≥  E_{z~q(·|x,y)}[ log π(y|x,z) ]  −  KL( q(·|x,y) ‖ π(·|x) )

    utility    s(z) = π(y|x,z) in [0, 1];  0 for a trace that does not close
    reward     R = max(0, s(z) − b),  b = mean of s over traces z' ~ π(·|x): what seeing the answer gained
    policy     −min(ρA, clip(ρ, 1−ε, 1+ε)A) on q's tokens,  ρ = q_new/q_old,  A = (R − mean)/(std + 1e-6)
    kl         s(z)·KL(q‖π) per token, exact over the vocabulary, gradient through q and π: how the prior learns
    both divided by the number of posterior tokens

The prior traces z' are auxiliary: they make b and are not trained on. Of a question's G traces a share
``baseline_share`` is theirs, so that the method samples as much as the others.

Evidence. No public code; the paper was read through reviews of it and a summary. CONFIRMED-2nd by them: the bound,
s(z) = π(y|x,z) with E_q[s] = μ + Var(s)/μ for the true posterior, a reward that measures the posterior's improvement
over a prior baseline, a KL reweighted per sample by utility, a fixed answer prefix, a posterior prompt that thinks
aloud, GRPO, Qwen3-1.7B. INFERRED, ours: 8 rollouts, that the gain is clipped at 0, s itself as the KL's weight, its
coefficient, the exact KL, the clip range, division by the deviation, the share of baseline traces, no term for the
answer's likelihood. A group-centred advantage does not see b unless the gain is clipped (VERIFIED).

A user's reward function adds to R. A batch may serve for several updates.
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
    ADVANTAGES,
    ANSWER,
    ANSWER_READING,
    OnePrompt,
    P,
    answer_probability,
    constant,
    leak_metrics,
    likelihood_metrics,
    mean,
    shaping,
)
from covrl.config import Settings
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.objectives import clipped_ratio, reverse_kl, trace_tokens, traces
from covrl.records import Credit, Output, Problem, Request, Rollout, Row, ScoredGroup, Scores
from covrl.scoring.pack import Context, Reading

Q, KL = Output("trace", "posterior"), Output("trace", "kl")


class RAVRConfig(Settings):
    """RAVR's switches with their evidence."""

    baseline_share: float = Field(
        0.5, gt=0, lt=1, description="share of a question's traces that are drawn from the prior for b (INFERRED)"
    )
    utility: Literal["prob", "geometric"] = Field(
        "prob",
        description="s: exp Σ log π(y_j) (CONFIRMED-2nd), or exp of the mean over tokens (a review names a length "
        "normalisation, its form is INFERRED)",
    )
    clip_gain: bool = Field(True, description="whether a gain below 0 counts as 0 (INFERRED)")
    advantage: Literal["std", "mean"] = Field(
        "std", description="GRPO's division by the deviation, or only the mean taken off (INFERRED: std)"
    )
    clip: float = Field(0.2, gt=0, description="ε of the policy ratio (INFERRED)")
    beta: float = Field(1.0, ge=0, description="weight of the KL (INFERRED: 1, as in the bound)")
    kl_weighting: Literal["utility", "none"] = Field(
        "utility", description="whether a trace's KL is weighted by s(z) (CONFIRMED-2nd, the form INFERRED)"
    )
    nll_weight: float = Field(
        0.0, ge=0, description="weight of −log π(y|x,z) behind posterior traces (INFERRED: no source names it)"
    )

    @model_validator(mode="after")
    def _prior_learns(self) -> RAVRConfig:
        if self.beta == self.nll_weight == 0:
            raise ValueError(
                "beta = 0 with nll_weight = 0 trains the posterior alone, and the prior, which is what is used, learns "
                "nothing; raise one of them"
            )
        return self


class RAVR(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "ravr"
    paper: ClassVar[str] = "arXiv 2510.25206"
    evidence: ClassVar[str] = "second-hand: reviews and a summary of the paper; see the labels of the settings"
    Config: ClassVar[type[Settings]] = RAVRConfig
    reward_in: ClassVar[Literal["probability", "log", "order"]] = "probability"
    admission_reads: tuple[str, ...] | Literal["all"] = "all"

    def __init__(self, config: RAVRConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        if self.group_size < 3:
            raise UserError(
                f"training.rollouts_per_problem = {self.group_size}: ravr needs at least 3, two posterior traces to "
                "compare and a prior trace for the baseline"
            )
        both = Reading("trace", ("prior", "posterior"), prior_posterior_kl, ("prior", "posterior", "kl"))
        self.contexts += (Context("posterior", self._posterior_row),)
        self.scoring = self.training = (both, ANSWER_READING)
        self.streams: tuple[Stream, ...] = (
            Stream("policy", "trace", 1.0, trace_tokens),
            Stream("kl", "trace", config.beta, trace_tokens),
        )
        if config.nll_weight:
            self.streams += (Stream("nll", "answer", config.nll_weight, traces),)

    def _posterior_row(self, problem: Problem, rollout: Rollout) -> Row | None:
        """Baseline traces need their answer's likelihood only, so nothing is read of them here."""
        return self.prompts.posterior_row(problem, rollout) if rollout.source == "posterior" else None

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        del draw
        if history:
            return []
        baseline = min(max(round(self.config.baseline_share * self.group_size), 1), self.group_size - 2)
        shown, plain = self.prompts.posterior(problem), self.prompts.prior(problem)
        count = self.group_size - baseline
        posterior = [Request(problem.id, i, shown, "posterior") for i in range(count)]
        return posterior + [Request(problem.id, i, plain, "prior", trains=False) for i in range(count, self.group_size)]

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        """Groups with a posterior trace that an answer can follow."""
        return Admission([group for group in groups if any(ANSWER in s and Q in s for s in group.scores)])

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        utilities = [self.utility(scores) for scores in group.scores]
        pairs = list(zip(group.rollouts, utilities, strict=True))
        baseline = mean([u for r, u in pairs if not r.request.trains])
        rewards = [self._gain(u - baseline) + shaping(r) for r, u in pairs if r.request.trains]
        advantages = iter(ADVANTAGES[self.config.advantage](rewards))
        return [
            self._credit(s, u, next(advantages)) if r.request.trains else Credit(reward=u)
            for (r, u), s in zip(pairs, group.scores, strict=True)
        ]

    def utility(self, scores: Scores) -> float:
        """s(z), 0 for a trace that no answer can follow."""
        if self.config.utility == "geometric" and ANSWER in scores:
            return math.exp(float(scores[ANSWER].mean()))
        return answer_probability(scores)

    def _gain(self, value: float) -> float:
        return max(value, 0.0) if self.config.clip_gain else value

    def _credit(self, scores: Scores, utility: float, advantage: float) -> Credit:
        """``reward`` is the utility, for both sources, so that the report's gap is what seeing the answer gains."""
        weighted = utility if self.config.kl_weighting == "utility" else 1.0
        weights = {"policy": constant(scores[P], advantage), "kl": constant(scores[P], weighted)}
        if ANSWER in scores and self.config.nll_weight:
            weights["nll"] = constant(scores[ANSWER], 1.0)
        return Credit(weights, reward=utility, advantage=advantage)

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        new, old, clip = tokens.new, tokens.old, self.config.clip
        return {
            "policy": -clipped_ratio(new[Q] - old[Q], tokens.weight["policy"], clip, clip),
            "kl": new[KL],
            "nll": -new[ANSWER],
        }

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also KL(q‖π), and ``gain/zero_share``: posterior traces no better than the prior's mean."""
        metrics = likelihood_metrics(groups, credits)
        kl = [s[KL] for group in groups for s in group.scores if KL in s]
        metrics["kl/nats_per_trace"] = mean([float(part.sum()) for part in kl])
        metrics["kl/nats_per_token"] = mean(torch.cat(kl).tolist()) if kl else float("nan")
        gains = []
        for group in groups:
            pairs = [(r, self.utility(s)) for r, s in zip(group.rollouts, group.scores, strict=True)]
            baseline = mean([u for r, u in pairs if not r.request.trains])
            gains += [u - baseline for r, u in pairs if r.request.trains]
        metrics["gain/mean"] = mean(gains)
        metrics["gain/zero_share"] = mean([float(g <= 0) for g in gains])
        return metrics | leak_metrics(groups)


def prior_posterior_kl(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log π, log q, exact KL(q‖π)), each ``[n]``, for contexts (prior, posterior); live in both."""
    prior, posterior = (torch.log_softmax(part, dim=-1) for part in logits)
    at = targets[:, None]
    return prior.gather(-1, at)[:, 0], posterior.gather(-1, at)[:, 0], reverse_kl(posterior, prior)
