"""A user's reward function: called once for every sampled trace or response, and checked."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any

from covrl.errors import UserError
from covrl.plugins import REWARDS, load_named
from covrl.records import Problem

LONGEST_SHOWN = 100
"""Characters of a wrong value that a message quotes."""

RewardFunction = Callable[[Problem, str], float]
"""(problem, text) -> reward. The text is the trace of a likelihood method, the whole response of the GRPO family."""


def find_reward(name: str) -> RewardFunction | None:
    """The function of ``rewards.function``; None for the empty name.

    Raises:
        UserError: there is none of that name, or it is not a function.
    """
    if not name:
        return None
    found = load_named(name, REWARDS, "rewards.function", "reward function")
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"rewards.function: {name!r} is of type {kind}, not a function (problem, text) -> float")
    return found


def name_of(function: Any) -> str:
    """``module:qualname``, for the record of a run that was given a function in Python."""
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def reward_of(function: RewardFunction, problem: Problem, text: str) -> float:
    """The function's value: a number of any kind, or true for 1 and false for 0.

    NaN and infinity are left to the guards (``guards.non_finite``).

    Raises:
        UserError: it raises, or returns anything but a number; the message names the function and the problem.
    """
    try:
        value = function(problem, text)
    except Exception as error:
        raise UserError(
            f"reward function {name_of(function)}: problem {problem.id}: {type(error).__name__}: {error}"
        ) from error
    number = plain(value)
    if not isinstance(number, Real | Decimal):
        shown = " ".join(repr(value).split())[:LONGEST_SHOWN]
        raise UserError(f"reward function {name_of(function)}: problem {problem.id}: gave {shown}; it must be a number")
    return float(number)


def plain(value: Any) -> Any:
    """The Python value of a NumPy scalar, or of an array or tensor without dimensions; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def verdict_of(function: RewardFunction, problem: Problem, text: str, because: str) -> float:
    """The value of a function that returns right (1) or wrong (0), for methods that weight by verdict.

    Raises:
        UserError: as :func:`reward_of`, or for any other value, with the reason ``because``.
    """
    value = reward_of(function, problem, text)
    if value not in (0.0, 1.0):
        raise UserError(
            f"reward function {name_of(function)}: problem {problem.id}: gave {value:g}; it must be 1 for right or 0 "
            f"for wrong, because {because}"
        )
    return value
