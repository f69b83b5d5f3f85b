"""What the likelihood methods share: G traces of a question from one prompt, each scored by log p(y|x,z).

Every method of the family reads the answer through the same rows and the same head as CoVRL, from the prior prompt
whatever the trace was drawn from. This file has the plan, the readings and the metrics; what a method makes of the
scores is in its own file.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from covrl.algorithms.base import Admission, Algorithm, Setup
from covrl.generation.base import Draw
from covrl.models.spec import ModelSpec
from covrl.objectives import centred, leave_one_out, standardised
from covrl.prompts import Prompts
from covrl.records import Credit, Output, Problem, Request, Rollout, Row, ScoredGroup, Scores
from covrl.rewards.leak import leak_rates
from covrl.rewards.likelihood import FLOOR_NATS, answer_reward, is_floored
from covrl.scoring.head import log_prob, log_prob_entropy
from covrl.scoring.pack import Context, Reading

P, REFERENCE = Output("trace", "prior"), Output("trace", "reference")
ANSWER, ENTROPY = Output("answer", "prior"), Output("trace", "entropy")

TRACE_READING = Reading("trace", ("prior",), log_prob, ("prior",))
TRACE_SCORING = Reading("trace", ("prior",), log_prob_entropy, ("prior", "entropy"))
ANSWER_READING = Reading("answer", ("prior",), log_prob, ("prior",))
REFERENCE_READING = Reading("trace", ("reference",), log_prob, ("reference",))

EMPTY = Output("direct", "direct")
EMPTY_READING = Reading("direct", ("direct",), log_prob, (EMPTY.name,))
"""log p(y|x,∅) per token of the answer, ``[A]``: one row a question, which the group's first rollout has."""

FROZEN = ModelSpec("reference")

ADVANTAGES = {"leave_one_out": leave_one_out, "mean": centred, "std": standardised}

SMALL_PROBABILITY = 1e-6
"""Below it an answer's probability is as good as zero: what a probability reward cannot tell apart."""

FLOORED_WARNING = 0.05
ZERO_WARNING = 0.95

ON_POLICY = "its loss has no importance ratio, so a second update would follow a gradient of older weights"


class OnePrompt(Algorithm):
    """Base of the family: ``source`` is the prompt that traces come from; a member gives ``credit_group`` and ``loss``.

    Scored are the trace (with its entropy) and the answer behind it, both from the prior prompt. ``reward_in`` says
    what rewards are made of, which decides when traces cannot be told apart: probabilities vanish, floored
    log-likelihoods meet at the floor, an order within the group stays.
    """

    rollouts_wanted: int = 2
    admission_reads: tuple[str, ...] | Literal["all"] = ()
    credit_scope: Literal["group", "batch"] = "group"
    source: ClassVar[Literal["prior", "posterior"]] = "prior"
    reward_in: ClassVar[Literal["probability", "log", "order"]] = "order"

    def __init__(self, config: Any, setup: Setup) -> None:
        self.config = config
        self.prompts = setup.prompts
        self.group_size = setup.rollouts_per_problem
        self.contexts = (Context("prior", self.prompts.prior_row),)
        self.scoring = (TRACE_SCORING, ANSWER_READING)
        self.training = (TRACE_READING, ANSWER_READING)

    def read_reference(self, spec: ModelSpec = FROZEN) -> None:
        """Also score the sampled tokens under a model beside the policy, from the prior prompt."""
        self.models = (spec,)
        self.contexts += (Context("reference", self.prompts.response_row, model="reference"),)
        self.scoring += (REFERENCE_READING,)

    def read_empty_thought(self) -> None:
        """Also score the answer after an empty thought."""
        self.contexts += (empty_thought(self.prompts),)
        self.scoring += (EMPTY_READING,)

    def read_responses(self, model: str = "policy") -> None:
        """Train whole responses; ``model`` scores the reference answer in the place of the response's own.

        A response whose thought was not closed has no such place.
        """
        self.contexts = (Context("prior", self.prompts.response_row), Context("answer", self._thought_row, model))
        self.scoring = (TRACE_SCORING, Reading("answer", ("answer",), log_prob, ("prior",)))
        self.training = (TRACE_READING,)

    def _thought_row(self, problem: Problem, rollout: Rollout) -> Row | None:
        thought = self.prompts.thought(rollout)
        return None if thought is None else self.prompts.prior_row(problem, thought)

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        del draw
        if history:
            return []
        prompt = self.prompts.prior(problem) if self.source == "prior" else self.prompts.posterior(problem)
        return [Request(problem.id, i, prompt, self.source) for i in range(self.group_size)]

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        return [self.credit_group(group) for group in groups]

    @abstractmethod
    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        """One :class:`Credit` per rollout of one group."""

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        return likelihood_metrics(groups, credits)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        return likelihood_warnings(metrics, self.reward_in)


def empty_thought(prompts: Prompts, model: str = "policy") -> Context:
    """``model`` reads the answer after an empty thought, in the place of a group's first rollout alone."""

    def render(problem: Problem, rollout: Rollout) -> Row | None:
        return prompts.direct_row(problem, rollout) if rollout.request.index == 0 else None

    return Context("direct", render, model)


