"""The signal that a method's first step would have: how far its rewards agree with the rightness of the traces.

With the rewards R_i of one group and r_i = 1 where trace i is right, R̄ and r̄ their means in the group,

    signal = mean over groups of [ mean_i (R_i − R̄)(r_i − r̄) ]  /  √( mean over groups of [ mean_i (R_i − R̄)² ] )

To first order a policy-gradient step whose advantages have deviation 1 raises the share of right traces in proportion
to it. Its most is √(mean within-group variance of r), which a verifier of traces reaches, at most 0.5; 0 is a group in
which no trace is right, all are, or the reward does not know. It says nothing of the end of training: on the digits
task all methods end at the same accuracy.

Right is a trace by its own text, as :mod:`covrl.evaluation.calibration` marks it. Traces that did not close, and those
without a verdict, are left out. Source: ours (INFERRED).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from covrl.algorithms.nrt import WEIGHTED, NRTConfig, reward_and_weights
from covrl.evaluation.bench import ANSWER, Bench, Thoughts
from covrl.evaluation.template_trial import TemplateTrial
from covrl.records import Verdict
from covrl.rewards.likelihood import Form, answer_reward
from covrl.statistics import Interval, quantile, wilson

RESAMPLES = 500

ONE_PROMPT = ("jepo", "rlpr", "verifree", "nrt", "grpo")
"""Methods whose traces all come from the prior prompt, with rewards that differ."""

FORMS: Mapping[str, Form] = {"rlpr": "mean_prob", "verifree": "prob"}
"""The form of the reward of methods that have their own."""

Group = Sequence[tuple[float, bool]]
"""Reward and rightness of each trace of one group."""


@dataclass(frozen=True, slots=True)
class Signal:
    """``value`` and its 95 % interval over problems; ``mixed``: share of groups with a right and a wrong trace."""

    value: float
    interval: Interval
    mixed: float
    groups: int

    def record(self) -> dict[str, Any]:
        """As plain data."""
        ends = wilson(self.mixed, self.groups)
        return {
            "signal": {"value": self.value, "interval": list(self.interval)},
            "mixed": {"value": self.mixed, "interval": list(ends)},
            "groups": self.groups,
        }


def signal(groups: Sequence[Group], seed: int = 0) -> Signal | None:
    """Of groups of at least two traces; None where there is none.

    Example:
        >>> signal([[(1.0, True), (0.0, False)], [(0.0, False), (0.0, False)]]).value  # as sure as a verifier
        0.353...
    """
    rows = [group for group in groups if len(group) > 1]
    if not rows:
        return None
    moments = [_moments(group) for group in rows]
    rng = random.Random(f"signal/{seed}")
    drawn = [_ratio(rng.choices(moments, k=len(moments))) for _ in range(RESAMPLES)]
    mixed = fmean(len({right for _, right in group}) > 1 for group in rows)
    return Signal(_ratio(moments), Interval(quantile(drawn, 0.025), quantile(drawn, 0.975)), mixed, len(rows))


def _moments(group: Group) -> tuple[float, float]:
    reward, right = fmean(r for r, _ in group), fmean(m for _, m in group)
    return fmean((r - reward) * (m - right) for r, m in group), fmean((r - reward) ** 2 for r, _ in group)


def _ratio(moments: Sequence[tuple[float, float]]) -> float:
    spread = fmean(variance for _, variance in moments)
    return fmean(covariance for covariance, _ in moments) / math.sqrt(spread) if spread > 0 else 0.0


def method_signals(bench: Bench, thoughts: Thoughts, trial: TemplateTrial | None) -> dict[str, Signal | None]:
    """Of each method's first step, with groups of ``Bench.traces`` traces.

    CoVRL's groups are half of prior traces and half of the posterior traces of ``trial``; without one it is left out.
    """
    found = {method: signal(_prior_groups(bench, thoughts, method), bench.seed) for method in ONE_PROMPT}
    return found if trial is None else {"covrl": signal(_both(bench, thoughts, trial), bench.seed)} | found


def _prior_groups(bench: Bench, thoughts: Thoughts, method: str) -> list[Group]:
    groups = []
    for i, empty in enumerate(thoughts.empty):
        rows = range(i * bench.traces, (i + 1) * bench.traces)
        kept = [k for k in rows if ANSWER in thoughts.scores[k] and thoughts.own[k] != "unknown"]
        if method == "grpo":
            rewards = [float(thoughts.graded[k].verdict == "right") for k in kept]
        else:
            rewards = [method_reward(method, thoughts.scores[k][ANSWER], empty) for k in kept]
        groups.append([(reward, thoughts.own[k] == "right") for reward, k in zip(rewards, kept, strict=True)])
    return groups


def method_reward(method: str, answer: Tensor, empty: Tensor) -> float:
    """The default reward of a method without a verifier, from log-probs ``[A]`` after a trace and after none."""
    if method == "nrt":
        config = NRTConfig()
        weigh = WEIGHTED.get(config.form)
        importance = weigh(empty.exp().clamp_min(config.baseline_floor)) if weigh else None
        return reward_and_weights(answer, config.form, importance)[0]
    return answer_reward(answer, FORMS.get(method, "sum"))


def _both(bench: Bench, thoughts: Thoughts, trial: TemplateTrial) -> list[Group]:
    """Half a group from each prompt."""
    half, groups = max(bench.traces // 2, 1), []
    for i, (group, own) in enumerate(zip(trial.groups, trial.own, strict=True)):
        first = i * bench.traces
        rows = [(thoughts.scores[k], thoughts.own[k]) for k in range(first, first + half)]
        rows += list(zip(group.scores[1 : half + 1], own[:half], strict=True))
        groups.append([(answer_reward(s[ANSWER], "sum"), _right(v)) for s, v in rows if ANSWER in s and v != "unknown"])
    return groups


def _right(verdict: Verdict) -> bool:
    return verdict == "right"
