"""VeriFree: reinforce reasoning without a verifier (Zhou et al., arXiv 2505.21493).

The reward of a trace is the probability of the reference answer behind it, so its expectation is a plain function of
the weights, whose gradient has a score part and an answer part:

    J = E_{z~π(·|x)}[ R ],   R = π(y|x,z) = exp Σ_j log π(y_j|x,z,y_<j);   R = 0 for a trace that does not close
    ∇J = E[ R ∇log π(z|x) ]  +  E[ R ∇log π(y|x,z) ]

    advantage  A = n/(n−1)·(R − mean_group(R))                                  (leave-one-out, unbiased)
    loss       −A Σ_t log π(z_t)  −  R Σ_j log π(y_j),  summed over tokens, divided by the number of traces

Evidence. CONFIRMED in the authors' code (``verifree.py`` with the settings of ``run.sh``): R, zero for traces that
are cut or have no answer tag, leave-one-out with 8 traces, R and not A as the answer's weight, sums without a length
norm, no ratio, no clip, KL 0, rate 1e-6 constant, 16 questions a batch, temperature 1, 3,000 tokens. VERIFIED by
enumeration: the expected gradient is exactly ∇J, factor 1.

What the authors' code does differently: the trace is cut in front of ``<answer`` and encoded again as text, so a
trace's ids can change between sampling and training (ours are the sampled ids); the answer stands in ``\\boxed{}``; a
response whose own answer is cut counts as truncated, ours samples no answer; with ``ignore_no_eos`` cut traces are
masked out of the loss, though they stay in the mean. Its flags also offer log π(y) as the reward and A or 1 as the
answer's weight: for log π(y) see ``jepo``.

A user's reward function adds to R in the advantage, for traces that do not close too; the answer's weight stays π(y).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import ANSWER, ON_POLICY, OnePrompt, P, answer_probability, constant, shaping
from covrl.config import Settings
from covrl.objectives import leave_one_out, traces
from covrl.records import Credit, ScoredGroup


class VeriFreeConfig(Settings):
    """VeriFree has one switch."""

    nll_weight: float = Field(
        1.0, ge=0, description="factor on the answer's term R ∇log π(y). CONFIRMED: 1, which makes the gradient exact"
    )


class VeriFree(OnePrompt):
    """See the module's docstring."""

    name: ClassVar[str] = "verifree"
    paper: ClassVar[str] = "arXiv 2505.21493"
    evidence: ClassVar[str] = "confirmed in the authors' code; gradient verified by enumeration"
    Config: ClassVar[type[Settings]] = VeriFreeConfig
    reward_in: ClassVar[Literal["probability", "log", "order"]] = "probability"
    one_update: str | None = ON_POLICY

    def __init__(self, config: VeriFreeConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.streams = (
            Stream("policy", "trace", 1.0, traces),
            Stream("nll", "answer", config.nll_weight, traces),
        )

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        probabilities = [answer_probability(scores) for scores in group.scores]
        rewards = [p + shaping(r) for p, r in zip(probabilities, group.rollouts, strict=True)]
        credits = []
        for s, p, reward, a in zip(group.scores, probabilities, rewards, leave_one_out(rewards), strict=True):
            weights = {"policy": constant(s[P], a)}
            if ANSWER in s and self.config.nll_weight:
                weights["nll"] = constant(s[ANSWER], p)
            credits.append(Credit(weights, reward=reward, advantage=a))
        return credits

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        return {"policy": -tokens.new[P], "nll": -tokens.new[ANSWER]}
