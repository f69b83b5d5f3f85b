"""What to watch while CoVRL trains, and the names of its failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from covrl.objectives import composite_log_prob
from covrl.precision import wide
from covrl.records import Credit, Rollout, ScoredGroup, Scores
from covrl.rewards.leak import leak_rates
from covrl.rewards.likelihood import FLOOR_NATS, is_floored

FLOORED_WARNING = 0.05


def covrl_metrics(
    groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]], ratio_cap: float, floor: float
) -> dict[str, float]:
    """Metrics of one step over all sampled groups: KL, ratios, floored rewards, leak, selected answers.

    ``ratio/*`` is m_old/s_old before the cap, per token; ``leak/excess`` the share of posterior traces that state
    their answer early minus the share that state another problem's.
    """
    traces = [pair for group in groups for pair in zip(group.rollouts, group.scores, strict=True)]
    kl = _cat([s["trace", "kl"] for r, s in traces if r.finish != "length"])
    ratio = _cat([_source_ratio(r, s) for r, s in traces])
    answers = [s["answer", "prior"] for _, s in traces if ("answer", "prior") in s]
    counted = sum(r.finish != "length" for r, _ in traces)
    leaked, shuffled = leak_rates(
        [(r.text, g.problem.answer) for g in groups for r in g.rollouts if r.source == "posterior"]
    )
    prior = [
        c
        for g, row in zip(groups, credits, strict=True)
        for r, c in zip(g.rollouts, row, strict=True)
        if r.source == "prior"
    ]
    return {
        "kl/nats_per_trace": float(kl.sum()) / max(counted, 1),
        "kl/nats_per_token": _mean(kl),
        "ratio/source_mean": _mean(ratio),
        "ratio/source_max": float(ratio.max()) if len(ratio) else float("nan"),
        "ratio/capped_share": _mean(wide(ratio > ratio_cap)),
        "reward/floored_share": _mean(torch.tensor([float(is_floored(a, floor)) for a in answers])),
        "leak/posterior_rate": leaked,
        "leak/shuffled_rate": shuffled,
        "leak/excess": leaked - shuffled,
        "nll/selected_share": _mean(torch.tensor([float("nll" in c.weights) for c in prior])),
        "entropy/prior": _mean(_cat([s["trace", "prior_entropy"] for r, s in traces if r.source == "prior"])),
        "entropy/posterior": _mean(_cat([s["trace", "posterior_entropy"] for r, s in traces if r.source != "prior"])),
    }


def covrl_warnings(metrics: Mapping[str, float], floor: float) -> list[str]:
    """Named troubles of a step; thresholds from trials (spec section 10), INFERRED.

    A floor that was raised is there to be met, so it causes no warning.
    """
    found = []
    if floor <= FLOOR_NATS and metrics.get("reward/floored_share", 0.0) > FLOORED_WARNING:
        found.append(
            f"floored rewards: {metrics['reward/floored_share']:.0%} of the answers are at the floor, where traces "
            "cannot be told apart; try reward = 'mean' with beta divided by the answer's length"
        )
    if metrics.get("leak/excess", 0.0) > 0.5:
        found.append(
            f"leak: {metrics['leak/posterior_rate']:.0%} of the posterior traces state the answer in their first "
            f"quarter ({metrics['leak/shuffled_rate']:.0%} state another problem's); raise beta or reword the hint"
        )
    if metrics.get("trace/invalid_share", 0.0) > 0.5:
        found.append(
            f"invalid traces: {metrics['trace/invalid_share']:.0%} do not end with the closing tag; "
            "the base does not know the format, or generation.max_trace_tokens is too small"
        )
    return found


def _source_ratio(rollout: Rollout, scores: Scores) -> Tensor:
    source = scores["trace", "prior" if rollout.source == "prior" else "posterior"]
    return (composite_log_prob(scores["trace", "prior"], scores["trace", "posterior"]) - source).exp()


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)).cpu().double() if parts else torch.zeros(0)


def _mean(values: Tensor) -> float:
    return float(wide(values).mean()) if len(values) else float("nan")
