"""math-verify in processes of its own that can be killed: both ends of the pipe.

``python -m covrl.rewards.math_worker`` is the far end. It alone imports math-verify. A row that hangs, eats memory or
crashes takes its process with it and no other row. The process is a plain program (no ``multiprocessing``), so it never
imports the caller's main module; it ends when its standard input ends, and an alarm that Python cannot hold up ends it
in the middle of a hung row, so that none outlives its caller.

Lines of JSON. To the worker: a list of rows ``[[reference, ...], answer]``. From it: ``["ready"]`` once, then
``[verdict, why]`` a row, in order, each as soon as it is known.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from covrl.errors import UserError
from covrl.records import Verdict

DIED = "worker died"
ROWS_PER_MESSAGE = 16
START_LIMIT_S = 120.0
MEMORY_BYTES = 4 << 30
RELATIVE_TOLERANCE = 1e-5
"""Largest relative difference of two decimals: math-verify's own six places would make 1e-7 equal to 0."""

DIFFERENCE = 1e-4
"""Relative difference at a point that no rounding explains."""


class Question(NamedTuple):
    """What a worker is asked: is this LaTeX equal to one of the references?"""

    references: tuple[str, ...]
    answer: str


class Reply(NamedTuple):
    """What came of it."""

    verdict: Verdict
    why: str


