"""What the embedded tasks have in common: splits by a hash of the question, and what is found in a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

Split = Literal["base", "train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

CLOSING_TAG = "</think>"
"""The closing tag, which a trace may still have when it is read: a rollout's text has it."""


@dataclass(frozen=True, slots=True)
class TraceCheck:
    """The procedure that a trace follows, and whether its steps are true.

    ``habit`` is the procedure that the trace's words claim, ``None`` if they are no procedure's. ``false_step`` holds
    if anything in it is not what the procedure gives, or if the trace cannot be read. ``sound`` holds for the right
    procedure with every step true and in order.
    """

    habit: StrEnum | None
    false_step: bool
    sound: bool


def hashed(*parts: str) -> int:
    """A number of 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big")


def split_of(number: int) -> Split:
    """The split of a question with that hash: 40 % base, 40 % train, 10 % dev, 10 % test."""
    places: tuple[Split, ...] = ("base",) * 4 + ("train",) * 4 + ("dev", "test")
    return places[number % 10]


def by_split(questions: Iterable[str], split: Callable[[str], Split]) -> dict[str, tuple[str, ...]]:
    """The questions of each split, in their order."""
    members: dict[str, list[str]] = {name: [] for name in SPLITS}
    for question in questions:
        members[split(question)].append(question)
    return {name: tuple(found) for name, found in members.items()}
