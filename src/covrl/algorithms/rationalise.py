"""Posterior rationalisation: a control without RL.

Every variational claim needs it (ours; kin of STaR and TRICE).

Traces are drawn from the posterior prompt, which shows the answer, weighted by how well they lead to it, and the
*prior* is fitted to them by maximum likelihood. There is no advantage, no negative weight, no KL:

    z_i ~ q(·|x,y)      w_i ∝ π(y|x,z_i) over the valid traces of the question   (or uniform),  Σ_i w_i = 1
    loss = mean over questions of  Σ_i w_i [ −Σ_t log p(z_it|x) − λ Σ_j log π(y_j|x,z_i) ]

That is one EM-like step: w_i is the self-normalised weight of a proposal q whose own density is left out (exact
would be w ∝ p(z|x)π(y|x,z)/q(z|x,y), which is close to uniform where q is the true posterior). What CoVRL gains over
this control is not explained by good traces being copied into the prior.

Evidence: a control, not a published method. INFERRED: everything. Related: STaR fits the model to traces that are
right and rationalises failures with a hint (Zelikman et al., arXiv 2203.14465); TRICE fits it to samples of the true
posterior by a Markov chain (Phan et al., arXiv 2312.02179). VERIFIED by enumeration: the gradient is the stated loss's.

A user's reward r tilts the weights: w_i ∝ π(y|x,z_i)·exp(r_i), or exp(r_i) with ``weights = "uniform"``. A batch of
traces may serve for several updates: its weights are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from covrl.algorithms.base import Admission, LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import (
    ANSWER,
    OnePrompt,
    P,
    constant,
    leak_metrics,
    likelihood_metrics,
    mean,
    shaping,
    softmax,
    with_a_valid_trace,
)
from covrl.config import Settings
from covrl.objectives import groups_count
from covrl.records import Credit, ScoredGroup


class RationaliseConfig(Settings):
    """The control's switches."""

    weights: Literal["likelihood", "uniform"] = Field(
        "likelihood", description="likelihood: w ∝ exp Σ log π(y|x,z) within the group; uniform on valid traces"
    )
    nll_weight: float = Field(1.0, ge=0, description="λ on the answer's likelihood behind the trace")


class Rationalise(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "rationalise"
    paper: ClassVar[str] = "a control; kin of arXiv 2203.14465 and 2312.02179"
    evidence: ClassVar[str] = "ours; gradient verified by enumeration"
    Config: ClassVar[type[Settings]] = RationaliseConfig
    rollouts_wanted: int = 1
    source: ClassVar[Literal["prior", "posterior"]] = "posterior"

    def __init__(self, config: RationaliseConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.streams = (
            Stream("imitate", "trace", 1.0, groups_count),
            Stream("nll", "answer", config.nll_weight, groups_count),
        )

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        return with_a_valid_trace(groups)

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        likely = self.config.weights == "likelihood"
        found = [
            (float(s[ANSWER].sum()) if likely else 0.0) + shaping(r)
            for r, s in zip(group.rollouts, group.scores, strict=True)
            if ANSWER in s
        ]
        shares = iter(softmax(found))
        credits = []
        for scores in group.scores:
            if ANSWER not in scores:
                credits.append(Credit())
                continue
            share = next(shares)
            weights = {"imitate": constant(scores[P], share), "nll": constant(scores[ANSWER], share)}
            credits.append(Credit(weights, reward=float(scores[ANSWER].sum()), advantage=share))
        return credits

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        return {"imitate": -tokens.new[P], "nll": -tokens.new[ANSWER]}

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the effective number of traces a question, 1/Σw²: 1 says that a single trace is copied."""
        metrics = likelihood_metrics(groups, credits, stream="imitate")
        shares = [[c.advantage or 0.0 for c in row] for row in credits]
        metrics["weights/effective_traces"] = mean([1 / sum(w * w for w in row) for row in shares])
        return metrics | leak_metrics(groups)
