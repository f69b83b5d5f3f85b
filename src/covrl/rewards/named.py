"""Several reward functions under their names: what each gives for each rollout, and their weighted sum.

``reward = Σ weight × value``. Each function's own value stays beside the sum, under its name. A verdict is not among
them: ``Rollout.correct`` comes from a verifier, and nothing reads it out of a reward.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import isawaitable, iscoroutine
from numbers import Real
from typing import Any

from covrl.errors import UserError
from covrl.records import Problem, Rollout
from covrl.rewards.calls import CallFailedError, Calls, one_line, results_of, returns_coroutine
from covrl.rewards.functions import (
    RewardFunction,
    as_number,
    find_reward,
    name_of,
    plain,
    shown,
    wrong_name,
)

TIMEOUT_S = 600.0
"""Seconds that a call of a named function may take if nothing else is said."""

COROUTINES = 32
"""How many calls of an ``async`` function are under way at once if nothing else is said."""

FORMS = (
    'no NamedReward; give a function, a dict such as {"right": f, "brevity": (g, 0.1)}, or covrl.NamedReward records'
)

Batched = Callable[[Sequence[Problem], Sequence[str]], Sequence[float]]
"""(problems, texts) -> a reward each, in order."""


@dataclass(frozen=True, slots=True)
class NamedReward:
    """One reward function among several.

    Example:
        >>> NamedReward("brevity", lambda problem, text: -len(text) / 1000, weight=0.1)

    ``function`` is ``(problem, text) -> float``, or with ``batched`` ``(problems, texts) -> floats``, called once for
    all traces of a step; either may be ``async``. ``weight`` multiplies its value in the sum; 0 only watches it.
    ``timeout_s`` is the longest that a call may take (seconds; 0: no limit), ``concurrency`` how many calls run at once
    (None: 1, or 32 of an ``async`` function). Above 1 a plain function is called in threads.

    Raises:
        UserError: a value cannot be used; names the reward.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    batched: bool = False
    timeout_s: float = TIMEOUT_S
    concurrency: int | None = None

    def __post_init__(self) -> None:
        wrong = wrong_name(self.name) or self._wrong_setting()
        if wrong:
            raise UserError(f"reward {self.name}: {wrong}")

    def _wrong_setting(self) -> str | None:
        if not callable(self.function):
            return f"{shown(self.function)} is no function (problem, text) -> float"
        if not isinstance(self.weight, Real) or not math.isfinite(self.weight):
            return f"weight = {shown(self.weight)}: it must be a finite number"
        if not isinstance(self.timeout_s, Real) or not 0 <= self.timeout_s < math.inf:
            return f"timeout_s = {shown(self.timeout_s)}: it must be seconds, 0 for no limit"
        if self.concurrency is not None and self.concurrency < 1:
            return f"concurrency = {self.concurrency}: it must be at least 1"
        if self.batched and self.concurrency not in (None, 1):
            return "concurrency does nothing with batched: the function is called once a step; leave one of them out"
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The record as a settings file has it, with the function's name."""
        return {
            "function": name_of(self.function),
            "weight": self.weight,
            "batched": self.batched,
            "timeout_s": self.timeout_s,
            "concurrency": self.concurrency,
        }

    @property
    def awaited(self) -> bool:
        """Whether the function is ``async``."""
        return returns_coroutine(self.function)

    @property
    def label(self) -> str:
        """The reward as messages name it: ``brevity (my_rewards:short)``, or the function alone where that says it."""
        full = name_of(self.function)
        return full if own_name(self.function) == self.name else f"{self.name} ({full})"


Reward = RewardFunction | Sequence[NamedReward]
"""What a run is given: one function, or several with their names."""

Several = Mapping[str, Any] | Sequence[NamedReward]
"""Several functions as they may be given in Python: records, or by name a function, its name, or a pair with weight."""

Given = RewardFunction | NamedReward | Several | str
"""What may be given in Python: a function, its name, or several."""


def own_name(function: Any) -> str:
    """A name for a function that was given none: its own, or ``function`` where that cannot be one."""
    found = re.sub(r"[^A-Za-z0-9_-]", "", name_of(function).rpartition(":")[2].rpartition(".")[2])
    return "function" if wrong_name(found) else found


def named_rewards(reward: Reward) -> tuple[NamedReward, ...]:
    """The reward functions of a run; one without a name has its own, the weight 1 and no time limit."""
    if callable(reward):
        return (NamedReward(own_name(reward), reward, timeout_s=0.0),)
    return tuple(reward)


