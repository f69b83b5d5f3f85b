"""THR and NTHR: tokens weighed by what they do to the likelihood of right responses (arXiv 2510.03669, 2505.18830).

With h the last hidden state of a token, g = onehot(y) − π on the ids that the group's responses have, fp32 or wider,

    s_{j,k'}   Σ_{i right} f_i Σ_k ⟨g_{i,k}, g_{j,k'}⟩⟨h_{i,k}, h_{j,k'}⟩         f_i = 1/T_i in THR, 1 in NTHR
               how much a step on the right responses raises log π of token k' of response j, through the output layer
    τ          β · min over right i of the mean of s over i's own tokens

    THR     A' = 1[|s| > τ] · (1 + sign(THR)·p) · A,   THR = s in right responses and −s in wrong ones
            p > 0 exploits, p < 0 explores, p = 0 keeps tokens of influence alone
    NTHR    A' = η·A at tokens of wrong responses with s > τ, A elsewhere;  η = 2|½ − share of right responses|

THR without the mask and with p = 0 is GRPO (VERIFIED). Groups that are all right or all wrong have no scores, and no
advantage either. Scores are those of the weights that sampled, also where a batch serves for several updates.

Evidence (catalogue 3.5, wave2 B7): no code is public. CONFIRMED-3rd (a detailed note, and one on NTHR); CONFIRMED-text
(reviews): the mask, the sign, that the best p differs by model. VERIFIED: the matrix form equals the double loop.
INFERRED: THR's τ is NTHR's, with β = 1; π is taken on the group's ids without normalising it again. At an accuracy of
exactly one half NTHR gives its tokens no weight at all: that is the formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from covrl.algorithms.base import Setup
from covrl.algorithms.group import GroupConfig, GroupMethod, at_each_token, outcome
from covrl.config import Settings
from covrl.errors import UserError
from covrl.objectives.influence import influence, residuals, step_on_output
from covrl.precision import wide
from covrl.records import Credit, Output, ScoredGroup, Scores
from covrl.scoring.groups import GroupReading, GroupStates

INFLUENCE = Output("trace", "influence")
BY_VERDICT = "tokens are weighed by what they do to right responses"


class NTHRConfig(GroupConfig):
    """What both have beside the family's settings."""

    beta: float = Field(1.0, ge=0, description="β, factor of τ. CONFIRMED-3rd, of NTHR: 1")

    @model_validator(mode="after")
    def _of_the_prior(self) -> NTHRConfig:
        if self.posterior_share:
            raise ValueError("posterior_share: influence is between responses to one prompt; take grpo")
        self.refuse_contrast("here they differ from token to token already; take grpo")
        return self


class THRConfig(NTHRConfig):
    """THR's own."""

    p: float = Field(0.1, gt=-1, lt=1, description="above 0 exploits, below explores. CONFIRMED-3rd: 0.1 and −0.1")
    mask: bool = Field(True, description="leave out tokens with |s| at most τ; False: τ = −∞")

    @model_validator(mode="after")
    def _masked(self) -> THRConfig:
        self.refuse_idle("beta", not self.mask, "mask = false")
        return self


