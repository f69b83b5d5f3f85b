"""log p(y|x,z): how likely a model finds the reference answer behind a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from covrl.prompts import Prompts
from covrl.records import Output, Problem, Rollout
from covrl.scoring.head import log_prob
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import Context, Reading, score


class AnswerLogProb(NamedTuple):
    """``total`` nats over ``tokens`` tokens, the closing tag included."""

    total: float
    tokens: int


def answer_log_probs(
    model: LanguageModel,
    prompts: Prompts,
    pairs: Sequence[tuple[Problem, Rollout]],
    tokens_per_pass: int = 16384,
    logits_bytes: int = 64 << 20,
) -> list[AnswerLogProb | None]:
    """The reference answer's log-prob behind each trace, read under the prior prompt; None where no answer follows."""
    context, reading = Context("prior", prompts.prior_row), Reading("answer", ("prior",), log_prob, ("prior",))
    scores = score({"policy": model}, (context,), (reading,), pairs, tokens_per_pass, logits_bytes)
    key = Output("answer", "prior")
    return [AnswerLogProb(float(s[key].sum()), len(s[key])) if key in s else None for s in scores]
