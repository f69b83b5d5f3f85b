"""Many calls of functions that are not ours, each with a time limit, some at once.

A call ends in one of three ways: with a value, with what it raised, or over its limit. The last two end the whole lot
with :class:`CallFailedError`; nothing is tried again, and nothing is taken for a value that is none.

Where a call runs decides how it can be ended:

- *One at a time* (the usual case): in the calling thread. Its limit is an alarm (``SIGALRM``), which ends loops, waits
  and regular expressions in the middle. A function that sets alarms of its own works as ever; that it took too long is
  then noticed when it returns.
- *Several at once*, or where there is no alarm to set (outside the main thread, on Windows, or while somebody else's
  alarm runs): in threads. Nothing can end a thread, so one over its limit is left behind, and the caller goes on
  without it. A call that holds Python's lock, as one long regular expression does, is noticed when it lets go.
- *Coroutines*: all in one event loop, in a thread that lives as long as the process, so that a client may keep its
  connections from step to step. One over its limit is cancelled; where that does not help, its loop is left behind.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from inspect import iscoroutinefunction
from queue import Empty, SimpleQueue
from typing import Any

SETTLE_S = 1.0
"""Seconds that cancelled coroutines have to end, before their loop is left behind."""


class CallFailedError(Exception):
    """A call raised or took too long: ``group`` and ``call`` say which one, ``why`` what happened, in one line."""

    def __init__(self, group: int, call: int, why: str) -> None:
        super().__init__(why)
        self.group, self.call, self.why = group, call, why


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one function.

    ``timeout_s`` is the limit of each, from its own beginning (0: none), ``concurrency`` how many run at once.
    ``awaited``: what a call returns is to be awaited.
    """

    work: Sequence[Callable[[], Any]]
    timeout_s: float = 0.0
    concurrency: int = 1
    awaited: bool = False

    @property
    def in_line(self) -> bool:
        """Whether the calling thread makes the calls, one after another."""
        return not self.awaited and self.concurrency == 1 and (not self.timeout_s or _alarm_is_free())


def results_of(groups: Sequence[Calls]) -> list[list[Any]]:
    """What each call of each group returned, in the order of the calls, whichever ended first.

    Calls beside this thread run first, those of all groups at once; then the calls in line, group by group.

    Raises:
        CallFailedError: a call raised or took too long. Calls that have not begun never do; coroutines are cancelled.
    """
    in_line = [group.in_line for group in groups]
    done: list[list[Any]] = [[] for _ in groups]
    beside = [number for number, here in enumerate(in_line) if not here]
    for number, values in zip(beside, _beside([(n, groups[n]) for n in beside]), strict=True):
        done[number] = values
    for number, group in enumerate(groups):
        if in_line[number]:
            done[number] = [_in_line(number, i, work, group.timeout_s) for i, work in enumerate(group.work)]
    return done


