"""ProRL: long training of GRPO, whose reference and optimizer begin anew where it stalls (arXiv 2505.24864).

    loss      −min(ρA, clip(ρ, 1 − 0.2, 1 + 0.4)A) + β·kl(π ‖ π_ref);   groups all right or all wrong are left out
    reset     π_ref ← π, and AdamW's moments begin at 0
    stall     after ``patience`` validations in a row without a new best:   (best, bad) ← (v, 0) if v > best + δ
                                                                            else (best, bad + 1);  at a reset (v, 0)
    normalise = batch    A = (a − μ)/√max(var, 1e-8),  a = r − group mean,  μ and var over all tokens of the batch

Right after a reset the KL and its gradient are 0 (VERIFIED). Without a KL and a restart a reset changes nothing, so
that is refused.

Evidence (wave2 A2): CONFIRMED-text: GRPO with the group's deviation, clip 0.2 and 0.4, dynamic sampling, a KL to a
reference that is reset together with the optimizer where a validation set stagnates or worsens, eight runs in sequence,
groups of 16. CONFIRMED-code for the second version (NVIDIA NeMo-RL): the batch's normalisation, k2 with β = 1e-4, clip
0.2 and 0.27. INFERRED: β and the estimator of the first version, the trigger with its patience, ``min_delta`` and
``min_gap``, and that one metric is the score. A write-up of the second version resets every 200 to 500 steps and keeps
the optimizer (CONFIRMED-3rd): ``reset = "every"`` with ``restart_optimizer = false``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from covrl.algorithms.base import Reset, Setup
from covrl.algorithms.group import Divergence, GroupConfig, GroupMethod, Marked, at_each_token
from covrl.config import Settings
from covrl.records import Credit, ScoredGroup

LEAST_VARIANCE = 1e-8
ASK_AGAIN = 50
"""Steps between two warnings that no validation has come."""


class ProRLConfig(GroupConfig):
    """ProRL's settings."""

    clip_high: float = 0.4
    resample: bool = True
    kl: Divergence = "k3"
    kl_weight: float = 1e-4
    normalise: Literal["group", "batch"] = Field("group", description="first version, or second: over all tokens")
    reset: Literal["stall", "every"] = Field("stall", description="on a stall of the score, or by the number of steps")
    score: str = Field("eval/accuracy", description="the metric that stalls (INFERRED: one; theirs is blended)")
    patience: int = Field(3, ge=1, description="validations in a row without a new best (INFERRED)")
    min_delta: float = Field(0.0, ge=0, description="δ, what a new best has to be above the old (INFERRED)")
    min_gap: int = Field(0, ge=0, description="least steps between two resets (INFERRED)")
    every: int = Field(300, ge=1, description="steps between two resets of reset = 'every'. CONFIRMED-3rd: 200 to 500")
    restart_optimizer: bool = Field(True, description="AdamW's moments begin at 0. CONFIRMED-text; false: 2nd version")

    @model_validator(mode="after")
    def _something_begins_anew(self) -> ProRLConfig:
        if self.kl == "none" and not self.restart_optimizer:
            raise ValueError("kl = 'none' with restart_optimizer = false: a reset would change nothing; take dapo")
        if self.normalise == "batch":
            self.refuse_contrast("normalise = 'batch' compares over the batch; take normalise = 'group'")
            if "advantage" in self.model_fields_set:
                raise ValueError(
                    "advantage: normalise = 'batch' subtracts means and divides over the batch; leave it out"
                )
        for name in ("score", "patience", "min_delta", "min_gap"):
            self.refuse_idle(name, self.reset == "every", "reset = 'every'")
        self.refuse_idle("every", self.reset == "stall", "reset = 'stall'")
        return self


class ProRL(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "prorl"
    paper: ClassVar[str] = "arXiv 2505.24864"
    evidence: ClassVar[str] = "confirmed in the paper's text; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = ProRLConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: ProRLConfig = config
        super().__init__(config, setup)
        self.models = tuple(spec._replace(follows="reset") for spec in self.models)
        self.credit_scope: Literal["group", "batch"] = "batch" if config.normalise == "batch" else "group"
        self.best: float | None = None
        self.bad = 0
        self.since = 0

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        if self.own.normalise == "group":
            return super().credit(groups)
        rows = [[*zip(g.rollouts, g.scores, self._centred(g), strict=True)] for g in groups]
        known = [(a, r.loss_tokens) for row in rows for r, _, (m, a) in row if m.outcome is not None]
        mean, deviation = token_moments(known)
        return [
            [
                self.credit_of(r, s, m, at_each_token(r, 0.0 if m.outcome is None else (a - mean) / deviation))
                for r, s, (m, a) in row
            ]
            for row in rows
        ]

    def _centred(self, group: ScoredGroup) -> list[tuple[Marked, float]]:
        """Each response's reward, and how far it is above the group's mean."""
        marked = self.mark(group)
        known = [m.reward for m in marked if m.outcome is not None]
        mean = sum(known) / len(known) if known else 0.0
        return [(m, m.reward - mean) for m in marked]

    def reset_after(self, metrics: Mapping[str, float]) -> Reset | None:
        self.since += 1
        if not (self._stalled(metrics) if self.own.reset == "stall" else self.since >= self.own.every):
            return None
        self.since = 0
        return Reset(tuple(spec.name for spec in self.models), self.own.restart_optimizer)

    def _stalled(self, metrics: Mapping[str, float]) -> bool:
        """Whether the score has stalled with this step's validation, if there was one."""
        own, value = self.own, metrics.get(self.own.score, float("nan"))
        if math.isnan(value):
            return False
        better = self.best is None or value > self.best + own.min_delta
        self.best, self.bad = (value, 0) if better or self.best is None else (self.best, self.bad + 1)
        if self.bad < own.patience or self.since < own.min_gap:
            return False
        self.best, self.bad = value, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = None if state["best"] is None else float(state["best"])
        self.bad, self.since = int(state["bad"]), int(state["since"])

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the steps since the last reset, from where ``kl/…`` is measured."""
        return super().monitors(groups, credits) | {"prorl/since_reset": float(self.since)}

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """No validation has come, so no reset will."""
        found, steps = super().warnings(metrics), self.since + 1
        if self.own.reset == "every" or self.best is not None or self.own.score in metrics or steps % ASK_AGAIN:
            return found
        return [
            *found,
            f"no reset can come: no step has had algorithm.score = {self.own.score}; give problems.held_out, "
            "evaluation.every and evaluation.verifier, or set algorithm.reset = 'every'",
        ]


def token_moments(values: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Mean and deviation of values that stand at so many tokens each: √max(var, 1e-8), population variance.

    Example:
        >>> token_moments([(0.5, 10), (-0.5, 30), (0.0, 20), (0.0, 20)])  # -0.125, sqrt(0.109375)
    """
    tokens = max(sum(count for _, count in values), 1)
    mean = sum(value * count for value, count in values) / tokens
    variance = sum((value - mean) ** 2 * count for value, count in values) / tokens
    return mean, math.sqrt(max(variance, LEAST_VARIANCE))
