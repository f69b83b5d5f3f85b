"""What the loop needs from the other processes. One process is world size 1 of the same code."""

from __future__ import annotations

from typing import Protocol


class Reducer(Protocol):
    """Sums over all ranks; denominators and batch statistics go through it."""

    def sum(self, value: float) -> float:
        """The value summed over all ranks."""
        ...


class Solo:
    """A world of one process."""

    def sum(self, value: float) -> float:
        return value