class NTHR(GroupMethod):
    """NTHR: damp tokens of wrong responses that right ones need; see the module's docstring."""

    name: ClassVar[str] = "nthr"
    paper: ClassVar[str] = "arXiv 2505.18830"
    evidence: ClassVar[str] = "third-hand: a note on the paper; no public code"
    Config: ClassVar[type[Settings]] = NTHRConfig
    by_verdict: str | None = BY_VERDICT
    by_length: ClassVar[bool] = False

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: Any = config
        super().__init__(config, setup)
        self.group_readings = (GroupReading("prior", partial(token_influence, by_length=self.by_length), "influence"),)

    def _values(self, group: ScoredGroup, advantages: Sequence[float | None]) -> list[Tensor]:
        outcomes = [outcome(rollout) for rollout in group.rollouts]
        known = [value for value in outcomes if value is not None]
        accuracy = sum(known) / len(known) if known else 0.0
        if accuracy in (0.0, 1.0):  # nothing to tell apart, and no scores
            return [at_each_token(r, a or 0.0) for r, a in zip(group.rollouts, advantages, strict=True)]
        tau = self.own.beta * threshold(group.scores, outcomes)
        rows = zip(group.rollouts, group.scores, outcomes, advantages, strict=True)
        return [
            at_each_token(r, a or 0.0) * self.factor(s[INFLUENCE].cpu().double(), value == 1.0, tau, accuracy)
            for r, s, value, a in rows
        ]

    def factor(self, score: Tensor, right: bool, tau: float, accuracy: float) -> Tensor:
        """What the advantage of each token is multiplied by, ``[T]``, from its s ``[T]``."""
        if right:
            return torch.ones_like(score)
        return torch.where(score > tau, 2 * abs(0.5 - accuracy), torch.ones_like(score))

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the share of tokens of mixed groups whose advantage is not the response's own."""
        changed = [part for group in groups for part in self._changed(group)]
        share = float(wide(torch.cat(changed)).mean()) if changed else float("nan")
        return super().monitors(groups, credits) | {f"{self.name}/changed_share": share}

    def _changed(self, group: ScoredGroup) -> list[Tensor]:
        if len({value for r in group.rollouts if (value := outcome(r)) is not None}) < 2:
            return []
        return [value != 1.0 for value in self._values(group, [1.0] * len(group.rollouts))]


class THR(NTHR):
    """THR: keep tokens of influence, and weigh them by its sign; see the module's docstring."""

    name: ClassVar[str] = "thr"
    paper: ClassVar[str] = "arXiv 2510.03669"
    evidence: ClassVar[str] = "third-hand: a note on the paper and its reviews; no public code"
    Config: ClassVar[type[Settings]] = THRConfig
    by_length: ClassVar[bool] = True

    def factor(self, score: Tensor, right: bool, tau: float, accuracy: float) -> Tensor:
        del accuracy
        signed = 1 + self.own.p * (score if right else -score).sign()
        return torch.where(score.abs() > tau, signed, torch.zeros_like(signed)) if self.own.mask else signed


def threshold(scores: Sequence[Scores], outcomes: Sequence[float | None]) -> float:
    """The least mean of s over a right response's own tokens."""
    right = [s[INFLUENCE] for s, value in zip(scores, outcomes, strict=True) if value == 1.0]
    return min((float(score.cpu().double().mean()) for score in right if len(score)), default=0.0)


def token_influence(states: GroupStates, by_length: bool) -> list[Tensor]:
    """s of each token of each response, ``[T_i]``; zeros in a group without both right and wrong responses.

    Raises:
        UserError: the model's hidden states are not to be had apart from its logits.
    """
    if states.project.weight is None:
        raise UserError(
            "algorithm thr, nthr: the output layer of this model is not read apart from its trunk, and they need the "
            "hidden states between the two; take a model with a plain output layer, or another method"
        )
    outcomes = [outcome(rollout) for rollout in states.rollouts]
    right = [i for i, value in enumerate(outcomes) if value == 1.0 and len(states.targets[i])]
    if not right or 0.0 not in outcomes:
        return [hidden.new_zeros(len(hidden)) for hidden in states.hidden]
    known = torch.cat(states.targets).unique()
    step = sum(
        step_on_output(*part, 1 / len(states.targets[i]) if by_length else 1.0)
        for i in right
        for part in _parts(states, i, known)
    )
    assert isinstance(step, Tensor)
    found = [[influence(*part, step) for part in _parts(states, i, known)] for i in range(len(states.rollouts))]
    return [torch.cat(parts) if parts else step.new_zeros(0) for parts in found]


def _parts(states: GroupStates, response: int, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(g ``[n, K]``, h ``[n, D]``) of a response's tokens, a few positions at a time."""
    hidden, targets = states.hidden[response], states.targets[response]
    for at in states.chunks(response):
        yield residuals(states.log_probs(hidden[at]), targets[at], known), hidden[at]
