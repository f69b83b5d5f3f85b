"""Metrics that every method shares: rewards, lengths and endings by source."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from covrl.records import SOUND, Credit, Group, Rollout, ScoredGroup, TraceLabel
from covrl.rewards.named import reward_metrics_by_name
from covrl.rewards.steps import step_metrics

FEWEST_SELECTED = 8
"""Traces whose answer is trained in a step; of fewer, a share says nothing."""


def rollout_metrics(groups: Sequence[Group] | Sequence[ScoredGroup]) -> dict[str, float]:
    """Over all sampled traces: length by source (tokens), shares that were truncated or have no closing tag, and the
    mean of each of the user's reward functions, and what the steps' scores say.

    Rollouts that no model reads (``Request.scored``) are in none of them: a continuation is no trace of its own.
    """
    rollouts = _read(groups)
    metrics = {
        "trace/truncated_share": _mean([r.finish == "length" for r in rollouts]),
        "trace/invalid_share": _mean([not r.valid for r in rollouts]),
    }
    for source, mine in _by_source(rollouts).items():
        metrics[f"length/{source}"] = _mean([len(r.trace_ids) for r in mine])
        metrics[f"trace/invalid_{source}_share"] = _mean([not r.valid for r in mine])
    return metrics | reward_metrics_by_name(rollouts) | step_metrics(rollouts)


def _read(groups: Sequence[Group] | Sequence[ScoredGroup]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts if rollout.request.scored]


def verdict_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Shares of right and unknown among verified responses, and of groups in which all are right or none is."""
    marked = [[r.correct for r in g.rollouts if r.correct is not None and r.request.scored] for g in groups]
    flat = [verdict for row in marked for verdict in row]
    if not flat:
        return {}
    return {
        "verdict/right_share": _mean([v == "right" for v in flat]),
        "verdict/unknown_share": _mean([v == "unknown" for v in flat]),
        "verdict/all_right_groups": _mean([all(v == "right" for v in row) for row in marked]),
        "verdict/none_right_groups": _mean([all(v != "right" for v in row) for row in marked]),
    }


def verdict_warnings(metrics: Mapping[str, float]) -> list[str]:
    """Above one unknown in ten a training signal is made of what the verifier happens to read (threshold INFERRED)."""
    unknown = metrics.get("verdict/unknown_share", 0.0)
    if unknown <= 0.1:
        return []
    return [
        f"unknown verdicts: {unknown:.0%} of the responses cannot be graded and train nothing; "
        "look at what they answer, and at rewards.verifier"
    ]


def token_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Tokens sampled, and tokens of rows that were read for scores, in a step."""
    sampled = sum(len(r.trace_ids) for g in groups for r in g.rollouts)
    return {"tokens/generated": float(sampled), "tokens/scored": float(sum(s.tokens for g in groups for s in g.scores))}


def reward_metrics(groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
    """Mean reward by source over admitted traces, and posterior minus prior where both exist.

    ``reward/group_std`` is the mean over groups of the deviation within a group: without any, nothing is learnt.
    """
    by_source: dict[str, list[float]] = {}
    for group, row in zip(groups, credits, strict=True):
        for rollout, credit in zip(group.rollouts, row, strict=True):
            if credit.reward is not None:
                by_source.setdefault(rollout.source, []).append(credit.reward)
    metrics = {f"reward/{source}": _mean(rewards) for source, rewards in by_source.items()}
    if {"prior", "posterior"} <= set(by_source):
        metrics["reward/gap"] = metrics["reward/posterior"] - metrics["reward/prior"]
    known = [[c.reward for c in row if c.reward is not None] for row in credits]
    if any(known):
        metrics["reward/group_std"] = _mean([statistics.pstdev(row) for row in known if row])
    return metrics


def origin_metrics(
    sampled: Sequence[Group],
    kept: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
) -> dict[str, float]:
    """For each source of data, where there are several: its problems in the step, mean reward, and how traces ended.

    The reward is that of prior traces of admitted groups.
    """
    metrics: dict[str, float] = {}
    for origin in dict.fromkeys(group.problem.origin for group in sampled):
        if not origin:
            continue
        mine = [group for group in sampled if group.problem.origin == origin]
        rollouts = _read(mine)
        found = {"problems": float(len(mine)), "invalid_share": _mean([not r.valid for r in rollouts])}
        marks = [r.correct for r in rollouts if r.correct is not None]
        if marks:
            found["right_share"] = _mean([mark == "right" for mark in marks])
        rewards = [
            credit.reward
            for group, row in zip(kept, credits, strict=True)
            for rollout, credit in zip(group.rollouts, row, strict=True)
            if group.problem.origin == origin and rollout.source == "prior" and credit.reward is not None
        ]
        if rewards:
            found["reward"] = _mean(rewards)
        metrics |= {f"data/{origin}/{name}": value for name, value in found.items()}
    return metrics


def label_metrics(
    groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]], label: TraceLabel, close: str
) -> dict[str, float]:
    """Where a task can tell what traces do: the share of each label by source, and two shares that precede a failure.

    ``leak/unsound_ends_in_hint_share``: posterior traces that end in what the prompt showed and are not sound.
    ``nll/selected_unsound_share``: of the traces whose answer is trained, those that are not sound.
    """
    rows = [
        (rollout, group.problem, credit, label(group.problem, thought_only(rollout, close)))
        for group, row in zip(groups, credits, strict=True)
        for rollout, credit in zip(group.rollouts, row, strict=True)
    ]
    metrics: dict[str, float] = {}
    for name in sorted({found for *_, found in rows}):
        for source in sorted({rollout.source for rollout, *_ in rows}):
            mine = [found == name for rollout, _, _, found in rows if rollout.source == source]
            metrics[f"label/{source}_{name.replace(' ', '_')}_share"] = _mean(mine)
    posterior = [(r, p, found) for r, p, _, found in rows if r.source == "posterior"]
    if posterior:
        empty = [f != SOUND and r.text.removesuffix(close).strip().endswith(p.shown.strip()) for r, p, f in posterior]
        metrics["leak/unsound_ends_in_hint_share"] = _mean(empty)
    trained = [found != SOUND for _, _, credit, found in rows if "nll" in credit.weights]
    if len(trained) >= FEWEST_SELECTED:
        metrics["nll/selected_unsound_share"] = _mean(trained)
    return metrics


def thought_only(rollout: Rollout, close: str) -> Rollout:
    """The rollout with the text of its thought alone, as labels read it; a response's answer is cut off."""
    thought, closed, _ = rollout.text.partition(close)
    return replace(rollout, text=thought + closed)


def label_warnings(metrics: Mapping[str, float]) -> list[str]:
    """Named failures that the labels show before the reward does; thresholds INFERRED from trials (spec section 10)."""
    found = []
    if metrics.get("label/prior_false_step_share", 0.0) > 0.25:
        found.append(
            f"false steps: {metrics['label/prior_false_step_share']:.0%} of the prior traces hold one; usually the "
            "first sign that the learning rate is too high"
        )
    if metrics.get("leak/unsound_ends_in_hint_share", 0.0) > 0.2:
        found.append(
            f"empty traces: {metrics['leak/unsound_ends_in_hint_share']:.0%} of the posterior traces end in the shown "
            "answer without sound reasoning; raise beta, or supervise the base longer"
        )
    if metrics.get("nll/selected_unsound_share", 0.0) > 0.5:
        found.append(
            f"unsound lessons: {metrics['nll/selected_unsound_share']:.0%} of the traces whose answer is trained do "
            "not lead to it, so the answer learns to ignore the trace"
        )
    return found


def _by_source(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    found: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.source, []).append(rollout)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
