"""RECAP: the weights of several rewards follow their histories (arXiv 2510.21978).

    r      Σ_k λ_k r_k  of the named reward functions, then GRPO
    c_k    older/newer half of the window of r_k's means: above 1 it is getting worse
    i_k    deviation/mean of the window: how much it moves
    λ      K·[ α softmax(c/T) + (1 − α) softmax(i/T) ]        form = "paper": K·softmax((c + σ/(older + newer))/T)

A reward that is getting worse gets the *largest* weight. Weights act before the group's normalisation, so a single
reward's cancels: it has no effect, which a step warns of (VERIFIED).

Evidence (wave2 B2): CONFIRMED-code: the window of 20, halves of what is there (one value: c = 1), the direction for
rewards, α = 0.5, T = 5, population deviation, K weights in all, std + 1e-4 below. The catalogue's earlier note has the
direction of losses. CONFIRMED-3rd: ``form = "paper"``, one softmax of a sum. INFERRED: ratios are at most 10, and 1
where both halves are 0 (that code divides by 1e-15); rewards below 0 are refused, as ratios of them mean nothing; the
window is of a step's means over all its responses. Not built: the supervised branch on replayed data, whose losses it
weighs with the same history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from covrl.algorithms.base import Setup
from covrl.algorithms.group import Aggregation, GroupConfig, GroupMethod, Marked
from covrl.algorithms.one_prompt import softmax
from covrl.config import Settings
from covrl.errors import UserError
from covrl.records import Credit, Rollout, ScoredGroup

LARGEST_RATIO = 10.0
WEIGHT = "recap/weight_"


class RECAPConfig(GroupConfig):
    """RECAP's settings."""

    aggregation: Aggregation = "sequence_mean"
    window: int = Field(20, ge=2, description="steps that are looked back on. CONFIRMED-code: 20")
    trend: float = Field(0.5, ge=0, le=1, description="α, of the trend against the movement. CONFIRMED-code: 0.5")
    temperature: float = Field(5.0, gt=0, description="T: 5 keeps weights near 1. CONFIRMED-code: 5")
    form: Literal["code", "paper"] = Field("code", description="how trend and movement are put together")

    @model_validator(mode="after")
    def _rewards_apart(self) -> RECAPConfig:
        self.refuse_idle("trend", self.form == "paper", "form = 'paper'")
        return self


class RECAP(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "recap"
    paper: ClassVar[str] = "arXiv 2510.21978"
    evidence: ClassVar[str] = "confirmed in the authors' code; see the module for what is inferred"
    Config: ClassVar[type[Settings]] = RECAPConfig
    std_epsilon: ClassVar[float] = 1e-4

    def __init__(self, config: Any, setup: Setup) -> None:
        self.own: RECAPConfig = config
        super().__init__(config, setup)
        self.windows: dict[str, list[float]] = {}

    def weights(self, names: Sequence[str]) -> dict[str, float]:
        """λ of each reward at this step, in the order of their names."""
        windows = [self.windows.get(name, []) for name in names]
        found = objective_weights(windows, self.own.trend, self.own.temperature, self.own.form)
        return dict(zip(names, found, strict=True))

    def mark(self, group: ScoredGroup) -> list[Marked]:
        """The family's, with λ in the place of each function's own weight."""
        return [
            m._replace(reward=m.reward - (rollout.reward or 0.0) + self.weighted(rollout)) if rollout.rewards else m
            for rollout, m in zip(group.rollouts, super().mark(group), strict=True)
        ]

    def weighted(self, rollout: Rollout) -> float:
        """Σ λ_k r_k.

        Raises:
            UserError: a reward is below 0, or the functions have weights of their own.
        """
        where = f"problem {rollout.request.problem_id}, rollout {rollout.request.index}"
        for name, value in rollout.rewards.items():
            if value < 0:
                raise UserError(
                    f"reward {name}: {where}: gave {value:g}; recap compares means of it by their ratio, so "
                    "it must be 0 or above"
                )
        plain = sum(rollout.rewards.values())
        if rollout.reward is not None and not math.isclose(plain, rollout.reward, rel_tol=1e-9, abs_tol=1e-9):
            raise UserError(
                f"rewards {', '.join(rollout.rewards)}: {where}: their weights make {rollout.reward:g} of a sum of "
                f"{plain:g}, and recap has weights of its own; leave `weight` out of [reward.…]"
            )
        weights = self.weights(sorted(rollout.rewards))
        return sum((weights[name] * value for name, value in rollout.rewards.items()), start=0.0)

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """Also λ of each reward; each one's mean is ``reward/NAME``."""
        names = sorted({name for group in groups for r in group.rollouts for name in r.rewards})
        return super().monitors(groups, credits) | {WEIGHT + n: v for n, v in self.weights(names).items()}

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Each reward's mean enters its window."""
        for name in _rewards_of(metrics):
            value = metrics.get(f"reward/{name}", float("nan"))
            if not math.isnan(value):
                self.windows[name] = [*self.windows.get(name, []), value][-self.own.window :]

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """One reward alone has no other to be weighed against."""
        if len(_rewards_of(metrics)) > 1:
            return super().warnings(metrics)
        return [
            *super().warnings(metrics),
            "one reward: its weight cancels in the group's normalisation, so recap does what grpo does; give several "
            "reward functions by name, [reward.NAME]",
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"windows": {name: list(values) for name, values in self.windows.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.windows = {name: [float(v) for v in values] for name, values in state["windows"].items()}


def _rewards_of(metrics: Mapping[str, float]) -> list[str]:
    return [key.removeprefix(WEIGHT) for key in metrics if key.startswith(WEIGHT)]


def objective_weights(
    windows: Sequence[Sequence[float]], trend: float, temperature: float, form: Literal["code", "paper"]
) -> list[float]:
    """λ of each reward, K in all, from the means that it had, oldest first.

    Example:
        >>> objective_weights([[0.2, 0.6], [0.5, 0.5], [0.6, 0.2]], 0.5, 5.0, "code")  # the third has the largest
    """
    if not windows:
        return []
    found = [trend_and_movement(values, form) for values in windows]
    worse, moves = ([value / temperature for value in part] for part in zip(*found, strict=True))
    if form == "paper":
        return [len(windows) * share for share in softmax([a + b for a, b in zip(worse, moves, strict=True)])]
    pairs = zip(softmax(worse), softmax(moves), strict=True)
    return [len(windows) * (trend * a + (1 - trend) * b) for a, b in pairs]


def trend_and_movement(values: Sequence[float], form: Literal["code", "paper"]) -> tuple[float, float]:
    """c and i of one window; 1 and 0 of nothing. An odd value at its beginning is left out of both, as in the code."""
    half = len(values) // 2
    looked = list(values[-2 * half :]) if half else list(values)
    if not looked:
        return 1.0, 0.0
    mean = sum(looked) / len(looked)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in looked) / len(looked))
    older, newer = sum(looked[:half]) / max(half, 1), sum(looked[half:]) / max(half, 1)
    c = ratio(older, newer) if half else 1.0
    return c, ratio(deviation, older + newer if form == "paper" else mean, nothing=0.0)


def ratio(above: float, below: float, nothing: float = 1.0) -> float:
    """above/below, at most :data:`LARGEST_RATIO`; ``nothing`` where both are 0."""
    if above == 0 and below == 0:
        return nothing
    return min(above / below, LARGEST_RATIO) if below > 0 else LARGEST_RATIO
