"""Ctrl-C and SIGTERM end a run between two steps, where a checkpoint is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets ``requested``; a second one interrupts at once.

    ``say`` is told about the first. In a thread other than the main one, signals are left as they are.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.requested = False
        self._say = say
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(RuntimeError):  # it came while a line was being written: stopping is what counts
            self._say(f"{signal.Signals(number).name}: stopping before the next pass; send it again to stop at once")