def one_line(error: BaseException) -> str:
    """``KeyError: 'colour'``: what was raised, in one line of at most 300 characters."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__


def _over(limit_s: float) -> str:
    return f"ran into its time limit of {limit_s:g} s (timeout_s)"


class _OverdueError(BaseException):
    """The alarm rang. No ``Exception``, so that a function which catches all of those does not catch it."""


def _alarm_is_free() -> bool:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    return signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def _in_line(group: int, call: int, work: Callable[[], Any], limit_s: float) -> Any:
    try:
        return _timed(work, limit_s) if limit_s else work()
    except _OverdueError as error:
        raise CallFailedError(group, call, _over(limit_s)) from error
    except (Exception, SystemExit) as error:  # sys.exit in a reward function is a fault of it, not the end of the run
        raise CallFailedError(group, call, one_line(error)) from error


def _timed(work: Callable[[], Any], limit_s: float) -> Any:
    def ring(*_: object) -> None:
        raise _OverdueError

    before = signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            value = work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    if time.monotonic() - start > limit_s:  # it set an alarm of its own, or caught ours
        raise _OverdueError
    return value


@dataclass(eq=False, slots=True)
class _Call:
    """One call beside the calling thread; what it came to is set before it is put on the queue."""

    group: int
    number: int
    work: Callable[[], Any]
    limit_s: float
    began: float | None = None
    took: float = 0.0
    ended: bool = False
    value: Any = None
    error: BaseException | None = None

    def overdue(self, now: float) -> bool:
        return bool(self.limit_s) and self.began is not None and now - self.began > self.limit_s

    def end(self, finished: SimpleQueue[_Call]) -> None:
        assert self.began is not None
        self.took, self.ended = time.monotonic() - self.began, True
        finished.put(self)


def _beside(groups: Sequence[tuple[int, Calls]]) -> list[list[Any]]:
    finished: SimpleQueue[_Call] = SimpleQueue()
    mine = [[_Call(n, i, work, g.timeout_s) for i, work in enumerate(g.work)] for n, g in groups]
    queues: list[deque[_Call]] = []
    tasks: list[Future[None]] = []
    over = threading.Event()  # from the first failure on, no coroutine begins: a cancelled one makes room for another
    try:
        for calls, (_, group) in zip(mine, groups, strict=True):
            if group.awaited:
                tasks += _start_coroutines(calls, group.concurrency, finished, over)
            else:
                queues.append(_start_threads(calls, group.concurrency, finished))
        _wait({call for calls in mine for call in calls}, finished)
    except BaseException:  # an interrupt too: nothing of this lot may go on
        over.set()
        for queue in queues:
            queue.clear()
        if tasks:
            _cancel(tasks, [call for calls, (_, g) in zip(mine, groups, strict=True) if g.awaited for call in calls])
        raise
    return [[call.value for call in calls] for calls in mine]


def _wait(pending: set[_Call], finished: SimpleQueue[_Call]) -> None:
    """Until all have ended well, or one has not."""
    look_at = _next_look(pending)
    while pending:
        now = time.monotonic()
        if look_at is not None and now >= look_at:
            late = [call for call in pending if call.overdue(now)]
            if late:
                worst = min(late, key=lambda call: (call.began, call.group, call.number))
                raise CallFailedError(worst.group, worst.number, _over(worst.limit_s))
            look_at = _next_look(pending)
        try:
            call = finished.get(timeout=None if look_at is None else max(0.0, look_at - now))
        except Empty:
            continue
        pending.discard(call)
        if call.limit_s and call.took > call.limit_s:
            raise CallFailedError(call.group, call.number, _over(call.limit_s)) from call.error
        if call.error is not None:
            raise CallFailedError(call.group, call.number, one_line(call.error)) from call.error


def _next_look(pending: set[_Call]) -> float | None:
    """Before this moment no call can be over its limit."""
    now = time.monotonic()
    return min(((now if c.began is None else c.began) + c.limit_s for c in pending if c.limit_s), default=None)


def _start_threads(calls: Sequence[_Call], count: int, finished: SimpleQueue[_Call]) -> deque[_Call]:
    waiting = deque(calls)

    def work() -> None:
        while True:
            try:
                call = waiting.popleft()
            except IndexError:
                return
            call.began = time.monotonic()
            try:
                call.value = call.work()
            except BaseException as error:
                call.error = error
            call.end(finished)

    for _ in range(min(count, len(calls))):  # daemons: one that hangs does not keep the process from ending
        threading.Thread(target=work, name="covrl-reward", daemon=True).start()
    return waiting


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _running_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all coroutines, in a thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="covrl-reward-loop", daemon=True).start()
        return _loop


def _start_coroutines(
    calls: Sequence[_Call], count: int, finished: SimpleQueue[_Call], over: threading.Event
) -> list[Future[None]]:
    loop, gate = _running_loop(), asyncio.Semaphore(count)
    return [asyncio.run_coroutine_threadsafe(_awaited(call, gate, finished, over), loop) for call in calls]


async def _awaited(call: _Call, gate: asyncio.Semaphore, finished: SimpleQueue[_Call], over: threading.Event) -> None:
    async with gate:
        if over.is_set():
            return
        call.began = time.monotonic()
        try:
            call.value = await call.work()
        except BaseException as error:  # an interrupt that is raised in a loop would end it, and all others with it
            call.error = error
            over.set()
        finally:
            call.end(finished)


def _cancel(tasks: Sequence[Future[None]], calls: Sequence[_Call]) -> None:
    """End the coroutines. A loop that does not get rid of them is left behind, and the next call has another."""
    global _loop
    for task in tasks:
        task.cancel()
    deadline = time.monotonic() + SETTLE_S
    while any(call.began is not None and not call.ended for call in calls):
        if time.monotonic() > deadline:
            with _lock:
                loop, _loop = _loop, None
            if loop is not None:
                loop.set_exception_handler(lambda *_: None)  # else each one that is left behind has a last word
                loop.call_soon_threadsafe(loop.stop)
            return
        time.sleep(0.01)


def returns_coroutine(function: Any) -> bool:
    """Whether what the function returns is to be awaited: ``async def``, also as a method or a callable object."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004
