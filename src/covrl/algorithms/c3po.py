"""C3PO: a constant budget of tokens for every update (Ring-lite, arXiv 2506.14731).

    1. advantages as in GRPO, over whole groups
    2. responses are taken in order until their tokens reach Φ; the last one may go beyond
    3. loss = (1/Φ) Σ over selected tokens of −min(ρA, clip(ρ, 1−ε, 1+ε)A) + β·kl

Every selected token weighs 1/Φ, however long the step's responses are; with Φ = all tokens this is the token mean
(VERIFIED). Selecting changes no group's statistics, and what is not selected is not trained.

Evidence (wave2 A3): CONFIRMED-text: the order of 1 and 2, Φ = 409,600 with 512 problems of 16 responses, β = 1e-3, an
entropy bonus of 5e-4 (both off here; the recipe has them). Its algorithm takes whole responses, its figure cuts the
last one at the token: both are here (``cut``). INFERRED: Φ is probably meant per rank there; "in order" is the batch's
order of problems and each group's order of requests, never that of completion, which would favour short responses; ε;
and of an update on a part of the step's problems, the same part of Φ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod
from covrl.config import Settings
from covrl.objectives import trace_tokens
from covrl.records import Credit, Rollout, ScoredGroup

SHORT = 0.9
"""Share of Φ that a step should fill: with less it is so much smaller than the others."""


class C3POConfig(GroupConfig):
    """C3PO's settings."""

    budget: int = Field(409_600, ge=1, description="Φ, tokens that a step trains. CONFIRMED-text: 409,600")
    cut: Literal["response", "token"] = Field(
        "response", description="the last response is taken whole, as in its algorithm, or up to Φ, as in its figure"
    )

    @model_validator(mode="after")
    def _by_budget(self) -> C3POConfig:
        if "aggregation" in self.model_fields_set:
            raise ValueError(
                f"aggregation = {self.aggregation!r}: C3PO's sum is divided by its budget of tokens; leave it out"
            )
        return self


class C3PO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "c3po"
    paper: ClassVar[str] = "arXiv 2506.14731"
    evidence: ClassVar[str] = "confirmed in the paper's text; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = C3POConfig
    credit_scope: Literal["group", "batch"] = "batch"

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: C3POConfig = config
        super().__init__(config, setup)
        self.streams = tuple(stream._replace(denominator=self._budget) for stream in self.streams)

    def _budget(self, groups: Sequence[ScoredGroup]) -> float:
        """Φ; of an update on a part of the step's problems, that part of it."""
        return self.own.budget * len(groups) / max(self.setup.problems_per_step, 1)

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        """The family's, without the weights of what is not selected."""
        credits, used = super().credit(groups), 0
        for group, row in zip(groups, credits, strict=True):
            for i in sorted(range(len(row)), key=lambda i: group.rollouts[i].request.index):
                rollout = group.rollouts[i]
                taken = self.selected(rollout, used)
                row[i] = replace(
                    row[i], weights={k: torch.where(taken.to(w.device), w, 0.0) for k, w in row[i].weights.items()}
                )
                used += rollout.loss_tokens
        return credits

    def selected(self, rollout: Rollout, used: int) -> Tensor:
        """Which tokens of a response are trained after ``used`` tokens of others, ``[T]``."""
        written = torch.tensor(rollout.written or (True,) * len(rollout.trace_ids), dtype=torch.bool)
        if self.own.cut == "response":
            return torch.full_like(written, used < self.own.budget)
        return used + written.long().cumsum(0) <= self.own.budget

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the tokens of all responses, over Φ: below 1 the step is so much smaller, above it some are left out."""
        return super().monitors(groups, credits) | {"c3po/filled": trace_tokens(groups) / self.own.budget}

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """A budget that the step's responses do not fill."""
        filled = metrics.get("c3po/filled", 1.0)
        if filled >= SHORT:
            return super().warnings(metrics)
        return [
            *super().warnings(metrics),
            f"budget not filled: the step's responses have {filled:.0%} of the tokens of algorithm.budget = "
            f"{self.own.budget}, and its gradient is as much smaller; lower the budget, or sample more",
        ]
