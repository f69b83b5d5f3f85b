"""How much a trace helps the answer, compared with an empty thought and with another problem's trace.

    gain = mean over problems of [ mean_z log p(y|x,z)  −  log p(y|x,∅) ]        ∅: an empty thought
    read = mean over problems of [ mean_z log p(y|x,z)  −  log p(y|x,z′) ]       z′: a closed trace of another problem

in nats, log p floored as rewards are. Both start near or below 0 if the base is mostly wrong, because a wrong trace
misleads the answer. Source: ``answer_in_sight.md`` section 2.1. Neither detects an answer that no longer depends on the
trace (measured); :mod:`covrl.evaluation.information` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from covrl.prompts import Prompts
from covrl.records import Group, Output, Problem, Rollout, ScoredGroup, Scores
from covrl.rewards.likelihood import answer_reward
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

Read = Callable[[Sequence[Context], Sequence[Reading], Sequence[tuple[Problem, Rollout]]], list[Scores]]

ANSWER, DIRECT, OTHER = Output("answer", "prior"), Output("direct", "direct"), Output("answer", "other")

EQUAL = 1e-5
"""Nats by which an answer has to be likelier: less is rounding, as of a trace that is an empty thought itself."""


class Baseline(NamedTuple):
    """log p of a problem's answer, floored, after an empty thought and after another problem's trace (nats)."""

    empty: float
    other: float


def thought_baselines(
    read: Read, prompts: Prompts, groups: Sequence[Group | ScoredGroup], count: int | None = None
) -> dict[str, Baseline]:
    """The baselines of the first ``count`` groups' problems (None: of all), by id.

    A group is left out if no other problem of the groups has a closed trace.
    """
    closed = {g.problem.id: found for g in groups if (found := closed_thoughts(prompts, g))}
    pairs = []
    for place, group in enumerate(groups[:count]):
        others = (groups[(place + further) % len(groups)].problem.id for further in range(1, len(groups)))
        other = next((o for o in others if o in closed and o != group.problem.id), None)
        if other is not None:
            pairs.append((group.problem, closed[other][0]))
    if not pairs:
        return {}
    contexts = (Context("direct", prompts.direct_row), Context("other", prompts.prior_row))
    readings = (
        Reading("direct", ("direct",), log_prob, (DIRECT.name,)),
        Reading("answer", ("other",), log_prob, (OTHER.name,)),
    )
    scores = read(contexts, readings, pairs)
    return {
        problem.id: Baseline(_nats(s.values[DIRECT]), _nats(s.values[OTHER]))
        for (problem, _), s in zip(pairs, scores, strict=True)
    }


def closed_thoughts(prompts: Prompts, group: Group | ScoredGroup) -> list[Rollout]:
    """The group's closed traces, those of the prior prompt if there are any; of responses their closed thoughts."""
    thoughts = [r if r.valid else prompts.thought(r) for r in group.rollouts]
    found = [t for t in thoughts if t is not None]
    return [t for t in found if t.source == "prior"] or found


def thought_metrics(
    groups: Sequence[ScoredGroup], baselines: Mapping[str, Baseline], prefix: str = "thought/"
) -> dict[str, float]:
    """``gain`` and ``read`` over the groups that have a baseline and a scored answer; empty where there is none.

    ``helps_share`` is the share of their traces after which the answer is likelier than after an empty thought, and
    ``empty_log_prob`` the mean of log p(y|x,∅): a gain may fall because that rises, as it does under SFT.
    """
    gains, reads, helps, empty = [], [], [], []
    for group in groups:
        scored = [
            (r.source, s.values[ANSWER]) for r, s in zip(group.rollouts, group.scores, strict=True) if ANSWER in s
        ]
        own = [_nats(v) for source, v in scored if source == "prior"] or [_nats(v) for _, v in scored]
        if own and group.problem.id in baselines:
            baseline = baselines[group.problem.id]
            gains.append(fmean(own) - baseline.empty)
            reads.append(fmean(own) - baseline.other)
            helps += [value - baseline.empty > EQUAL for value in own]
            empty.append(baseline.empty)
    found = {"gain": gains, "read": reads, "helps_share": helps, "empty_log_prob": empty}
    return {f"{prefix}{name}": fmean(values) for name, values in found.items()} if gains else {}


def _nats(log_probs: Tensor) -> float:
    return answer_reward(log_probs, "sum")
