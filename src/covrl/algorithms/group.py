"""The group family: one policy gradient on verified responses, and the switches in which its members differ.

    reward      r = the user's reward function, else 1 right, 0 wrong; unknown has no part in its group
                r −= overlong penalty;  r −= β Σ_t kl_t  if the KL sits in the reward
    advantage   std  (r − mean)/(std + 1e-6)  ·  mean  r − mean  ·  leave_one_out  r − mean of the others
    policy      clip   −min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A)      ρ = π_new/π_old of the token, or
                                                                   ρ = exp(mean_t log π_new/π_old) of the sequence
                cispo  −sg(min(ρ, 1+ε_high))·A·log π_new
                plain  −A·log π_new
    sum         token_mean  Σ/Σ tokens  ·  sequence_mean  mean over responses of the mean over their tokens
                sequence_sum  Σ/responses  ·  constant  Σ/(responses · longest response)
    kl          k1, k2, k3 or exact against the frozen base, as a loss or in the reward (:mod:`covrl.objectives.kl` says
                which gradient each really has); entropy bonus

GRPO, Dr.GRPO, DAPO, RLOO, REINFORCE++, GSPO, CISPO, PSR, NSR, W-REINFORCE, DASH and RAPO are files of a page each
that set these switches or replace one of the parts. All rows count in the denominators, those without weight too.
Tokens that the policy did not write (``Rollout.written``) are in no sum, mean or count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Admission, Algorithm, LossTokens, Setup, Stream
from covrl.algorithms.contrast import (
    FOIL_READING,
    HINTED_READING,
    ContrastSettings,
    contrast_metrics,
    contrast_of,
    foil_context,
    spread,
)
from covrl.config import Settings
from covrl.generation.base import Draw
from covrl.models.spec import ModelSpec
from covrl.objectives import (
    capped,
    centred,
    doubly_clipped_ratio,
    kl_estimate,
    leave_one_out,
    sequence_mean,
    standardised,
    trace_tokens,
    traces,
    written_only,
)
from covrl.objectives.advantages import STD_EPSILON
from covrl.precision import wide
from covrl.records import Credit, Output, Problem, Request, Rollout, ScoredGroup, Scores
from covrl.scoring.head import log_prob, log_prob_entropy, log_prob_reverse_kl
from covrl.scoring.pack import Context, Reading

P, Q, REFERENCE = Output("trace", "prior"), Output("trace", "posterior"), Output("trace", "reference")
ENTROPY, KL = Output("trace", "entropy"), Output("trace", "kl")

Advantage = Literal["std", "mean", "leave_one_out"]
Surrogate = Literal["clip", "cispo", "plain"]
Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]
Divergence = Literal["none", "k1", "k2", "k3", "exact"]

ADVANTAGES = {"std": standardised, "mean": centred, "leave_one_out": leave_one_out}


class GroupConfig(ContrastSettings):
    """The switches of the family; each method sets its own defaults."""

    advantage: Advantage = Field("std", description="how a group's rewards are compared")
    ratio: Literal["token", "sequence"] = Field("token", description="importance ratio per token or per sequence")
    surrogate: Surrogate = Field("clip", description="PPO's clip, CISPO's clipped weight, or no ratio")
    clip_low: float = Field(0.2, ge=0, description="ε below 1")
    clip_high: float = Field(0.2, ge=0, description="ε above 1")
    dual_clip: float | None = Field(None, gt=1, description="bound on the ratio of negative advantages")
    aggregation: Aggregation = Field("token_mean", description="what the sum over tokens is divided by")
    kl: Divergence = Field("none", description="penalty towards the frozen base")
    kl_in: Literal["loss", "reward"] = Field("loss", description="whether the KL is a loss or part of the reward")
    kl_weight: float = Field(0.0, ge=0, description="β")
    entropy_weight: float = Field(0.0, ge=0, description="weight of the entropy bonus, nats per token")
    overlong_buffer: int = Field(
        0, ge=0, description="tokens before the limit from which a response is penalised; 0: none"
    )
    overlong_weight: float = Field(1.0, ge=0, description="penalty at the limit")
    resample: bool = Field(False, description="drop groups in which all rewards are equal, and sample others for them")
    posterior_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="control (ours): this share of thoughts comes from the posterior prompt, corrected by p/q; "
        "thoughts alone are trained then, and answers are sampled from the prior prompt to be verified",
    )
    source_cap: float = Field(2.0, gt=0, description="bound on p/q of the posterior control, as CoVRL's ratio_cap")

    @model_validator(mode="after")
    def _sensible(self) -> GroupConfig:
        if self.kl == "k1" and self.kl_in == "loss":
            raise ValueError(
                "kl = 'k1' as a loss has an expected gradient of zero; put it in the reward (kl_in = 'reward'), "
                "or take k2 or k3"
            )
        if self.kl == "exact" and self.kl_in == "reward":
            raise ValueError("kl = 'exact' is a loss; in the reward take k1 (docs/kl.md says what k2 and k3 do there)")
        if self.ratio == "sequence" and self.surrogate != "clip":
            raise ValueError("ratio = 'sequence' is defined for surrogate = 'clip' only")
        if self.kl != "none" and self.kl_weight == 0:
            raise ValueError(f"kl = {self.kl!r} with kl_weight = 0 would cost a reference model and do nothing")
        self.refuse_idle("kl_weight", self.kl == "none" and self.kl_weight > 0, "kl = 'none'")
        self.refuse_idle("kl_in", self.kl == "none", "kl = 'none'")
        for name in ("clip_low", "clip_high", "dual_clip"):
            self.refuse_idle(name, self.surrogate == "plain", "surrogate = 'plain'")
        for name in ("clip_low", "dual_clip"):
            self.refuse_idle(name, self.surrogate == "cispo", "surrogate = 'cispo'")
        self.refuse_idle("overlong_weight", self.overlong_buffer == 0, "overlong_buffer = 0")
        self.refuse_idle("source_cap", self.posterior_share == 0, "posterior_share = 0")
        self.check_contrast()
        if self.posterior_share:
            self._sources_fit()
        return self

    def refuse_contrast(self, because: str) -> None:
        """Raise ValueError for a contrast in a method that has no place for it."""
        if self.contrast:
            raise ValueError(f"contrast = {self.contrast} compares hints within a group's advantages, and {because}")

    def _sources_fit(self) -> None:
        """The posterior control corrects each token's advantage by its own p/q; nothing else may look at its traces."""
        because = "posterior_share: p/q corrects each token's advantage, and "
        if self.ratio == "sequence":
            raise ValueError(f"ratio = 'sequence' with {because}no sequence ratio; take ratio = 'token'")
        if self.kl != "none":
            raise ValueError(f"kl = {self.kl!r} with {because}no KL: it would be one at states of q; take kl = 'none'")
        if self.entropy_weight:
            raise ValueError(
                f"entropy_weight with {because}no entropy: it would be that at states of q; take entropy_weight = 0"
            )