def empty_log_likelihood(group: ScoredGroup, floor: float = FLOOR_NATS) -> float:
    """log p(y|x,∅) in nats, floored as log p(y|x,z) is; for methods that read it."""
    return next(answer_reward(s.values[EMPTY], "sum", floor) for s in group.scores if EMPTY in s.values)


def shaping(rollout: Rollout) -> float:
    """The value of the user's reward function, 0 where there is none: it adds to the method's own reward."""
    return rollout.reward or 0.0


def answer_probability(scores: Scores) -> float:
    """exp Σ log p(y|x,z); 0 for a trace that no answer can follow."""
    return answer_reward(scores[ANSWER], "prob") if ANSWER in scores else 0.0


def answer_log_likelihoods(group: ScoredGroup) -> list[float | None]:
    """Σ log p(y|x,z) of each trace in nats, floored as CoVRL's; None for one that no answer can follow."""
    return [answer_reward(s[ANSWER], "sum") if ANSWER in s else None for s in group.scores]


def worst_for_invalid(rewards: Sequence[float | None], penalty: float) -> list[float]:
    """A trace without a reward gets the worst of the others minus ``penalty`` (INFERRED, as in CoVRL)."""
    worst = min(reward for reward in rewards if reward is not None) - penalty
    return [worst if reward is None else reward for reward in rewards]


def with_a_valid_trace(groups: Sequence[ScoredGroup]) -> Admission:
    """Groups in which at least one trace can be followed by an answer; the others have nothing to compare."""
    return Admission([g for g in groups if any(rollout.valid for rollout in g.rollouts)])


def constant(like: Tensor, value: float) -> Tensor:
    """The same weight at every token of a span."""
    return torch.full_like(like, value)


def softmax(values: Sequence[float]) -> list[float]:
    """exp(v) / Σ exp(v), without overflow."""
    top = max(values)
    parts = [math.exp(value - top) for value in values]
    return [part / sum(parts) for part in parts]


def likelihood_metrics(
    groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]], stream: str = "policy"
) -> dict[str, float]:
    """What shows how a likelihood method fails.

    ``reward/floored_share`` and ``reward/zero_share``: answers at the floor of log-likelihoods, and those (missing
    ones included) with a probability below 1e-6; ``groups/without_signal_share``: groups in which no trace has weight
    in ``stream``; ``kl/*``: log π − log π_ref of sampled traces, where there is a reference.
    """
    scores = [s for group in groups for r, s in zip(group.rollouts, group.scores, strict=True) if r.request.trains]
    answers = [s[ANSWER] for s in scores if ANSWER in s]
    sums = [float(a.sum()) for a in answers]
    flat = [not any(stream in c.weights and bool(c.weights[stream].any()) for c in row) for row in credits]
    metrics = {
        "answer/log_prob": mean(sums),
        "reward/floored_share": mean([float(is_floored(a)) for a in answers]),
        "reward/zero_share": mean([float(answer_probability(s) < SMALL_PROBABILITY) for s in scores]),
        "groups/without_signal_share": mean([float(f) for f in flat]),
    }
    entropies = [s[ENTROPY] for s in scores if ENTROPY in s]
    if entropies:
        metrics["entropy/prior"] = mean(torch.cat(entropies).tolist())
    moved = [s[P] - s[REFERENCE] for s in scores if REFERENCE in s]
    if moved:
        metrics["kl/nats_per_trace"] = mean([float(part.sum()) for part in moved])
        metrics["kl/nats_per_token"] = mean(torch.cat(moved).tolist())
    return metrics


def leak_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """How often posterior traces state their answer early, and another problem's, as CoVRL reports it."""
    shown = [(r.text, g.problem.answer) for g in groups for r in g.rollouts if r.source == "posterior"]
    leaked, shuffled = leak_rates(shown)
    return {"leak/posterior_rate": leaked, "leak/shuffled_rate": shuffled, "leak/excess": leaked - shuffled}


def likelihood_warnings(metrics: Mapping[str, float], reward_in: str) -> list[str]:
    """Named troubles of a step; thresholds INFERRED."""
    found = []
    if reward_in == "log" and metrics.get("reward/floored_share", 0.0) > FLOORED_WARNING:
        found.append(
            f"floored rewards: {metrics['reward/floored_share']:.0%} of the answers are at the floor, where traces "
            "cannot be told apart; the answers are too long for sums of log-probs, or the base is too weak"
        )
    if reward_in == "probability" and metrics.get("reward/zero_share", 0.0) > ZERO_WARNING:
        found.append(
            f"no signal: {metrics['reward/zero_share']:.0%} of the traces give the answer a probability below 1e-6; "
            "take a stronger base, easier problems, or a method that sees the answer (covrl)"
        )
    if metrics.get("trace/invalid_share", 0.0) > 0.5:
        found.append(
            f"invalid traces: {metrics['trace/invalid_share']:.0%} do not end with the closing tag; "
            "the base does not know the format, or generation.max_trace_tokens is too small"
        )
    return found


def mean(values: Sequence[float]) -> float:
    """The mean, nan of nothing."""
    return sum(values) / len(values) if values else float("nan")
