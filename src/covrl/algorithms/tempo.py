"""TEMPO: the group's own prefix tree as value of every token (arXiv 2509.18314; earlier name TIDEPO).

    V(s)      mean reward of the group's responses that begin with the tokens s;  V(no token) = the group's mean μ
    A_{i,t}   ( r_i − μ + V(s_{t+1}) − V(s_t) ) / (std + 1e-6)        s_t the response's tokens before token t
    loss      mean over tokens of −min(ρA, clip(ρ, 1−0.2, 1+0.28)A)

The second part is not 0 at tokens alone where responses part: elsewhere this is GRPO. Along a response it sums to
r_i − μ (VERIFIED): at each fork what the choice was worth comes on top of the outcome.

Evidence (wave2 B1): CONFIRMED in the authors' code: the sample deviation and its floor, scaling on by default, ids
compared with the end-of-sequence id among them, no KL, both clips, token mean. Their group of one gives NaN; here its
advantage is 0 (ours). A response with an unknown verdict is no part of the tree (ours). ``td_weight`` is ours:
reviewers doubt that differences of V should be divided by the deviation; at 0 the method is GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod, Marked, at_each_token
from covrl.config import Settings
from covrl.objectives import prefix_values
from covrl.objectives.advantages import STD_EPSILON
from covrl.precision import wide
from covrl.records import Credit, Rollout, ScoredGroup


class TEMPOConfig(GroupConfig):
    """TEMPO's defaults."""

    clip_high: float = 0.28
    td_weight: float = Field(1.0, ge=0, description="factor on V(s_{t+1}) − V(s_t). CONFIRMED: 1; 0 is GRPO (ours)")

    @model_validator(mode="after")
    def _one_tree(self) -> TEMPOConfig:
        if self.advantage == "leave_one_out":
            raise ValueError(
                "advantage = 'leave_one_out': the tree's values have the response's own reward in them; take 'std' or "
                "'mean'"
            )
        if self.posterior_share:
            raise ValueError("posterior_share: prefixes after two prompts are no states of one tree; take grpo")
        self.refuse_contrast("TEMPO's differ from token to token already; take grpo")
        return self


class TEMPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "tempo"
    paper: ClassVar[str] = "arXiv 2509.18314"
    evidence: ClassVar[str] = "confirmed in the authors' code"
    Config: ClassVar[type[Settings]] = TEMPOConfig

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: TEMPOConfig = config
        super().__init__(config, setup)

    def _credit_group(self, group: ScoredGroup) -> list[Credit]:
        marked = self.mark(group)
        advantages = self.advantages(marked)
        moves = differences(group.rollouts, marked)
        scale = self._scale([m.reward for m in marked if m.outcome is not None])
        return [
            self.credit_of(r, s, m, at_each_token(r, a or 0.0) + self.own.td_weight * scale * moves[i])
            for i, (r, s, m, a) in enumerate(zip(group.rollouts, group.scores, marked, advantages, strict=True))
        ]

    def _scale(self, rewards: Sequence[float]) -> float:
        """What r − μ is multiplied by to give the advantage: 1, or one over the deviation; 0 for a single response."""
        if len(rewards) < 2:
            return 0.0
        if self.config.advantage == "mean":
            return 1.0
        return 1.0 / (float(torch.tensor(rewards, dtype=torch.float64).std()) + STD_EPSILON)

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the share of tokens at which V changes, and how many tokens a response shares with another."""
        moves = [move for group in groups for move in differences(group.rollouts, self.mark(group))]
        shared = [shared_tokens(group.rollouts) for group in groups]
        every, lengths = torch.cat(moves) if moves else torch.zeros(0), [n for row in shared for n in row]
        own = {
            "tempo/fork_share": float(wide(every != 0).mean()) if len(every) else float("nan"),
            "tempo/shared_tokens": sum(lengths) / len(lengths) if lengths else float("nan"),
        }
        return super().monitors(groups, credits) | own


def differences(rollouts: Sequence[Rollout], marked: Sequence[Marked]) -> list[Tensor]:
    """V(s_{t+1}) − V(s_t) at each sampled token of each response, ``[T]``; 0 where the outcome is unknown.

    A prefix that was given is part of the states, so that branches share what they began with.
    """
    known = [(r, m.reward) for r, m in zip(rollouts, marked, strict=True) if m.outcome is not None]
    values = iter(prefix_values([r.whole_ids for r, _ in known], [reward for _, reward in known]))
    return [
        at_each_token(r, 0.0) if m.outcome is None else next(values)[len(r.request.prefix_ids) :].diff()
        for r, m in zip(rollouts, marked, strict=True)
    ]


def shared_tokens(rollouts: Sequence[Rollout]) -> list[int]:
    """Of each response, the tokens from its beginning that some other response of the group has too."""
    every = sorted(r.whole_ids for r in rollouts)
    return [
        max((common(one, other) for other in (*every[max(i - 1, 0) : i], *every[i + 1 : i + 2])), default=0)
        for i, one in enumerate(every)
    ]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    return next((t for t, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
