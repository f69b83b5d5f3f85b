"""Metrics that every method shares: rewards, lengths and endings by source."""

from __future__ import annotations

from collections.abc import Sequence

from covrl.records import Credit, Group, Rollout, ScoredGroup


def rollout_metrics(groups: Sequence[Group] | Sequence[ScoredGroup]) -> dict[str, float]:
    """Over all sampled traces: length by source (tokens), shares that were truncated or have no closing tag."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = {
        "trace/truncated_share": _mean([r.finish == "length" for r in rollouts]),
        "trace/invalid_share": _mean([not r.valid for r in rollouts]),
    }
    for source, mine in _by_source(rollouts).items():
        metrics[f"length/{source}"] = _mean([len(r.trace_ids) for r in mine])
        metrics[f"trace/invalid_share_{source}"] = _mean([not r.valid for r in mine])
    return metrics


def reward_metrics(groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    """Mean reward by source over admitted traces, and posterior minus prior where both exist."""
    by_source: dict[str, list[float]] = {}
    for group, row in zip(groups, credits, strict=True):
        for rollout, credit in zip(group.rollouts, row, strict=True):
            if credit.reward is not None:
                by_source.setdefault(rollout.source, []).append(credit.reward)
    metrics = {f"reward/{source}": _mean(rewards) for source, rewards in by_source.items()}
    if {"prior", "posterior"} <= set(by_source):
        metrics["reward/gap"] = metrics["reward/posterior"] - metrics["reward/prior"]
    return metrics


def _by_source(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    found: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.source, []).append(rollout)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