class MathWorkers:
    """A few worker processes; each row has ``limit_s`` seconds, and costs at most its own process.

    Processes start with the first question and are started again when they were killed or died. A row whose process
    died is tried once more, as something else may have killed it; a row that took too long is not.
    """

    def __init__(self, count: int, limit_s: float) -> None:
        self._workers = [_Worker(limit_s) for _ in range(count)]

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply a question, in order.

        Raises:
            UserError: math-verify cannot be imported, or a worker does not start.
        """
        replies: list[Reply | None] = [None] * len(questions)
        waiting = deque(range(len(questions)))
        tried: set[int] = set()
        try:
            for worker in self._workers[: -(-len(questions) // ROWS_PER_MESSAGE)]:
                worker.launch()  # all of them load at the same time
            while waiting or any(w.rows for w in self._workers):
                for worker in self._workers:
                    if waiting and not worker.rows:
                        chunk = [waiting.popleft() for _ in range(min(ROWS_PER_MESSAGE, len(waiting)))]
                        worker.give(chunk, [questions[i] for i in chunk])
                for row, reply in self._collect():
                    if reply.why.startswith(DIED) and row not in tried:  # the row need not be what killed it
                        tried.add(row)
                        waiting.appendleft(row)
                    else:
                        replies[row] = reply
                for worker in self._workers:
                    if worker.process is None:  # killed, or dead: the rows that it had not come to
                        waiting.extendleft(reversed(worker.rows))
                        worker.rows.clear()
        except BaseException:  # an interrupt too: what is still in the pipes belongs to no later question
            self.close()
            raise
        return [r for r in replies if r is not None]

    def _collect(self) -> list[tuple[int, Reply]]:
        """Wait until a busy worker says something or is overdue; its rows with their replies."""
        busy = {w.output: w for w in self._workers if w.rows and w.process is not None}
        if not busy:
            return []
        patience = min(w.deadline for w in busy.values()) - time.monotonic()
        speaking = wait(list(busy), max(0.0, patience))
        done: list[tuple[int, Reply]] = []
        for output, worker in busy.items():
            if output in speaking:
                done += worker.take()
            elif time.monotonic() >= worker.deadline:
                done.append(worker.give_up(f"time limit: not decided within {worker.limit_s:g} s"))
        return done

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [w.process.pid for w in self._workers if w.process is not None and w.process.poll() is None]

    def close(self) -> None:
        """End all workers, whatever they do; none is left, not even as a zombie."""
        for worker in self._workers:
            worker.stop()
            worker.rows.clear()


class _Worker:
    """One process, the rows it has not answered yet, and when it must have answered the first of them."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.process: subprocess.Popen[bytes] | None = None
        self.rows: deque[int] = deque()
        self.deadline = 0.0
        self._ready = False
        self._buffer = b""
        self._finalizer: weakref.finalize | None = None

    @property
    def output(self) -> int:
        """The file descriptor that the replies come from."""
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, rows: Sequence[int], questions: Sequence[Question]) -> None:
        """Hand over rows; a process that has died since the last of them is replaced first."""
        self.launch()
        self._await_ready()
        self.rows.extend(rows)
        message = json.dumps(questions).encode() + b"\n"
        try:
            self._write(message)
        except BrokenPipeError:  # it died just now, before it read a row: none of them is to blame
            self.stop()
        self.deadline = time.monotonic() + self.limit_s

    def take(self) -> list[tuple[int, Reply]]:
        """The replies that have come. If the process has died, the row it was at is unknown."""
        data = os.read(self.output, 1 << 16)
        if not data:
            return [self.give_up("")]
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.deadline = time.monotonic() + self.limit_s
        return [(self.rows.popleft(), Reply(*json.loads(line))) for line in lines]

    def give_up(self, why: str) -> tuple[int, Reply]:
        """End the process; the row it was at is unknown, the rows behind that one stay in ``rows``."""
        code = self.stop()
        if not why:
            alarm = code == -signal.SIGALRM
            why = "time limit: the process ended itself" if alarm else f"{DIED}: {_exit_text(code)}"
        return self.rows.popleft(), Reply("unknown", why)

    def stop(self) -> int:
        """Kill and reap the process; its exit code."""
        process, self.process, self._buffer = self.process, None, b""
        if self._finalizer is not None:
            self._finalizer.detach()
        return 0 if process is None else _kill(process)

    def launch(self) -> None:
        """Start the process if there is none alive; it takes about a second to be ready."""
        if self.process is not None and self.process.poll() is None:
            return
        self.stop()
        command = [sys.executable, "-P", "-m", "covrl.rewards.math_worker", f"{self.limit_s + 1.0}"]
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self._finalizer = weakref.finalize(self, _kill, self.process)
        self._ready = False

    def _await_ready(self) -> None:
        if self._ready:
            return
        said = self._first_line()
        if said[:1] != ["ready"]:
            self.stop()
            raise UserError(f"the math verifier cannot start: {' '.join(said[1:]) or 'its process ended at once'}")
        self._ready = True

    def _first_line(self) -> list[str]:
        deadline = time.monotonic() + START_LIMIT_S
        said = b""
        while not said.endswith(b"\n"):
            if not wait([self.output], max(0.0, deadline - time.monotonic())):
                return ["error", f"no answer within {START_LIMIT_S:g} s"]
            data = os.read(self.output, 1 << 16)
            if not data:
                return ["error"]
            said += data
        return json.loads(said)

    def _write(self, message: bytes) -> None:
        """Write without ever waiting for a stopped process for longer than its limit."""
        assert self.process is not None
        assert self.process.stdin is not None
        pipe = self.process.stdin.fileno()
        os.set_blocking(pipe, False)
        deadline = time.monotonic() + self.limit_s
        view = memoryview(message)
        while view and time.monotonic() < deadline:
            try:
                view = view[os.write(pipe, view) :]
            except BlockingIOError:
                time.sleep(0.001)


