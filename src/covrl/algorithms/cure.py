"""CURE: branches at a critical token, then a static phase (Li et al., 2025; code bytedance/CURE).

    stage 1   n₁ responses; of each, a critical token: one of its K tokens of highest entropy, drawn at random
              n₂ continuations of the response up to that token, which is dropped, so that it is sampled again
              the group is all n₁(1 + n₂) of them; the prefix of a branch carries no loss
    stage 2   n responses from the question alone, from step ``branch_steps`` on
    loss      DAPO's, with its baseline over the group (or over a root and its branches: ``baseline = "per_parent"``)

Evidence (catalogue 3.6). CONFIRMED in the authors' code: n₁ = 4, n₂ = 3, K = 20, the critical token is never the
first, a special id, or one whose text has at most one character, it is dropped; one baseline for roots and branches;
clips 0.2 and 0.28, dual clip 10, token mean, no KL, an accuracy filter. INFERRED: a branch has the tokens that its root
had left (theirs truncate prompt and prefix from the wrong end, a defect); a response without a critical token branches
at its first token, as theirs; ``per_parent`` is ours, since branches of a good root are no draws from the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod
from covrl.config import Settings
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.generation.random import uniform
from covrl.records import Credit, Observe, Problem, Request, Rollout, ScoredGroup


class CUREConfig(GroupConfig):
    """CURE's settings: DAPO's, and its own."""

    clip_high: float = 0.28
    dual_clip: float | None = Field(10.0, gt=1, description="bound on the ratio of negative advantages")
    resample: bool = True
    branches: int = Field(3, ge=1, description="n₂, continuations of each root; n₁ is rollouts_per_problem / (1 + n₂)")
    candidates: int = Field(20, ge=1, description="K, tokens of highest entropy among which the critical one is drawn")
    branch_steps: int = Field(300, ge=0, description="steps of stage 1; then all responses come from the question")
    baseline: Literal["group", "per_parent"] = Field(
        "group", description="rewards are compared in the whole group, or in a root and its branches (ours)"
    )

    @model_validator(mode="after")
    def _of_the_prior(self) -> CUREConfig:
        if self.posterior_share:
            raise ValueError("posterior_share: CURE branches responses of the prior prompt; take grpo for this control")
        return self


class CURE(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "cure"
    paper: ClassVar[str] = "CURE, ByteDance 2025"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = CUREConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: CUREConfig = config
        super().__init__(config, setup)
        self.rollouts_wanted = 1 + config.branches
        if self.group_size % self.rollouts_wanted and self.group_size >= self.rollouts_wanted:
            raise UserError(
                f"training.rollouts_per_problem = {self.group_size}: cure has roots with {config.branches} branches "
                f"each (algorithm.branches), so it needs a multiple of {self.rollouts_wanted}"
            )

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        """Roots, and then branches of each; after stage 1 all from the question."""
        if draw.step >= self.own.branch_steps:
            return super().plan(problem, history, draw)
        roots = self.group_size // (1 + self.own.branches)
        if not history:
            prompt, seen = self.prompts.prior(problem), Observe(entropy=True)
            return [Request(problem.id, i, prompt, "prior", observe=seen) for i in range(roots)]
        if len(history) > roots:
            return []
        cuts = [(root, self.critical(root, draw)) for root in history]
        return [
            replace(root.branch(cut, roots + i * self.own.branches + j, self._left(cut)), observe=Observe())
            for i, (root, cut) in enumerate(cuts)
            for j in range(self.own.branches)
        ]

    def _left(self, cut: int) -> int:
        return max(self.setup.max_tokens - cut, 1)

    def critical(self, root: Rollout, draw: Draw) -> int:
        """The place of the critical token; 0 where no token can be one."""
        entropies = root.observed.entropy
        assert entropies is not None
        allowed = [place for place in range(1, len(root.trace_ids)) if self._says_something(root.trace_ids[place])]
        highest = sorted(allowed, key=lambda place: (-entropies[place], place))[: self.own.candidates]
        if not highest:
            return 0
        number = uniform(replace(draw, purpose="critical token"), root.request.problem_id, root.request.index)
        return highest[int(number * len(highest))]

    def _says_something(self, token: int) -> bool:
        tokenizer = self.prompts.tokenizer
        if token in tokenizer.all_special_ids:
            return False
        return len(str(tokenizer.decode([token], skip_special_tokens=False)).strip()) > 1

    def _credit_group(self, group: ScoredGroup) -> list[Credit]:
        if self.own.baseline == "group":
            return super()._credit_group(group)
        families: dict[int, list[int]] = {}
        for place, rollout in enumerate(group.rollouts):
            parent = rollout.request.parent
            families.setdefault(rollout.request.index if parent is None else parent, []).append(place)
        found: dict[int, Credit] = {}
        for places in families.values():
            rollouts, scores = [group.rollouts[i] for i in places], [group.scores[i] for i in places]
            own = super()._credit_group(ScoredGroup(group.problem, tuple(rollouts), tuple(scores)))
            found |= dict(zip(places, own, strict=True))
        return [found[place] for place in range(len(group.rollouts))]
