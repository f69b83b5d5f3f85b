"""The arms of benchmarks/claim.py: settings by name, and the one that is no method of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from covrl.algorithms.base import LossTokens, Setup, Stream
from covrl.algorithms.one_prompt import ON_POLICY, OnePrompt
from covrl.config import Settings
from covrl.generation.base import Draw
from covrl.objectives import traces
from covrl.records import Credit, Output, Problem, Request, Rollout, Row, ScoredGroup, Span
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

WHOLE = Output("whole", "answer_only")


class AnswerSFTConfig(Settings):
    """No switches."""


class AnswerSFT(OnePrompt):
    """Fits a closed empty thought and the answer to the question's prompt: no reasoning, nothing is sampled.

    loss = −mean_j log p(c, y_j | x), c the text that closes a thought and opens the answer.
    """

    name: ClassVar[str] = "answer-sft"
    paper: ClassVar[str] = "a control"
    evidence: ClassVar[str] = "ours"
    Config: ClassVar[type[Settings]] = AnswerSFTConfig
    rollouts_wanted: int = 1
    one_update: str | None = ON_POLICY

    def __init__(self, config: AnswerSFTConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.contexts = (Context("answer_only", self._row),)
        self.scoring = self.training = (Reading("whole", ("answer_only",), log_prob, (WHOLE.name,)),)
        self.streams = (Stream("nll", "whole", 1.0, traces),)

    def _row(self, problem: Problem, rollout: Rollout) -> Row:
        """Prompt, closed thought and answer; span ``whole`` is all after the prompt."""
        del rollout
        prompt = self.prompts.prior(problem)
        after = self.prompts.close_ids + self.prompts.answer_prefix_ids + self.prompts.answer(problem)
        return Row(prompt + after, {"whole": Span(len(prompt), len(prompt) + len(after))}, len(prompt))

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        """One rollout a problem whose thought is given, closed and empty."""
        del draw
        prompt = self.prompts.prior(problem)
        return [] if history else [Request(problem.id, 0, prompt, "prior", prefix_ids=self.prompts.close_ids)]

    def credit_group(self, group: ScoredGroup) -> list[Credit]:
        found = [s[WHOLE] for s in group.scores]
        return [Credit({"nll": torch.full_like(f, 1 / len(f))}, reward=float(f.sum())) for f in found]

    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        return {"nll": -tokens.new[WHOLE]}

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        del groups, credits
        return {}


class Arm(NamedTuple):
    """``number`` is the arm's in the specification (None: beyond it), ``settings`` what makes a run one of it."""

    number: int | None
    about: str
    settings: tuple[str, ...]


ARMS: Mapping[str, Arm] = {
    "covrl": Arm(7, "CoVRL, template check", ("algorithm.name=covrl",)),
    "covrl-shuffled": Arm(8, "CoVRL, another problem's hint", ("algorithm.name=covrl", "problems.shuffle_hints=true")),
    "jepo": Arm(4, "JEPO", ("algorithm.name=jepo",)),
    "rationalise": Arm(6, "imitation of hinted traces, weights π(y|x,z)", ("algorithm.name=rationalise",)),
    "rationalise-uniform": Arm(
        6, "the same, equal weights", ("algorithm.name=rationalise", "algorithm.weights=uniform")
    ),
    "grpo": Arm(3, "GRPO with the verifier", ("algorithm.name=grpo",)),
    "answer-sft": Arm(1, "the answer without a thought", ("algorithm.name=claim_arms:AnswerSFT",)),
    "rlpr": Arm(None, "RLPR", ("algorithm.name=rlpr",)),
    "verifree": Arm(None, "VeriFree", ("algorithm.name=verifree",)),
}
"""In the order in which they are run: what decides most comes first."""
