"""The switch ``contrast`` of CoVRL and the group family: credit moves to tokens that depend on what the hint says.

:mod:`covrl.objectives.contrast` has the equation. The foil is another problem's answer of the same form and about the
same length (:mod:`covrl.problems.foils`), shown in the same prompt to the letter. Each trace is read once more.

Evidence: RLCSD (arXiv 2606.11709), CONFIRMED in its code: the residual, its temperature and threshold, the rule for
signs. INFERRED, ours: λ in units of the group's deviation of A, so that it means the same for rewards in nats; a single
foil, another problem's answer where theirs are wrong siblings; the policy itself as teacher where theirs is a copy of
every tenth step; one sum over tokens where theirs has two, each with a mean of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from covrl.config import Settings
from covrl.objectives import contrast_residual, contrasted
from covrl.precision import wide
from covrl.prompts import Prompts
from covrl.records import Output, ScoredGroup, Scores
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

HINTED, FOILED = Output("trace", "posterior"), Output("trace", "foil")
HINTED_READING = Reading("trace", ("posterior",), log_prob, (HINTED.name,))
FOIL_READING = Reading("trace", ("foil",), log_prob, (FOILED.name,))


class ContrastSettings(Settings):
    """The switch and its two numbers."""

    contrast: float = Field(
        0.0,
        ge=0,
        description="λ: weight of a right hint against a wrong one in a token's advantage, in deviations of the "
        "group's advantages; 0 is off, RLCSD's code has 0.5. Costs a forward of every trace",
    )
    contrast_temperature: float = Field(
        0.02, gt=0, description="τ in nats: below it a difference of the two hints counts in part. CONFIRMED: 0.02"
    )
    contrast_threshold: float = Field(
        0.02, ge=0, description="δ: tokens whose residual is not above it keep their advantage. CONFIRMED: 0.02"
    )

    def check_contrast(self) -> None:
        """Raise ValueError for a number of the contrast where there is none."""
        for name in ("contrast_temperature", "contrast_threshold"):
            self.refuse_idle(name, self.contrast == 0, "contrast = 0")


def foil_context(prompts: Prompts) -> Context:
    """The policy reads a trace under the posterior prompt with the wrong answer in it."""
    return Context("foil", prompts.foil_row)


def spread(advantages: Sequence[float]) -> float:
    """The sample deviation of a group's advantages, the unit of λ; 0 for a single one."""
    return statistics.stdev(advantages) if len(advantages) > 1 else 0.0


def contrast_of(config: ContrastSettings, scores: Scores, advantage: float, scale: float) -> Tensor:
    """A′ of each token of one trace, ``[T]``."""
    residual = contrast_residual(scores[HINTED], scores[FOILED], config.contrast, config.contrast_temperature)
    return contrasted(advantage, residual, config.contrast_threshold, scale)


def contrast_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Mean of log q(z_t|y) − log q(z_t|y′) in nats a token, by what the traces were drawn from.

    Near 0 the hint's content moves nothing, and what it changes is style.
    """
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            if FOILED in scores:
                found.setdefault(rollout.source, []).append(scores[HINTED] - scores[FOILED])
    return {f"contrast/{source}": float(wide(torch.cat(parts)).mean()) for source, parts in found.items()}