def _kill(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return code


def _exit_text(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


# What follows runs in the worker.


def main(alarm_s: float) -> None:
    """Answer rows until standard input ends."""
    out = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may get between the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt of the command line is the caller's to handle
    _limit_resources()
    try:
        judge = _judge_with_math_verify()
    except Exception as error:
        _say(out, ["error", f"{error}; math-verify 0.9 is needed: pip install 'math-verify>=0.9,<0.10'"])
        return
    _say(out, ["ready"])
    for line in sys.stdin:
        for references, answer in json.loads(line):
            # The default action of SIGALRM ends the process even while Python is inside one long multiplication.
            signal.setitimer(signal.ITIMER_REAL, alarm_s)
            reply = judge(references, answer)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _say(out, reply)


def _say(out: int, what: Sequence[str]) -> None:
    os.write(out, json.dumps(what).encode() + b"\n")


def _limit_resources() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    bound = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, MEMORY_BYTES)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    except (ValueError, OSError):  # macOS refuses; the time limit still holds
        return


def _judge_with_math_verify() -> Any:
    """Set math-verify up; the function (references, answer) -> reply."""
    import logging

    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, grader, parse, verify

    logging.disable(logging.CRITICAL)
    # Units are off: theirs cut a final t, m or d off formulas. Our text side has split units off already.
    reading = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=reading)]
    failures = _record_failures(grader)

    @lru_cache(maxsize=4096)
    def read(latex: str) -> Any:
        # One box around the whole text and only the first match: it is read as a whole or not at all, never searched.
        found = parse(
            f"\\boxed{{{latex}}}",
            config,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=0,  # none: the alarm in their parser cannot end what holds Python up, ours can
            raise_on_error=True,
        )
        return found[0] if found else None

    def same(reference: Any, answer: Any) -> bool:
        return (
            not _differ(reference, answer)
            and verify([reference], [answer], allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True)
            and _close_enough(reference, answer)
        )

    def judge(references: Sequence[str], answer: str) -> Reply:
        doubts: list[str] = []
        said = _attempt(lambda: read(answer), "answer not mathematics", doubts)
        for reference in references if not doubts else ():
            expected = _attempt(lambda r=reference: read(r), "reference not mathematics", doubts)
            if expected is None:
                continue
            failures.clear()
            equal = _attempt(lambda e=expected: same(e, said), "comparison failed", doubts)
            if equal:
                return Reply("right", "equal as mathematics")
            if failures:
                doubts.append(f"comparison failed: {failures[0]}")
        return Reply("unknown", doubts[0]) if doubts else Reply("wrong", "not equal as mathematics")

    return judge


def _attempt(action: Any, doing: str, doubts: list[str]) -> Any:
    """What ``action`` returns; None, and a doubt noted, if it fails or returns None."""
    try:
        value = action()
    except Exception as error:  # sympy raises anything at all; RecursionError and MemoryError among it
        doubts.append(f"{doing}: {type(error).__name__}")
        return None
    if value is None:
        doubts.append(f"{doing}: math-verify cannot read it")
    return value


def _record_failures(grader: Any) -> list[str]:
    """math-verify takes a simplification that fails for "not equal"; the list gets the failures' names instead."""
    failures: list[str] = []
    simplify = grader.simplify

    def recording(*args: Any, **settings: Any) -> Any:
        try:
            return simplify(*args, **settings)
        except (RecursionError, MemoryError, ArithmeticError, NotImplementedError) as error:
            failures.append(type(error).__name__)
            raise

    grader.simplify = recording
    return failures


def _differ(reference: Any, answer: Any) -> bool:
    """Whether two formulas have clearly different values at one point: then they are not equal, and nothing need be
    simplified to find out, which is what takes long. False where that cannot be told.
    """
    from sympy import Expr, Integral, Limit, Product, Sum, Symbol, UnevaluatedExpr
    from sympy.core.function import AppliedUndef

    for side in (reference, answer):
        if not isinstance(side, Expr) or isinstance(side, Symbol):
            return False
        if side.has(Integral, Limit, Product, Sum, AppliedUndef, UnevaluatedExpr):
            return False
    symbols = sorted(reference.free_symbols | answer.free_symbols, key=str)
    point = {s: 0.7 + 0.37 * i for i, s in enumerate(symbols)}
    try:
        a, b = complex(reference.subs(point)), complex(answer.subs(point))
    except (TypeError, ValueError, ArithmeticError):
        return False
    return abs(a - b) > DIFFERENCE * max(abs(a), abs(b))


def _close_enough(reference: Any, answer: Any) -> bool:
    """Whether two numbers of which one is a decimal agree relative to their size; True for all other pairs."""
    from sympy import Float

    if not (getattr(reference, "is_number", False) and getattr(answer, "is_number", False)):
        return True
    if not (reference.has(Float) or answer.has(Float)):
        return True
    if "1/100" in f"{reference} {answer}":  # per cent: 5% is accepted as 5 and as 0.05
        return True
    try:
        a, b = complex(reference), complex(answer)
    except (TypeError, ValueError, OverflowError):
        return True
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


if __name__ == "__main__":
    main(float(sys.argv[1]))
