"""Passes of one gradient on two threads of a CPU, with the bits of one pass after the other.

Many operations of a pass use one core only (gathering rows, launching, autograd's own work), and each of the others
waits for its slowest thread. Two passes at once, each with half of the threads, keep the cores busy. What they share is
done in turn: a parameter's gradient of a pass is added after those of all earlier passes, so the sums are those of one
pass after the other, whichever thread is faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from covrl.distributed.world import World
from covrl.models.compute import passes_are_apart
from covrl.models.model import LanguageModel

WORKERS = 2
"""Passes at once: more would have to be smaller, and each pass adds to every parameter's gradient."""


def workers(models: Iterable[LanguageModel], world: World) -> int:
    """How many passes are made at once: :data:`WORKERS` on the threads of one process's CPU, else 1.

    Passes of several threads need models that lay prompts and traces end to end, as then no padding depends on how
    rows are packed, and that keep nothing from pass to pass.
    """
    trunks = list({id(m.trunk_of): m.trunk_of for m in models}.values())
    alone = world.size == 1 and torch.get_num_threads() >= WORKERS
    own_weights = len({id(trunk.model) for trunk in trunks}) == len(trunks)  # else a pass switches adapters
    apart = all(t.device.type == "cpu" and t.paths.shared and passes_are_apart(t.model) for t in trunks)
    return WORKERS if alone and own_weights and apart else 1


class _LeftError(Exception):
    """An earlier pass failed, so this one has no use."""


@dataclass(slots=True)
class Turns:
    """The order in which passes do what they share. Passes are numbered from 0 and begun in this order.

    Outside of :meth:`run` passes are made one after the other, and every turn is free.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    had: dict[int, set[Hashable]] = field(default_factory=dict)  # passes under way -> what they had their turn at
    begun: int = 0
    tokens: int = 0  # of the passes under way
    failed: dict[int, BaseException] = field(default_factory=dict)
    number: threading.local = field(default_factory=threading.local)

    @contextmanager
    def turn(self, what: Hashable) -> Generator[None]:
        """Wait until every earlier pass that is under way had its turn at ``what``, and take this pass's."""
        self._wait(what)
        yield
        self._done(what)

    @contextmanager
    def adding(self, parameters: Sequence[nn.Parameter]) -> Generator[None]:
        """While entered, backward passes add to each parameter's ``.grad`` in turn."""
        hooks = []
        for i, parameter in enumerate(parameters):
            hooks.append(parameter.register_hook(partial(self._wait, i)))
            hooks.append(parameter.register_post_accumulate_grad_hook(partial(self._done, i)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def run(self, passes: Sequence[Callable[[], None]], sizes: Sequence[int], most: int) -> None:
        """Make all passes, on :data:`WORKERS` threads; those under way at a time have at most ``most`` tokens, or it
        is one.

        Raises what the earliest pass raised that failed, after all threads have ended.
        """
        threads = torch.get_num_threads()
        given = (passes, sizes, most, max(1, threads // WORKERS))
        helpers = [threading.Thread(target=self._work, args=given, daemon=True) for _ in range(WORKERS - 1)]
        try:
            for helper in helpers:
                helper.start()
            self._work(*given)
        finally:
            self.begun = len(passes)  # where this thread was interrupted, the others begin no more
            for helper in helpers:
                helper.join()
            torch.set_num_threads(threads)
        if self.failed:
            raise self.failed[min(self.failed)]

    def _work(self, passes: Sequence[Callable[[], None]], sizes: Sequence[int], most: int, threads: int) -> None:
        """Make passes until none is left: what each thread does."""
        torch.set_num_threads(threads)  # of this thread
        while (number := self._begin(sizes, most)) is not None:
            self.number.own = number
            failed: BaseException | None = None
            try:
                passes[number]()
            except _LeftError:
                pass
            except BaseException as error:  # run() raises it in the thread that called it
                failed = error
            with self.changed:
                if failed is not None:
                    self.failed[number] = failed
                del self.had[number]
                self.tokens -= sizes[number]
                self.changed.notify_all()

    def _begin(self, sizes: Sequence[int], most: int) -> int | None:
        """The next pass, once there is room for it; None if there is none or one has failed."""

        def ready() -> bool:
            over = bool(self.failed) or self.begun == len(sizes)
            return over or not self.had or self.tokens + sizes[self.begun] <= most

        with self.changed:
            self.changed.wait_for(ready)
            if self.failed or self.begun == len(sizes):
                return None
            number, self.begun = self.begun, self.begun + 1
            self.had[number] = set()
            self.tokens += sizes[number]
            return number

    def _wait(self, what: Hashable, *_: object) -> None:
        own = self._own

        def mine() -> bool:
            return min(self.failed, default=own) < own or all(what in had for i, had in self.had.items() if i < own)

        with self.changed:
            self.changed.wait_for(mine)
            if min(self.failed, default=own) < own:
                raise _LeftError

    def _done(self, what: Hashable, *_: object) -> None:
        with self.changed:
            if self._own in self.had:
                self.had[self._own].add(what)
            self.changed.notify_all()

    @property
    def _own(self) -> int:
        """The number of this thread's pass."""
        return getattr(self.number, "own", 0)
