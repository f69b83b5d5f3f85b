"""Calls of functions that are not ours: their values, their limits, and what is left after one went wrong."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from covrl.rewards import calls
from covrl.rewards.calls import CallFailedError, Calls, results_of

LIMIT_S = 0.2
LONG_S = 60.0


@pytest.fixture(autouse=True)
def no_alarm_is_left() -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def late(value: int, seconds: float) -> int:
    time.sleep(seconds)
    return value


async def late_async(value: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return value


def ways(work: Callable[..., Any], work_async: Callable[..., Any], given: list[tuple[Any, ...]], limit: float) -> Any:
    plain = [partial(work, *each) for each in given]
    return {
        "in line": Calls(plain, limit),
        "threads": Calls(plain, limit, 4),
        "coroutines": Calls([partial(work_async, *each) for each in given], limit, 4, awaited=True),
    }


@pytest.mark.parametrize("way", ["in line", "threads", "coroutines"])
@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_values_come_in_the_order_of_the_calls_whatever_ends_first(way: str, limit: float) -> None:
    given = [(i, 0.02 * (7 - i) % 0.05) for i in range(8)]
    assert results_of([ways(late, late_async, given, limit)[way]]) == [list(range(8))]


@pytest.mark.parametrize(("way", "at_once"), [("in line", 1), ("threads", 4), ("coroutines", 4)])
def test_no_more_calls_run_at_once_than_may(way: str, at_once: int) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def begin() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)

    def end() -> None:
        nonlocal now
        with lock:
            now -= 1

    def work() -> None:
        begin()
        time.sleep(0.02)
        end()

    async def work_async() -> None:
        begin()
        await asyncio.sleep(0.02)
        end()

    results_of([ways(work, work_async, [()] * 12, 0.0)[way]])
    assert most == at_once


def fails(i: int) -> int:
    if i == 3:
        raise KeyError("colour\nof money")
    return i


async def fails_async(i: int) -> int:
    return fails(i)


@pytest.mark.parametrize("way", ["in line", "threads", "coroutines"])
def test_what_is_raised_is_told_with_its_call(way: str) -> None:
    fine = Calls([lambda: 1])
    with pytest.raises(CallFailedError) as caught:
        results_of([fine, ways(fails, fails_async, [(i,) for i in range(4)], 5.0)[way]])
    assert (caught.value.group, caught.value.call) == (1, 3)
    assert caught.value.why == r"KeyError: 'colour\nof money'"
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("way", ["in line", "threads", "coroutines"])
def test_sys_exit_in_a_function_is_its_fault_and_no_end_of_the_run(way: str) -> None:
    async def leave_async() -> None:
        sys.exit(3)

    with pytest.raises(CallFailedError, match="SystemExit: 3"):
        results_of([ways(lambda: sys.exit(3), leave_async, [()], 0.0)[way]])
    assert results_of([ways(late, late_async, [(1, 0.0)], 0.0)[way]]) == [[1]]


def hangs(*_: Any) -> None:
    time.sleep(LONG_S)


def spins() -> None:
    while True:
        pass


def matches_forever() -> None:
    re.fullmatch(r"(a+)+b", "a" * 40)


@pytest.mark.parametrize("work", [hangs, spins, matches_forever])
def test_in_line_a_limit_ends_waits_loops_and_regular_expressions(work: Callable[[], None]) -> None:
    start = time.monotonic()
    with pytest.raises(CallFailedError, match=r"ran into its time limit of 0.2 s \(timeout_s\)") as caught:
        results_of([Calls([lambda: 1, work], LIMIT_S)])
    assert caught.value.call == 1
    assert time.monotonic() - start < LONG_S / 6


def test_a_limit_is_not_caught_by_a_function_that_catches_all_exceptions() -> None:
    def stubborn() -> int:
        try:
            time.sleep(LONG_S)
        except Exception:
            return 0
        return 1

    with pytest.raises(CallFailedError, match="time limit"):
        results_of([Calls([stubborn], LIMIT_S)])


def test_a_function_with_an_alarm_of_its_own_works_and_cannot_outrun_the_limit() -> None:
    """math-verify is one: it sets an alarm and takes it away, and ours with it."""

    def own_alarm(seconds: float) -> int:
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 30.0)
        time.sleep(seconds)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        return 7

    assert results_of([Calls([partial(own_alarm, 0.0)], 5.0)]) == [[7]]
    with pytest.raises(CallFailedError, match="time limit"):
        results_of([Calls([partial(own_alarm, 2 * LIMIT_S)], LIMIT_S)])


def test_where_somebody_elses_alarm_runs_it_stays_and_the_limit_holds() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 30.0)
    try:
        with pytest.raises(CallFailedError, match="time limit"):
            results_of([Calls([hangs], LIMIT_S)])
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 20.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert not rung


def test_outside_the_main_thread_the_limit_holds_too() -> None:
    found: list[str] = []

    def ask() -> None:
        try:
            results_of([Calls([hangs], LIMIT_S)])
        except CallFailedError as error:
            found.append(error.why)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(LONG_S / 6)
    assert found == ["ran into its time limit of 0.2 s (timeout_s)"]


async def refuses_to_end() -> None:
    while True:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            continue


async def blocks_the_loop() -> None:
    time.sleep(5.0)


async def never_ends() -> None:
    await asyncio.Event().wait()


HANGING = {
    "thread": Calls([hangs] * 3, LIMIT_S, 2),
    "coroutine": Calls([never_ends], LIMIT_S, 2, awaited=True),
    "coroutine that refuses": Calls([refuses_to_end], LIMIT_S, 2, awaited=True),
    "coroutine that blocks": Calls([blocks_the_loop], LIMIT_S, 2, awaited=True),
}


@pytest.mark.parametrize("name", HANGING)
def test_one_that_hangs_ends_the_lot_and_the_next_lot_works(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(CallFailedError, match=r"time limit of 0\.2 s"):
        results_of([Calls([partial(late_async, 1, 0.0)], 0.0, 2, awaited=True), HANGING[name]])
    assert time.monotonic() - start < 5.0
    assert results_of([ways(late, late_async, [(1, 0.0)], 2.0)[w] for w in ("threads", "coroutines")]) == [[1], [1]]


def test_the_limit_counts_from_the_calls_own_beginning() -> None:
    """Eight calls of 0.1 s, two at once, take longer together than one may."""
    given = [(i, 0.1) for i in range(8)]
    for way in ("threads", "coroutines"):
        group = ways(late, late_async, given, 0.3)[way]
        assert results_of([Calls(group.work, 0.3, 2, group.awaited)]) == [list(range(8))]


def test_after_a_failure_nothing_more_begins_and_coroutines_are_cancelled() -> None:
    begun, cancelled = [], []

    async def waits(i: int) -> None:
        begun.append(i)
        try:
            if i == 1:
                raise ValueError("no")
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            cancelled.append(i)
            raise

    with pytest.raises(CallFailedError, match="ValueError: no"):
        results_of([Calls([partial(waits, i) for i in range(6)], 0.0, 2, awaited=True)])
    assert begun[:2] == [0, 1]
    assert 0 in cancelled
    assert len(begun) < 6


def test_all_coroutines_of_a_process_share_one_loop() -> None:
    async def which() -> int:
        return id(asyncio.get_running_loop())

    first, second = (results_of([Calls([which], 1.0, 1, awaited=True)] * 2) for _ in range(2))
    assert len({value for group in (*first, *second) for value in group}) == 1


def test_an_interrupt_while_it_waits_cancels_and_passes_through() -> None:
    cancelled = threading.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def ring(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            results_of([Calls([waits], 0.0, 1, awaited=True)])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert cancelled.wait(5.0)


@pytest.mark.parametrize("what", ["never_ends", "refuses_to_end", "blocks_the_loop", "hangs"])
def test_a_process_ends_with_one_line_whatever_hangs_in_it(what: str) -> None:
    """No warning about tasks that were pending, and no wait for what was left behind."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_reward_calls import *
try:
    results_of([Calls([{what}] * 3, LIMIT_S, 2, awaited={what != "hangs"})])
except CallFailedError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == "ran into its time limit of 0.2 s (timeout_s)\n"


def test_which_functions_are_awaited() -> None:
    class Judge:
        async def __call__(self, problem: object, text: str) -> float:
            return 0.0

        async def method(self) -> None: ...

    awaited = [late_async, partial(late_async, 1), Judge(), Judge().method]
    assert [calls.returns_coroutine(f) for f in (*awaited, late, partial(late, 1), len)] == [True] * 4 + [False] * 3