def as_reward(given: Given | None) -> Reward | None:
    """What :func:`covrl.train` may be given, as a run takes it: one function, or several with their names.

    Raises:
        UserError: as in :func:`as_named` and :func:`covrl.rewards.functions.find_reward`.
    """
    if isinstance(given, str):
        return find_reward(given)
    if given is None:
        return None
    if isinstance(given, NamedReward):
        return (given,)
    if isinstance(given, Mapping | Sequence):
        return as_named(given)
    if not callable(given):
        raise UserError(f"reward: {shown(given)} is {FORMS}")
    return given


def as_named(given: Several) -> tuple[NamedReward, ...]:
    """Several functions as records.

    Example:
        >>> as_named({"right": check, "brevity": (short, 0.1)})

    Raises:
        UserError: there is none, a name comes twice, or an entry is of neither form.
    """
    rewards = [_entry(*item) for item in given.items()] if isinstance(given, Mapping) else list(given)
    if not rewards:
        raise UserError("reward: there is no function in it; give at least one, or leave it out")
    for reward in rewards:
        if not isinstance(reward, NamedReward):
            raise UserError(f"reward: {shown(reward)} is {FORMS}")
    names = [reward.name for reward in rewards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"reward {twice}: the name comes twice; each function has one of its own")
    return tuple(rewards)


def _entry(name: str, entry: Any) -> NamedReward:
    if isinstance(entry, NamedReward):
        return replace(entry, name=name)
    function, weight = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, 1.0)
    return (
        load_reward(name, function, weight=weight) if isinstance(function, str) else NamedReward(name, function, weight)
    )


def load_reward(name: str, function: str, **settings: Any) -> NamedReward:
    """The reward of a settings file: ``function`` names an entry point, or ``module:function``.

    Raises:
        UserError: there is none of that name, or a setting cannot be used.
    """
    found = find_reward(function, f"reward.{name}.function")
    if found is None:
        raise UserError(f"reward.{name}.function is missing; on the command line: --reward {name}=module:function")
    return NamedReward(name, found, **settings)


def rewarded(
    reward: Reward,
    pairs: Sequence[tuple[Problem, Rollout]],
    because: str | None,
    share: Callable[[Callable[[Sequence[Any]], list[dict[str, float]]], Sequence[Any]], list[dict[str, float]]],
) -> list[tuple[Problem, Rollout]]:
    """The pairs with ``reward`` and ``rewards`` of each rollout.

    ``because`` says why the reward has to be 0 or 1, where a method tells right from wrong by it; ``share`` divides the
    work between processes (``World.shared``).

    Raises:
        UserError: a function raised, gave what is no number or not as many as asked for, or took too long; names the
            function, the problem and the rollout. A value that is NaN or infinite is for the guards to judge. Or a
            function has the name of one of the method's kinds of traces, which ``reward/…`` is by.
    """
    rewards = named_rewards(reward)
    taken = sorted({rollout.source for _, rollout in pairs} & {each.name for each in rewards})
    if taken:
        raise UserError(
            f"reward {taken[0]}: reward/{taken[0]} is the metric of the method's traces of that kind; call the "
            "function something else"
        )
    found = share(partial(_checked, rewards, because), pairs)
    return [
        (problem, replace(rollout, reward=weighted(rewards, values), rewards=values))
        for (problem, rollout), values in zip(pairs, found, strict=True)
    ]


def weighted(rewards: Iterable[NamedReward], values: Mapping[str, float]) -> float:
    """Σ weight × value."""
    return sum((r.weight * values[r.name] for r in rewards), start=0.0)


def _checked(
    rewards: Sequence[NamedReward], because: str | None, pairs: Sequence[tuple[Problem, Rollout]]
) -> list[dict[str, float]]:
    found = values_of(rewards, pairs)
    for pair, values in zip(pairs, found, strict=True):
        reward = weighted(rewards, values)
        if because is not None and reward not in (0.0, 1.0):
            what = f"reward function {rewards[0].label}" if len(rewards) == 1 else _sum_of(rewards)
            raise UserError(
                f"{what}: {trace_name(pair)}: gave {reward:g}; it must be 1 for right or 0 for wrong, because {because}"
            )
    return found


