"""VinePPO: PPO whose values are means of fresh continuations (Kazemnejad et al., arXiv 2410.01679).

    V(s_k)   mean reward of K continuations that are sampled from s_k, the state before reasoning step k
    A_k      V(s_{k+1}) − V(s_k);  of the last step r − V(s_k)              γ = 1, no value after the end
    A_t      A_k at each token of step k, then (A − mean)/(std + 1e-8) over all tokens of the batch where ``whiten``
    loss     −min(ρA, clip(ρ, 1−ε, 1+ε)A)

Evidence (spec C). CONFIRMED in the authors' code: a fresh estimate at every boundary between steps, K = 9, A_k as
above, broadcast to the step's tokens and whitened, ε = 0.2, a k3 loss of weight 1e-4. INFERRED: steps are lines (theirs
come from a splitter for each data set); continuations have the tokens that the response had left; those whose verdict
is unknown are left out of a mean, and a response of which a state has no known continuation trains nothing. VERIFIED
by enumeration: with the values' expectation, the expected gradient is that of the expected reward.

The price is steps × K continuations of each response. They are not scored and not trained: sampling is all they cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import Aggregation, GroupConfig, GroupMethod, Marked, outcome
from covrl.config import Settings
from covrl.generation.base import Draw
from covrl.objectives.returns import whitened
from covrl.objectives.steps import step_advantages
from covrl.objectives.written import written_part
from covrl.records import Credit, Problem, Request, Rollout, ScoredGroup, Scores, Span
from covrl.rewards.segmenter import Rule, Segmenter


class VinePPOConfig(GroupConfig):
    """VinePPO's settings beside the family's."""

    aggregation: Aggregation = "token_mean"
    continuations: int = Field(9, ge=1, description="K, fresh continuations of each state")
    steps: Rule = Field("lines", description="what ends a reasoning step")
    most_steps: int = Field(
        8, ge=1, description="states whose value is estimated, at most; later ones share the last's"
    )
    whiten: bool = Field(True, description="advantages with mean 0 and deviation 1 over all tokens of the batch")

    @model_validator(mode="after")
    def _own_baseline(self) -> VinePPOConfig:
        if "advantage" in self.model_fields_set:
            raise ValueError("advantage: VinePPO's advantages are differences of its states' values")
        for name in ("posterior_share", "resample"):
            if getattr(self, name):
                raise ValueError(f"{name}: VinePPO compares states of one response, not responses of a group")
        self.refuse_contrast("VinePPO's are differences of its states' values; take grpo")
        if self.kl != "none" and self.kl_in == "reward":
            raise ValueError(
                "kl_in = 'reward': continuations are not scored, so values have no KL; take kl_in = 'loss'"
            )
        return self


class VinePPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "vineppo"
    paper: ClassVar[str] = "arXiv 2410.01679"
    evidence: ClassVar[str] = "confirmed in the authors' code; gradient verified by enumeration"
    Config: ClassVar[type[Settings]] = VinePPOConfig
    rollouts_wanted: int = 1

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: VinePPOConfig = config
        super().__init__(config, setup)
        self.credit_scope: Literal["group", "batch"] = "batch" if config.whiten else "group"
        self.segmenter = Segmenter(config.steps)

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        """The responses, and then continuations of each of their states."""
        if len(history) > self.group_size:
            return []
        if not history:
            return super().plan(problem, history, draw)
        states = [(rollout, span.start) for rollout in history for span in self.spans(rollout)]
        wanted = [(rollout, start) for rollout, start in states for _ in range(self.own.continuations)]
        return [
            Request(
                problem.id,
                self.group_size + i,
                rollout.request.prompt_ids,
                rollout.source,
                prefix_ids=rollout.trace_ids[:start],
                max_tokens=max(self.setup.max_tokens - start, 1),
                parent=rollout.request.index,
                trains=False,
                scored=False,
            )
            for i, (rollout, start) in enumerate(wanted)
        ]

    def spans(self, rollout: Rollout) -> list[Span]:
        """The response's steps as spans of its tokens; the last of ``most_steps`` goes to the end."""
        close = self.prompts.config.close
        found = self.segmenter.steps(self.prompts.tokenizer, rollout.trace_ids, rollout.text, close=close)
        spans = [step.span for step in found][: self.own.most_steps]
        return [*spans[:-1], Span(spans[-1].start, len(rollout.trace_ids))] if spans else []

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        rows = [[self._advantages(group, r) for r in group.rollouts] for group in groups]
        known = [
            written_part(advantages, rollout.written)
            for group, row in zip(groups, rows, strict=True)
            for rollout, advantages in zip(group.rollouts, row, strict=True)
            if advantages is not None
        ]
        scale = whitened(known) if self.own.whiten else (lambda values: values)
        return [
            [self._credit_of(r, s, a, scale) for r, s, a in zip(group.rollouts, group.scores, row, strict=True)]
            for group, row in zip(groups, rows, strict=True)
        ]

    def _advantages(self, group: ScoredGroup, rollout: Rollout) -> Tensor | None:
        """``[T]`` in float64; None for a continuation, and where the response's or a state's reward is not known."""
        result = outcome(rollout)
        if not rollout.request.trains or result is None:
            return None
        spans = self.spans(rollout)
        values = [self.value(group, rollout, span.start) for span in spans]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        found = torch.zeros(len(rollout.trace_ids), dtype=torch.float64)
        for span, advantage in zip(spans, step_advantages(known, result - self.overlong(rollout)), strict=True):
            found[span.start : span.stop] = advantage
        return found

    def value(self, group: ScoredGroup, rollout: Rollout, start: int) -> float | None:
        """Mean reward of the continuations of the response from its token ``start`` on; None where none is known."""
        mine = (
            r
            for r in group.rollouts
            if not r.request.trains and r.request.parent == rollout.request.index and len(r.request.prefix_ids) == start
        )
        known = [result for r in mine if (result := outcome(r)) is not None]
        return sum(known) / len(known) if known else None

    def _credit_of(self, rollout: Rollout, scores: Scores, advantages: Tensor | None, scale: Any) -> Credit:
        result = outcome(rollout)
        if advantages is None:
            return Credit(reward=result if rollout.request.trains else None)
        return self.credit_of(rollout, scores, Marked(result, result or 0.0), scale(advantages))
