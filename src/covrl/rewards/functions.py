"""A user's reward function: what it is called by, and what of its values is a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any

from covrl.errors import UserError
from covrl.plugins import REWARDS, load_named
from covrl.records import Problem

LONGEST_SHOWN = 100
"""Characters of a wrong value that a message quotes."""

RESERVED = frozenset({"prior", "posterior", "gap", "group_std", "floored_share", "zero_share"})
"""Names that ``reward/…`` has in a run's metrics already: what the method pays by kind of trace."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

RewardFunction = Callable[[Problem, str], float]
"""(problem, text) -> reward. The text is the trace of a likelihood method, the whole response of the GRPO family."""


def find_reward(name: str, where: str = "rewards.function") -> RewardFunction | None:
    """The function of the setting ``where``; None for the empty name.

    Raises:
        UserError: there is none of that name, or it is not a function.
    """
    if not name:
        return None
    found = load_named(name, REWARDS, where, "reward function")
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"{where}: {name!r} is of type {kind}, not a function (problem, text) -> float")
    return found


def wrong_name(name: str) -> str | None:
    """Why a reward cannot have this name, or None if it can."""
    if not NAME.fullmatch(name):
        return f"{name!r} is no name: it begins with a letter and has letters, digits, _ and - alone"
    if name in RESERVED:
        return f"the name {name!r} is taken: reward/{name} is a metric of every run; call it something else"
    return None


def name_of(function: Any) -> str:
    """``module:qualname``, for the record of a run that was given a function in Python."""
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def as_number(value: Any) -> float | None:
    """A number of any kind, or true for 1 and false for 0, as a float; None for anything else."""
    try:
        return float(value) if isinstance(value, Real | Decimal) else None
    except OverflowError:  # an integer or a fraction beyond 1e308
        return None


def shown(value: Any) -> str:
    """A wrong value as a message quotes it: one line, cut off."""
    try:
        return " ".join(repr(value).split())[:LONGEST_SHOWN]
    except ValueError:  # an integer of over 4,300 digits
        return f"a huge {type(value).__name__}"


def plain(value: Any) -> Any:
    """The Python value of a NumPy scalar, or of an array or tensor without dimensions; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