class Marked(NamedTuple):
    """One response: its outcome before shaping (None: unknown), and its shaped reward."""

    outcome: float | None
    reward: float


class GroupMethod(Algorithm):
    """See the module's docstring; a member overrides ``Config``, and sometimes ``advantages`` or ``loss``.

    ``std_epsilon`` is added to the deviation by which ``advantage = "std"`` divides.
    """

    Config: ClassVar[type[Settings]] = GroupConfig
    verified: bool = True
    rollouts_wanted: int = 2
    credit_scope: Literal["group", "batch"] = "group"
    std_epsilon: ClassVar[float] = STD_EPSILON

    def __init__(self, config: Any, setup: Setup) -> None:
        self.config: GroupConfig = config
        self.setup = setup
        self.prompts = setup.prompts
        self.group_size = setup.rollouts_per_problem
        self.samples = "thought" if config.posterior_share else "response"
        if config.surrogate == "plain":
            self.one_update = "its loss has no importance ratio (surrogate = 'plain')"
        in_reward = config.kl != "none" and config.kl_in == "reward"
        reads = in_reward or config.posterior_share or config.contrast
        self.credit_reads: tuple[str, ...] | Literal["all"] = "all" if reads else ()
        self.wants_foils = config.contrast > 0
        self.admission_reads: tuple[str, ...] | Literal["all"] = "all" if in_reward and config.resample else ()
        self._contexts()
        denominator = {
            "token_mean": trace_tokens,
            "sequence_mean": traces,
            "sequence_sum": traces,
            "constant": self._room,
        }[config.aggregation]
        self.streams: tuple[Stream, ...] = (Stream("policy", "trace", 1.0, denominator),)
        if config.kl != "none" and config.kl_in == "loss":
            self.streams += (Stream("kl", "trace", config.kl_weight, denominator),)
        if config.entropy_weight:
            self.streams += (Stream("entropy", "trace", config.entropy_weight, denominator),)

    def _room(self, groups: Sequence[ScoredGroup]) -> float:
        """Tokens that the responses could have had: a divisor that does not depend on how long they are."""
        return traces(groups) * self.setup.max_tokens

    def _contexts(self) -> None:
        """What is read: the response under the prior prompt, and by the reference and the posterior where needed."""
        config, row = self.config, self.prompts.response_row
        contexts = [Context("prior", row)]
        scoring = [Reading("trace", ("prior",), log_prob_entropy, ("prior", "entropy"))]
        if config.kl != "none":
            self.models = (ModelSpec("reference"),)
            contexts.append(Context("reference", row, model="reference"))
            scoring.append(Reading("trace", ("reference",), log_prob, ("reference",)))
        if config.posterior_share or config.contrast:
            contexts.append(Context("posterior", self.prompts.posterior_row))
            scoring.append(HINTED_READING)
        if config.contrast:
            contexts.append(foil_context(self.prompts))
            scoring.append(FOIL_READING)
        self.contexts, self.scoring = tuple(contexts), tuple(scoring)
        if config.kl == "exact":
            both = ("prior", "reference")
            self.training = (Reading("trace", both, log_prob_reverse_kl, ("prior", "entropy", "kl")),)
        elif config.entropy_weight:
            self.training = (Reading("trace", ("prior",), log_prob_entropy, ("prior", "entropy")),)
        else:
            self.training = (Reading("trace", ("prior",), log_prob, ("prior",)),)

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        del draw
        if history:
            return []
        shown = round(self.config.posterior_share * self.group_size)
        sources = ["prior"] * (self.group_size - shown) + ["posterior"] * shown
        prompts = {"prior": self.prompts.prior(problem)}
        if shown:
            prompts["posterior"] = self.prompts.posterior(problem)
        return [Request(problem.id, i, prompts[source], source) for i, source in enumerate(sources)]

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        """All groups; with ``resample`` those whose outcomes differ, up to the size of the step."""
        if not self.config.resample:
            return Admission(list(groups))
        wanted = self.setup.problems_per_step
        kept = [group for group in groups if len({m.outcome for m in self.mark(group) if m.outcome is not None}) > 1]
        return Admission(kept[:wanted], len(kept) < wanted)

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        return [self._credit_group(group) for group in groups]

    def _credit_group(self, group: ScoredGroup) -> list[Credit]:
        return self._credit_marked(group, self.mark(group))

    def _credit_marked(self, group: ScoredGroup, marked: Sequence[Marked]) -> list[Credit]:
        """Credit of a group whose responses have these rewards."""
        values = self._values(group, self.advantages(marked))
        rows = zip(group.rollouts, group.scores, marked, values, strict=True)
        return [self.credit_of(r, s, m, value) for r, s, m, value in rows]

    def _values(self, group: ScoredGroup, advantages: Sequence[float | None]) -> list[Tensor]:
        """The advantage of each token of each response, ``[T]``: the response's own, unless hints are contrasted."""
        rows = zip(group.rollouts, group.scores, advantages, strict=True)
        if not self.config.contrast:
            return [at_each_token(r, a or 0.0) for r, _, a in rows]
        scale = spread([a for a in advantages if a is not None])
        return [contrast_of(self.config, s, a or 0.0, scale) for _, s, a in rows]

    def credit_of(self, rollout: Rollout, scores: Scores, marked: Marked, advantage: Tensor) -> Credit:
        """Weights of one response from its per-token advantage ``[T]``; an unknown one has no policy weight."""
        share = 1.0 / max(rollout.loss_tokens, 1) if self.config.aggregation == "sequence_mean" else 1.0
        everywhere = torch.full_like(advantage, share)
        weights = {stream.name: everywhere for stream in self.streams}
        weights["policy"] = share * self._source_corrected(rollout, scores, advantage)
        shown = None if marked.outcome is None else marked.reward
        return Credit(weights, reward=shown, advantage=float(advantage.mean()) if len(advantage) else 0.0)

    def _source_corrected(self, rollout: Rollout, scores: Scores, advantage: Tensor) -> Tensor:
        """The advantage ``[T]``, times p_old/q_old capped for a thought that was drawn from the posterior prompt."""
        if rollout.source == "prior":
            return advantage
        ratio = capped((scores[P] - scores[Q]).exp(), self.config.source_cap)
        return ratio * advantage.to(ratio)

    def mark(self, group: ScoredGroup) -> list[Marked]:
        """Outcome and shaped reward of each response."""
        pairs = zip(group.rollouts, group.scores, strict=True)
        return [Marked(outcome(r), (outcome(r) or 0.0) - self._penalty(r, s)) for r, s in pairs]

    def _penalty(self, rollout: Rollout, scores: Scores) -> float:
        """What is taken off the reward: length near the limit, and the KL if it sits in the reward."""
        in_reward = self.config.kl_in == "reward" and self.config.kl != "none"
        kl = self.config.kl_weight * float(self.token_kl(rollout, scores).sum()) if in_reward else 0.0
        return self.overlong(rollout) + kl

    def overlong(self, rollout: Rollout) -> float:
        """The soft penalty of a response that nears the limit: 0 before the buffer, ``overlong_weight`` at its end."""
        buffer = self.config.overlong_buffer
        over = len(rollout.trace_ids) - (self.setup.max_tokens - buffer)
        return self.config.overlong_weight * min(max(over / buffer, 0.0), 1.0) if buffer else 0.0

    def token_kl(self, rollout: Rollout, scores: Scores) -> Tensor:
        """The sampled KL estimator at the old weights, ``[T]``; 0 at tokens that the policy did not write."""
        assert self.config.kl in ("k1", "k2", "k3")
        return written_only(kl_estimate(scores[P], scores[REFERENCE], self.config.kl), rollout.written)

    def advantages(self, marked: Sequence[Marked]) -> list[float | None]:
        """The advantage of each response among those whose outcome is known; None for the others."""
        known = [m.reward for m in marked if m.outcome is not None]
        compare = ADVANTAGES[self.config.advantage]
        compare = partial(standardised, epsilon=self.std_epsilon) if compare is standardised else compare
        values = iter(compare(known) if known else [])
        return [None if m.outcome is None else next(values) for m in marked]

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        new, old = tokens.new, tokens.old
        losses = {"policy": -self._surrogate(tokens)}
        if self.config.kl == "exact":
            losses["kl"] = new[KL]
        elif self.config.kl in ("k2", "k3"):
            losses["kl"] = kl_estimate(new[P], old[REFERENCE], self.config.kl)
        if self.config.entropy_weight:
            losses["entropy"] = -new[ENTROPY]
        return losses

    def _surrogate(self, tokens: LossTokens) -> Tensor:
        """What the advantage multiplies, per token ``[N]``."""
        config, new, weight = self.config, tokens.new[P], tokens.weight["policy"]
        if config.surrogate == "plain":
            return new
        drift = new - tokens.old[P]
        if config.surrogate == "cispo":
            return drift.detach().exp().clamp_max(1 + config.clip_high) * new
        if config.ratio == "sequence":  # the sequence's ratio in value, the token's gradient (GSPO-token)
            mean = sequence_mean(drift.detach(), tokens.owner["trace"], tokens.written).clamp_max(10.0)
            drift = mean + new - new.detach()
        return doubly_clipped_ratio(drift, weight, config.clip_low, config.clip_high, config.dual_clip)

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        read = [s for group in groups for s in group.scores if ENTROPY in s]
        entropies = torch.cat([s[ENTROPY] for s in read]) if read else torch.zeros(0)
        flat = [all("policy" not in c.weights or not bool(c.weights["policy"].any()) for c in row) for row in credits]
        metrics = {"entropy/prior": float(wide(entropies).mean()) if len(entropies) else float("nan")}
        if flat:
            metrics["groups/without_signal_share"] = sum(flat) / len(flat)
        moved = [s[P] - s[REFERENCE] for s in read if REFERENCE in s]
        if moved:
            metrics["kl/nats_per_token"] = float(wide(torch.cat(moved)).mean())
        return metrics | contrast_metrics(groups)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """A step in which no group has both right and wrong responses trains nothing."""
        if metrics.get("groups/without_signal_share") != 1.0:
            return []
        return [
            "no signal: in every group all rewards are equal, so no response can be told from another; take a stronger "
            "base, easier problems, more rollouts, or a likelihood method such as covrl"
        ]


def at_each_token(rollout: Rollout, value: float) -> Tensor:
    """The same value at every token of a trace, ``[T]``, in float64."""
    return torch.full((len(rollout.trace_ids),), value, dtype=torch.float64)


def outcome(rollout: Rollout) -> float | None:
    """The user's reward where there is one, else 1 for right and 0 for wrong; None for unknown."""
    if rollout.reward is not None:
        return rollout.reward
    return None if rollout.correct in (None, "unknown") else float(rollout.correct == "right")
