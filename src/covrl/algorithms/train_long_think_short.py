"""Train Long, Think Short: the prompt asks for a budget of tokens, which shrinks in training (arXiv 2508.08940).

    x       the question, and how many tokens its response shall have: L
    L_k     L_0·(L_n/L_0)^{k/n} after the k-th of n changes, one every ``change_every`` steps;  or on a line
    R_len   T/L for T ≤ L,  2 − T/L up to 2L,  0 beyond               triangular;  band: 1 for T ≤ L
    r       w_c·R_right + w_l·R_len + w_f·R_form
    A       (r − mean)/√(var + 1e-8),  population variance, then one ratio a response, PPO's clip

Evidence (catalogue 3.10, wave2 B5): CONFIRMED-text (the whole paper): the prompt states the budget, both shapes, both
decays, w_c, w_l = (0.3, 0.6) and (0.6, 0.3), √(var + ε), one ratio a sequence, groups of 8, 256 → 87 tokens in 600
steps. T is the response in the text and the thought in a figure (``length``). INFERRED: w_f = 0.1, R_form = ½ for a
closed thought + ½ for an answer in its place, ε, the clip, that the KL is off by default (β is not stated), and the
wording of ``instruction``. A wrong response of the right length has more than a right one that is long (0.7 against
0.4 at L, 2L): ``only_right`` pays for the length of right ones alone (INFERRED).

The steps that were done are the method's memory; budgets follow from them. What was sampled is scored after the
prompt that it was sampled from. Held-out problems are asked as they stand, without a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from covrl.algorithms.base import Setup
from covrl.algorithms.group import Aggregation, GroupConfig, GroupMethod, Marked, outcome
from covrl.config import Settings
from covrl.generation.base import Draw
from covrl.records import Credit, Problem, Request, Rollout, Row, ScoredGroup, Span

EPSILON = 1e-8


class TrainLongThinkShortConfig(GroupConfig):
    """Its settings; the weights are the paper's first pair."""

    ratio: Literal["token", "sequence"] = "sequence"
    aggregation: Aggregation = "sequence_mean"
    start: int = Field(256, ge=1, description="L_0, tokens. CONFIRMED-text: 256")
    end: int = Field(87, ge=1, description="L_n, tokens. CONFIRMED-text: 87")
    changes: int = Field(3, ge=1, description="n. CONFIRMED-text: 3, the best on average of 1, 3 and 7")
    change_every: int = Field(150, ge=1, description="steps with the same budget. CONFIRMED-text: 150 of 600")
    decay: Literal["exponential", "linear"] = Field("exponential", description="CONFIRMED-text: linear is a bit better")
    shape: Literal["triangular", "band"] = Field("triangular", description="CONFIRMED-text: 57.9 against 55.0")
    length: Literal["response", "thought"] = Field("response", description="T: text and figure of the paper differ")
    right_weight: float = Field(0.3, ge=0, description="w_c. CONFIRMED-text: 0.3, or 0.6")
    length_weight: float = Field(0.6, gt=0, description="w_l. CONFIRMED-text: 0.6, or 0.3")
    form_weight: float = Field(0.1, ge=0, description="w_f. INFERRED")
    only_right: bool = Field(False, description="pay for the length of right responses alone (INFERRED)")
    instruction: str = Field(
        " Use exactly {budget} tokens.", description="what follows the question; {budget} is L (wording INFERRED)"
    )

    @model_validator(mode="after")
    def _one_length_reward(self) -> TrainLongThinkShortConfig:
        if self.instruction.count("{budget}") != 1:
            raise ValueError(f"instruction = {self.instruction!r}: it has to name {{budget}} once, which stands for L")
        if self.end > self.start:
            raise ValueError(f"end = {self.end} is above start = {self.start}: budgets shrink")
        if self.resample:
            raise ValueError("resample = true drops groups that are all right, where length is what differs")
        if self.overlong_buffer:
            raise ValueError(f"overlong_buffer = {self.overlong_buffer}: length is rewarded already; leave it out")
        if self.posterior_share:
            raise ValueError("posterior_share: the budget stands in the prior prompt alone; take grpo")
        self.refuse_contrast("the budget stands in the prior prompt alone; take grpo")
        return self


