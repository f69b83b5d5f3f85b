"""What a stream's sum is divided by: counts over the admitted batch, known before the first training forward."""

from __future__ import annotations

from collections.abc import Sequence

from covrl.records import ScoredGroup


def trace_tokens(groups: Sequence[ScoredGroup]) -> float:
    """All trace tokens of the batch that can carry loss, those without weight included.

    Auxiliary traces, which never train, are not counted, nor are tokens that the policy did not write.
    """
    return float(sum(r.loss_tokens for group in groups for r in group.rollouts if r.request.trains))


def prior_traces(groups: Sequence[ScoredGroup]) -> float:
    """Traces drawn from the prior prompt, selected by a stream or not."""
    return float(sum(rollout.source == "prior" for group in groups for rollout in group.rollouts))


def traces(groups: Sequence[ScoredGroup]) -> float:
    """All traces of the batch that train, whether they have weight or not."""
    return float(sum(rollout.request.trains for group in groups for rollout in group.rollouts))


def groups_count(groups: Sequence[ScoredGroup]) -> float:
    """All groups of the batch."""
    return float(len(groups))
