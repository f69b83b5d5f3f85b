"""How much the answer depends on the trace before it: entropies of the answer's first token.

With p_i = p(· | x, z_i), the distribution of the answer's first token after trace i of one question,

    entropy      mean_i H(p_i)                                     nats: how uncertain the answer is, given the trace
    information  H(mean_i p_i) − mean_i H(p_i)                     nats: how much depends on which trace it is

The information is the mutual information of the first token and of the index of the trace before it (the
Jensen-Shannon divergence of the p_i): 0 if every trace is followed by the same distribution, at most log of the
number of traces. A model that hedges has a high entropy and an information near 0. One that reads its traces and knows
the answer after each of them has an entropy near 0, and an information that falls only as its traces come to agree.

Source: ours, after a trial on a real model in which log p(y|x,z) rose by 12 nats while the information fell from 1.08
to 0.016 (CoVRL) and 0.003 (JEPO): likelihoods, and their gain over an empty thought, did not show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from covrl.precision import wide
from covrl.records import Output, ScoredGroup
from covrl.scoring.head import distribution
from covrl.scoring.pack import Context, Reading

FIRST_BYTES = 64 << 20
"""The most memory for distributions that a step holds, beyond those of its first group."""

FIRST = Output("first", "prior")
"""The distribution of the answer's first token, ``[1, V]``, where it was read."""


class Information(NamedTuple):
    """Both figures of one question, in nats; see the module's docstring."""

    information: float
    entropy: float


def first_reading(contexts: Sequence[Context], readings: Sequence[Reading]) -> tuple[Reading, ...]:
    """What reads :data:`FIRST` along with ``readings``: one where they score the answer by the policy, else none."""
    model_of = {context.name: context.model for context in contexts}
    answers = (r.contexts for r in readings if r.span == "answer" and len(r.contexts) == 1)
    mine = [found for found in answers if model_of[found[0]] == "policy"]
    return (Reading("first", mine[0], distribution, (FIRST.name,)),) if mine else ()


def groups_watched(vocabulary: int, rollouts: int) -> int:
    """Groups of a step whose distributions are kept, the first ones: as many as :data:`FIRST_BYTES` hold, at least one.

    Example:
        >>> groups_watched(vocabulary=151_936, rollouts=8)
        13
    """
    return max(FIRST_BYTES // (4 * vocabulary * max(rollouts, 1)), 1)


def entropy(probabilities: Tensor) -> Tensor:
    """H of distributions ``[..., V]`` in nats, ``[...]``; a probability of 0 adds nothing."""
    return torch.special.entr(probabilities).sum(dim=-1)


def information(probabilities: Tensor) -> Information:
    """Of the distributions ``[n, V]`` of one question's first answer token, one for each of n traces.

    Example:
        >>> information(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # the trace determines the answer: log 2
        Information(information=0.693..., entropy=0.0)
        >>> information(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))  # the trace has no effect
        Information(information=0.0, entropy=0.693...)
    """
    each = wide(probabilities)
    inside = float(entropy(each).mean())
    return Information(max(float(entropy(each.mean(dim=0))) - inside, 0.0), inside)


def information_metrics(groups: Sequence[ScoredGroup], prefix: str = "answer/") -> dict[str, float]:
    """``information`` and ``entropy``, means over the groups with at least two traces that an answer follows.

    Empty where there is no such group, or the method does not read the answer.
    """
    found = []
    for group in groups:
        each = [s.values[FIRST] for s in group.scores if FIRST in s.values]
        if len(each) > 1:
            found.append(information(torch.cat(each)))
    if not found:
        return {}
    return {
        f"{prefix}information": fmean(one.information for one in found),
        f"{prefix}entropy": fmean(one.entropy for one in found),
    }