def _sum_of(rewards: Sequence[NamedReward]) -> str:
    return "the sum of the rewards " + " + ".join(f"{r.weight:g} x {r.name}" for r in rewards)


def values_of(rewards: Sequence[NamedReward], pairs: Sequence[tuple[Problem, Rollout]]) -> list[dict[str, float]]:
    """Each function's value for each rollout, by name. The same whatever ends first.

    Raises:
        UserError: as in :func:`rewarded`.
    """
    if not pairs:
        return []
    groups = [_calls(reward, pairs) for reward in rewards]
    try:
        results = results_of(groups)
    except CallFailedError as error:
        reward = rewards[error.group]
        where = batch_name(pairs) if reward.batched else trace_name(pairs[error.call])
        raise UserError(f"reward function {reward.label}: {where}: {error.why}") from error.__cause__
    columns = [_column(reward, result, pairs) for reward, result in zip(rewards, results, strict=True)]
    names = [reward.name for reward in rewards]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _calls(reward: NamedReward, pairs: Sequence[tuple[Problem, Rollout]]) -> Calls:
    awaited = reward.awaited
    if reward.batched:
        whole = partial(reward.function, [p for p, _ in pairs], [r.text for _, r in pairs])
        return Calls([whole], reward.timeout_s, 1, awaited)
    at_once = reward.concurrency or (COROUTINES if awaited else 1)
    return Calls([partial(reward.function, p, r.text) for p, r in pairs], reward.timeout_s, at_once, awaited)


def _column(reward: NamedReward, result: list[Any], pairs: Sequence[tuple[Problem, Rollout]]) -> list[float]:
    """A number for each rollout of what the calls returned."""
    for stray in filter(iscoroutine, result):  # refused below; else Python complains that nobody awaited it
        stray.close()
    values = _unpacked(reward, result[0], pairs) if reward.batched else result
    return [_number(reward, value, pair) for value, pair in zip(values, pairs, strict=True)]


def _unpacked(reward: NamedReward, given: Any, pairs: Sequence[tuple[Problem, Rollout]]) -> list[Any]:
    what = f"reward function {reward.label}: {batch_name(pairs)}"
    if isawaitable(given) or isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__"):
        raise UserError(f"{what}: gave {_refused(given)}; it must give a list with a number for each of the texts")
    try:
        values = list(given)
    except Exception as error:  # a generator that raises, a tensor without dimensions
        raise UserError(f"{what}: gave {shown(given)}: {one_line(error)}") from error
    if len(values) != len(pairs):
        raise UserError(
            f"{what}: gave {len(values)} values for {len(pairs)} texts; it must give one for each, in order"
        )
    return values


def _number(reward: NamedReward, value: Any, pair: tuple[Problem, Rollout]) -> float:
    number = as_number(plain(value))
    if number is None:
        raise UserError(
            f"reward function {reward.label}: {trace_name(pair)}: gave {_refused(value)}; it must be a number"
        )
    return number


def _refused(value: Any) -> str:
    return "something to be awaited, but the function is no `async def`" if isawaitable(value) else shown(value)


def trace_name(pair: tuple[Problem, Rollout]) -> str:
    """A rollout as messages name it."""
    problem, rollout = pair
    return f"problem {problem.id}, rollout {rollout.request.index} ({rollout.source})"


def batch_name(pairs: Sequence[tuple[Problem, Rollout]]) -> str:
    """Several rollouts as messages name them: how many, the first and the last."""
    last = f" to {trace_name(pairs[-1])}" if len(pairs) > 1 else ""
    return f"the batch of {len(pairs)} from {trace_name(pairs[0])}{last}"


def not_finite(reward: Reward, rollout: Rollout) -> str | None:
    """``the reward of my_rewards:brevity is nan``: what is NaN or infinite of a rollout's rewards; None for nothing."""
    rewards = named_rewards(reward)
    for each in rewards:
        value = rollout.rewards.get(each.name, 0.0)
        if not math.isfinite(value):
            return f"the reward of {each.label} is {value}"
    if rollout.reward is not None and not math.isfinite(rollout.reward):
        return f"{_sum_of(rewards)} is {rollout.reward}"
    return None


def reward_metrics_by_name(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """``reward/NAME``: the mean of each function's own value over ``rollouts``."""
    found: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.rewards.items():
            found.setdefault(name, []).append(value)
    return {f"reward/{name}": sum(values) / len(values) for name, values in found.items()}
