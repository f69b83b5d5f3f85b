"""What a run needs from the other processes. A run of one process uses a world of size 1.

Work is split, records are gathered: each rank samples, grades and scores a share of the step's traces, and then every
rank holds all of them, in the order in which one process would have them. Admission, credit, denominators, batch
statistics and metrics are therefore computed from the whole batch on every rank by the same code, so any function
of the batch is right (a maximum or a shuffle as well as a sum). The update splits the batch again, trace by trace, and
the ranks' gradients are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from covrl.precision import wide

Item = TypeVar("Item")
Result = TypeVar("Result")


class World:
    """A world of one process, and what any world can do (see :class:`covrl.distributed.processes.Processes`)."""

    rank: int = 0
    size: int = 1
    sharded: bool = False
    """Whether each rank holds a part of the policy's weights, so that all must take part in each pass of any."""

    @property
    def can_raise_alone(self) -> bool:
        """Whether this rank may raise inside a pass: no other rank takes part in it, and all are informed after it."""
        return True

    @contextmanager
    def independent(self) -> Generator[None]:
        """While entered, this rank's passes are its own where they can be; :meth:`raise_together` follows."""
        yield

    @property
    def first(self) -> bool:
        """Whether this rank is the one that prints and writes."""
        return self.rank == 0

    def shared(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], together: int = 1
    ) -> list[Result]:
        """``work`` done on this rank's share of ``items``; the results of all ranks, in the order of the items.

        ``together`` ranks next to each other do the same share, of which the first one's results count. An error in one
        rank's work is raised on all.
        """
        del together
        return list(work(items))

    def gathered(self, own: Sequence[Item]) -> list[Item]:
        """The values of all ranks in the order of ranks, on every rank."""
        return list(own)

    def broadcast(self, value: Result) -> Result:
        """The first rank's value, on every rank."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag

    def union(self, names: list[str]) -> list[str]:
        """The union of the ranks' names, in the same order on all."""
        return names

    def total(self, values: dict[str, float]) -> dict[str, float]:
        """Each value summed over ranks."""
        return values

    def summed(self, gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Gradients of ``parameters`` summed over ranks, never averaged; None where no rank has one."""
        del parameters
        return list(gradients)

    def norm(self, gradient: Sequence[Tensor | None]) -> float:
        """The norm of a whole gradient, of which each rank may hold a part; summed in its device's widest numbers."""
        return math.sqrt(sum(float(wide(g).pow(2).sum()) for g in gradient if g is not None))

    def clip_gradient(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale ``.grad`` so that the norm of the whole gradient is at most ``limit``; the norm before."""
        return torch.nn.utils.clip_grad_norm_(parameters, limit)

    def agree(self, error: Exception | None, asked: bool) -> bool:
        """Between the forward and the backward of a pass: whether any rank was asked to stop.

        Raises the error that the forward of any rank had. If ranks' passes are independent, each checks only its own.
        """
        if error is not None:
            raise error
        return asked

    def broke_off(self, error: Exception) -> bool:
        """Whether an error occurred where other ranks may wait for this one, so that it can only end the process."""
        del error
        return False

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank an error of any rank; all ranks call it."""
        if error is not None:
            raise error

    def agreed(self, error: Exception) -> bool:
        """Whether all ranks raise this error, so that they can still communicate."""
        del error
        return True

    def on_rank0(self, work: Callable[[], object]) -> None:
        """``work`` done by the first rank, for all: the others wait for it, and an error of it is raised on all."""
        work()

    def check_same(self, value: object, what: str) -> None:
        """Raises UserError if the ranks have different values of ``what``; all ranks call it."""

    @contextmanager
    def whole_weights(self) -> Generator[None]:
        """While entered, every rank has whole weights, and ranks may run different numbers of forward passes."""
        yield

    def close(self) -> None:
        """Leave the process group."""


def local_part(tensor: Any) -> Tensor:
    """This rank's part of a tensor that is spread over several, else the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def part_of(length: int, rank: int, size: int) -> slice:
    """The ``rank``-th of ``size`` contiguous shares of ``length`` items, sizes differing by at most one."""
    return slice(rank * length // size, (rank + 1) * length // size)


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Which items each rank gets, so that the sums of their ``sizes`` are close: largest first, to the least loaded.

    Each rank's items are in their own order. The same on every rank: it depends on nothing else.

    Example:
        >>> deal([5, 1, 1, 3], 2)
        [[0], [1, 2, 3]]
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(ranks), key=lambda r: (load[r], len(shares[r]), r))
        shares[least].append(item)
        load[least] += sizes[item]
    return [sorted(share) for share in shares]
