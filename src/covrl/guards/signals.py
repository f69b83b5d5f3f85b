"""Ctrl-C and SIGTERM end a run between two steps, where a checkpoint is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Generator[None]:
    """While entered, ``handler`` gets these signals. In a thread other than the main one they are left as they are."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers} if in_main else {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stop_requests(say: Callable[[str], None] = lambda _: None) -> Generator[Callable[[], bool]]:
    """Yields whether somebody has asked to stop: by the first SIGINT or SIGTERM, of which ``say`` is told.

    A second one interrupts at once.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if came:
            raise KeyboardInterrupt
        came.append(number)
        with contextlib.suppress(RuntimeError):  # it came while a line was being written: stopping is what counts
            say(f"{signal.Signals(number).name}: stopping before the next pass; send it again to stop at once")

    with handled(handle, signal.SIGINT, signal.SIGTERM):
        yield lambda: bool(came)
