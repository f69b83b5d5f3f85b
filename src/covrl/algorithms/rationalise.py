"""Posterior rationalisation: a control without RL.

Every variational claim needs it (ours; kin of STaR and TRICE).

Traces are drawn from the posterior prompt, which shows the answer, weighted by how well they lead to it, and the
*prior* is fitted to them by maximum likelihood. There is no advantage, no negative weight, no KL:

    z_i ~ q(·|x,y),   loss = mean over questions of  Σ_i w_i [ −Σ_t log p(z_it|x) − λ Σ_j log π(y_j|x,z_i) ]

    weights        w_i over the valid traces of the question, Σ_i w_i = 1     what the prior is fitted to (∝)
    likelihood     ∝ π(y|x,z_i)                                               q(z|x,y) π(y|x,z)
    uniform        equal                                                      q(z|x,y)
    importance     ∝ p(z_i|x) π(y|x,z_i) / q(z_i|x,y)                         p(z|x) π(y|x,z): the exact posterior
    sampled        equal where the answer sampled after z_i is y, else 0      q(z|x,y) π(y|x,z)

Each is one EM-like step. Where q already is the exact posterior ∝ pπ, "uniform" and "importance" aim at it, and
"likelihood" and "sampled" at p π², which is too sharp; where q is poor they are a needed filter. E_q of the importance
weight is p(y|x), whatever q, and the target is reached as the group grows: self-normalised weights of few traces are
biased. The answers of "sampled" come from the *prior* prompt: from the one that shows y they would nearly always be y.
What CoVRL gains over this control is not explained by good traces being copied into the prior.

Evidence: a control, not a published method. INFERRED: everything. Related: STaR fits the model to traces that are
right and rationalises failures with a hint (Zelikman et al., arXiv 2203.14465); TRICE fits it to samples of the true
posterior by a Markov chain (Phan et al., arXiv 2312.02179); PPS keeps the traces whose own sampled answer is y (arXiv
2512.20169, at third hand). VERIFIED by enumeration: the gradient is the stated loss's, and the targets are as stated.

A user's reward r tilts the weights, w_i ∝ … · exp(r_i); with "sampled" it takes the place of the verdict: a trace is
kept if its r is above 0. A batch of traces may serve for several updates: its weights are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from covrl.algorithms.base import Admission, LossTokens, Setup, Stream
from covrl.algorithms.group import outcome
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
from covrl.records import Credit, Output, Rollout, ScoredGroup, Scores
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

Q = Output("trace", "posterior")


class RationaliseConfig(Settings):
    """The control's switches."""

    weights: Literal["likelihood", "uniform", "importance", "sampled"] = Field(
        "likelihood",
        description="likelihood: w ∝ π(y|x,z) within the group; uniform on valid traces; importance: w ∝ pπ/q, the "
        "exact posterior's; sampled: equal on traces after which the prior prompt's sampled answer is right",
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
        if config.weights == "importance":
            self.contexts += (Context("posterior", self.prompts.posterior_row),)
            self.scoring += (Reading("trace", ("posterior",), log_prob, ("posterior",)),)
        self.verified = config.weights == "sampled"
        self.streams = (
            Stream("imitate", "trace", 1.0, groups_count),
            Stream("nll", "answer", config.nll_weight, groups_count),
        )

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        """Groups with a trace to imitate."""
        if self.config.weights == "sampled":
            return Admission([g for g in groups if any(map(led_to_the_answer, g.rollouts))])
        return with_a_valid_trace(groups)

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        found = [self.log_weight(r, s) for r, s in zip(group.rollouts, group.scores, strict=True)]
        shares = iter(softmax([value for value in found if value is not None]))
        rows = zip(found, group.rollouts, group.scores, strict=True)
        return [self._credit(r, s, None if value is None else next(shares)) for value, r, s in rows]

    def log_weight(self, rollout: Rollout, scores: Scores) -> float | None:
        """log w before it is normalised; None for a trace without weight."""
        if ANSWER not in scores:
            return None
        weights = self.config.weights
        if weights == "sampled":
            return 0.0 if led_to_the_answer(rollout) else None
        likely = 0.0 if weights == "uniform" else float(scores[ANSWER].sum())
        proposed = float((scores[P] - scores[Q]).sum()) if weights == "importance" else 0.0
        return likely + proposed + shaping(rollout)

    def _credit(self, rollout: Rollout, scores: Scores, share: float | None) -> Credit:
        """``reward`` is the answer's log-likelihood in nats; with "sampled" weights the outcome."""
        answer = scores.values.get(ANSWER)
        reward = None if answer is None else float(answer.sum())
        if self.config.weights == "sampled":
            reward = outcome(rollout)
        if answer is None or share is None:
            return Credit(reward=reward)
        weights = {"imitate": constant(scores[P], share), "nll": constant(answer, share)}
        return Credit(weights, reward=reward, advantage=share)

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        return {"imitate": -tokens.new[P], "nll": -tokens.new[ANSWER]}

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also the effective number of traces a question, 1/Σw²: 1 says that a single trace is copied."""
        metrics = likelihood_metrics(groups, credits, stream="imitate")
        shares = [[c.advantage or 0.0 for c in row] for row in credits]
        metrics["weights/effective_traces"] = mean([1 / sum(w * w for w in row) for row in shares])
        return metrics | leak_metrics(groups)


def led_to_the_answer(rollout: Rollout) -> bool:
    """Whether the answer that was sampled after a valid trace is right: by a user's reward above 0, or the verdict."""
    return rollout.valid and (outcome(rollout) or 0.0) > 0