class TrainLongThinkShort(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "train_long_think_short"
    paper: ClassVar[str] = "arXiv 2508.08940"
    evidence: ClassVar[str] = "confirmed in the paper's text; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = TrainLongThinkShortConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: TrainLongThinkShortConfig = config
        self.done = 0
        super().__init__(config, setup)
        self.contexts = tuple(context._replace(render=asked_row) for context in self.contexts)
        if config.only_right:
            self.by_verdict = "only right responses are paid for their length (only_right)"

    @property
    def budget(self) -> int:
        """L of the step that is being made."""
        return self.budget_at(self.done)

    def budget_at(self, step: int) -> int:
        """L of step ``step`` (0, 1, …)."""
        own, change = self.own, min(step // self.own.change_every, self.own.changes)
        return budget_after(change, own.start, own.end, own.changes, own.decay)

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        asked = self.own.instruction.replace("{budget}", str(self.budget_at(draw.step)))
        return super().plan(replace(problem, question=problem.question + asked), history, draw)

    def mark(self, group: ScoredGroup) -> list[Marked]:
        return [self._marked(rollout, kl) for rollout, kl in zip(group.rollouts, super().mark(group), strict=True)]

    def _marked(self, rollout: Rollout, plain: Marked) -> Marked:
        """Its reward in the place of the outcome, less what the family takes off (a KL in the reward)."""
        own, right = self.own, plain.outcome or 0.0
        paid = self.length_reward(rollout) if right == 1.0 or not own.only_right else 0.0
        reward = own.right_weight * right + own.length_weight * paid + own.form_weight * self.form(rollout)
        return Marked(plain.outcome, reward + plain.reward - right)

    def length_reward(self, rollout: Rollout) -> float:
        """R_len at the step's budget."""
        thought = self.prompts.thought(rollout) if self.own.length == "thought" else None
        return length_reward((thought or rollout).loss_tokens, self.budget, self.own.shape)

    def form(self, rollout: Rollout) -> float:
        """½ for a closed thought, ½ for an answer in its place."""
        answered = outcome(rollout) == 1.0 or self.prompts.said(rollout.text) is not None
        return 0.5 * (self.prompts.thought(rollout) is not None) + 0.5 * answered

    def advantages(self, marked: Sequence[Marked]) -> list[float | None]:
        if self.config.advantage != "std":
            return super().advantages(marked)
        known = [m.reward for m in marked if m.outcome is not None]
        values = iter(scaled(known))
        return [None if m.outcome is None else next(values) for m in marked]

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the budget, tokens, and the mean of R_len."""
        paid = [self.length_reward(rollout) for group in groups for rollout in group.rollouts]
        own = {"budget/tokens": float(self.budget), "budget/reward": sum(paid) / len(paid) if paid else float("nan")}
        return super().monitors(groups, credits) | own

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = int(state["done"])

    def after_step(self, metrics: Mapping[str, float]) -> None:
        del metrics
        self.done += 1


def asked_row(problem: Problem, rollout: Rollout) -> Row:
    """The prompt that a response was sampled from, and the response: span ``trace`` ``[T]``."""
    del problem
    prompt = rollout.request.prompt_ids
    before = prompt + rollout.request.prefix_ids
    span = Span(len(before), len(before) + len(rollout.trace_ids))
    return Row(before + rollout.trace_ids, {"trace": span}, len(prompt))


def budget_after(change: int, start: int, end: int, changes: int, decay: Literal["exponential", "linear"]) -> int:
    """L after so many of ``changes`` changes, tokens.

    Example:
        >>> [budget_after(k, 256, 87, 3, "exponential") for k in range(4)]  # 256, 179, 125, 87
    """
    share = change / changes
    exact = start * (end / start) ** share if decay == "exponential" else start + share * (end - start)
    return max(1, round(exact))


def length_reward(tokens: int, budget: int, shape: Literal["triangular", "band"]) -> float:
    """R_len of a response of so many tokens: 1 at the budget, 0 from twice the budget on."""
    if tokens <= budget:
        return tokens / budget if shape == "triangular" else 1.0
    return max(0.0, 2 - tokens / budget)


def scaled(rewards: Sequence[float]) -> list[float]:
    """(r − mean)/√(var + ε) with the population variance; 0 for one alone."""
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards) + EPSILON)
    return [(r - mean) / deviation for r in rewards]
