"""RLPR: reinforcement learning with a reference probability reward (Yu et al., arXiv 2506.18254).

A whole response is sampled and trained; for its reward its own answer is replaced by the reference answer:

    R_raw   mean over answer tokens of π(y_j|x,z,y_<j), at the weights that sampled the response
    base    the same mean behind an empty thought, under the model before training
    R       0.9·max(0, R_raw − base) + 0.1·format
    A       (R − mean_group(R)) / (std_group(R) + 1e-6)
    loss    −min(ρA, clip(ρ, 1−0.2, 1+0.27)A) on every token of the response, mean over all tokens;  KL 0
    filter  questions whose std_group(R) is below 0.5·EMA of the batches' mean std are left out

Evidence. CONFIRMED in the authors' code: the mean of token probabilities, the baseline computed once before training,
the weights 0.9 and 0.1, GRPO divided by the deviation, clip 0.2/0.27, KL 0, the filter with 0.5 and a decay of 0.99,
768 questions x 8 in mini-batches of 192, rate 1e-6, 3,072 tokens. INFERRED: the mean over all tokens, R_raw = 0 and
format 0 for a response whose thought does not close, format = an answer between the tags, the average starts at the
first batch's mean and does not see a batch before judging it, the sample deviation of the whole R in the filter.

What the authors' code does differently: a penalty on repetition is part of its score (not built here); the baseline
is stored with the data, where we read it from a frozen copy of the base, which gives the same number; no likelihood
term on the reference answer in either.

A user's reward function adds to R. A batch may serve for several updates, as theirs does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Admission, LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import ANSWER, OnePrompt, P, constant, empty_thought, likelihood_metrics, mean, shaping
from covrl.config import Settings
from covrl.models.spec import ModelSpec
from covrl.objectives import clipped_ratio, standardised, trace_tokens
from covrl.records import Credit, Output, ScoredGroup, Scores
from covrl.rewards.likelihood import answer_reward
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Reading

DIRECT = Output("direct", "reference")


class RLPRConfig(Settings):
    """RLPR's switches."""

    probability_weight: float = Field(0.9, ge=0, description="weight of max(0, R_raw − base). CONFIRMED")
    format_weight: float = Field(0.1, ge=0, description="reward of an answer between the tags. CONFIRMED")
    clip_low: float = Field(0.2, gt=0, description="ε below 1. CONFIRMED")
    clip_high: float = Field(0.27, gt=0, description="ε above 1. CONFIRMED")
    filter: float = Field(
        0.5, ge=0, description="a question is kept if its std is at least this times the running mean; 0 keeps all. "
        "CONFIRMED"
    )  # fmt: skip
    filter_decay: float = Field(0.99, ge=0, lt=1, description="decay of that running mean per step. CONFIRMED")

    @model_validator(mode="after")
    def _rewards(self) -> RLPRConfig:
        if self.probability_weight == self.format_weight == 0:
            raise ValueError(
                "probability_weight = 0 with format_weight = 0 leaves no reward; for a reward function alone take grpo"
            )
        return self


class RLPR(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "rlpr"
    paper: ClassVar[str] = "arXiv 2506.18254"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = RLPRConfig
    reward_in: ClassVar[Literal["probability", "log", "order"]] = "probability"
    samples: Literal["thought", "response"] = "response"
    admission_reads: tuple[str, ...] | Literal["all"] = "all"

    def __init__(self, config: RLPRConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.usual_std: float | None = None
        self.models = (ModelSpec("reference"),)
        self.read_responses()
        self.contexts += (empty_thought(self.prompts, model="reference"),)
        self.scoring += (Reading("direct", ("direct",), log_prob, ("reference",)),)
        self.streams = (Stream("policy", "trace", 1.0, trace_tokens),)

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        """Questions whose rewards differ enough; moves the running mean, so it is called once a step."""
        spreads = [spread(self.rewards(group)) for group in groups]
        here = sum(spreads) / len(spreads) if spreads else 0.0
        usual = here if self.usual_std is None else self.usual_std
        decay = self.config.filter_decay
        self.usual_std = decay * usual + (1 - decay) * here
        least = self.config.filter * usual
        return Admission([group for group, std in zip(groups, spreads, strict=True) if std >= least])

    def rewards(self, group: ScoredGroup) -> list[float]:
        """R of each response of a question."""
        base = next(mean_probability(s[DIRECT]) for s in group.scores if DIRECT in s)
        return [
            self.config.probability_weight * max(0.0, raw_reward(s) - base)
            + self.config.format_weight * (self.prompts.said(r.text) is not None)
            + shaping(r)
            for r, s in zip(group.rollouts, group.scores, strict=True)
        ]

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        rewards = self.rewards(group)
        return [
            Credit({"policy": constant(s[P], advantage)}, reward=reward, advantage=advantage)
            for s, reward, advantage in zip(group.scores, rewards, standardised(rewards), strict=True)
        ]

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        drift = tokens.new[P] - tokens.old[P]
        return {"policy": -clipped_ratio(drift, tokens.weight["policy"], self.config.clip_low, self.config.clip_high)}

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the raw probability, its baseline, the share of responses below it, and the filter's running mean."""
        raw = [raw_reward(s) for group in groups for s in group.scores]
        base = [mean_probability(s[DIRECT]) for group in groups for s in group.scores if DIRECT in s]
        above = [raw_reward(s) > b for group, b in zip(groups, base, strict=True) for s in group.scores]
        said = [self.prompts.said(r.text) is not None for group in groups for r in group.rollouts]
        return likelihood_metrics(groups, credits) | {
            "probability/reference_answer": mean(raw),
            "probability/without_thought": mean(base),
            "probability/below_baseline_share": 1.0 - mean([float(a) for a in above]),
            "format/answered_share": mean([float(s) for s in said]),
            "filter/usual_std": self.usual_std or 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"usual_std": self.usual_std}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.usual_std = state.get("usual_std")


def mean_probability(log_probs: Tensor) -> float:
    """Mean over answer tokens of their probability, from log-probs ``[A]``."""
    return answer_reward(log_probs, "mean_prob")


def raw_reward(scores: Scores) -> float:
    """R_raw; 0 where the thought was not closed."""
    return mean_probability(scores[ANSWER]) if ANSWER in scores else 0.0


def spread(rewards: Sequence[float]) -> float:
    """The sample deviation; 0 for a single reward."""
    return statistics.stdev(rewards) if len(rewards) > 1 else 0.0
