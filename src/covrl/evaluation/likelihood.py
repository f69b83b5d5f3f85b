"""log p(y|x,z): the log-likelihood of the reference answer after a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from covrl.distributed.world import World
from covrl.models.finite import broken
from covrl.models.model import LanguageModel
from covrl.prompts import Prompts
from covrl.records import Output, Problem, Rollout, Scores
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading, score

if TYPE_CHECKING:
    from torch import Tensor


class AnswerLogProb(NamedTuple):
    """``total`` nats over ``tokens`` tokens, the closing tag included."""

    total: float
    tokens: int


def answer_scores(
    model: LanguageModel,
    prompts: Prompts,
    pairs: Sequence[tuple[Problem, Rollout]],
    tokens_per_pass: int = 16384,
    logits_bytes: int = 64 << 20,
    world: World | None = None,
) -> list[Tensor | None]:
    """The log-probs ``[A]`` of the reference answer's tokens after each trace, under the prior prompt.

    The closing tag is among them; None where no answer follows. In a ``world`` of several ranks each reads a share.

    Raises:
        BrokenModelError: a score is NaN or +∞; −∞ is the log of a probability of zero.
    """
    context, reading = Context("prior", prompts.prior_row), Reading("answer", ("prior",), log_prob, ("prior",))

    def share(mine: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
        return score({"policy": model}, (context,), (reading,), mine, tokens_per_pass, logits_bytes)

    scores = (world or World()).shared(share, pairs)
    key = Output("answer", "prior")
    found = [s[key] if key in s else None for s in scores]  # noqa: SIM401 (no mapping)
    for (problem, _), values in zip(pairs, found, strict=True):
        if values is not None and bool((values.isnan() | values.isposinf()).any()):
            raise broken(model.model, f"log p of the answer to problem {problem.id} is not finite")
    return found


def answer_log_probs(
    model: LanguageModel,
    prompts: Prompts,
    pairs: Sequence[tuple[Problem, Rollout]],
    tokens_per_pass: int = 16384,
    logits_bytes: int = 64 << 20,
    world: World | None = None,
) -> list[AnswerLogProb | None]:
    """The sums of :func:`answer_scores`."""
    found = answer_scores(model, prompts, pairs, tokens_per_pass, logits_bytes, world)
    return [None if s is None else AnswerLogProb(float(s.sum()), len(s)) for s in found]
