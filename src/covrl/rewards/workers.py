"""Worker processes that can be killed, for verifiers that hostile answers can hang or crash: both sides of the pipe.

A row that hangs, fills the memory or crashes ends its own process and affects no other row. A process is a plain
program (no ``multiprocessing``), so it never imports the caller's main module; it ends when its standard input ends,
and an alarm outside of Python's control ends it in the middle of a hung row, so that no process outlives its caller.
Windows has no such alarms, and cannot wait for several pipes at once: there is none of this there.

Lines of JSON. To the worker: a list of questions. From it: ``["ready"]`` once, then ``[verdict, why]`` per question, in
order, each as soon as it is known; ``["error", message]`` if the caller's settings are wrong.

The cost of a burst of hostile rows is bounded: in one call at most ``ENDS_PER_CALL`` processes are ended by their rows.
Rows that still wait after that are unknown, with this reason. Rows that look expensive are judged last, so that these
are mostly the hostile ones, and a row that has hung is remembered and not tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from covrl.errors import UserError
from covrl.records import Verdict
from covrl.secrets import environment_without_secrets

DIED = "worker died"
OVERDUE = "time limit"
ROWS_PER_MESSAGE = 16
ENDS_PER_CALL = 8
REMEMBERED = 4096
START_LIMIT_S = 120.0
MEMORY_BYTES = 4 << 30


class Reply(NamedTuple):
    """The result of a question."""

    verdict: Verdict
    why: str


NOT_TRIED = Reply("unknown", f"not tried: {ENDS_PER_CALL} rows of the same call had ended workers")


@dataclass(slots=True)
class Work:
    """Counts of the workers' work since they were made, which show the cost of hostile rows."""

    asked: int = 0
    started: int = 0
    ended: int = 0
    not_tried: int = 0


class Workers:
    """A few worker processes; each row has ``limit_s`` seconds, and ends at most its own process.

    Processes start with the first question and are started again when they were killed or died. A row whose process
    died is tried once more, because something else may have killed it; a row that took too long is not. ``module`` is
    the worker's program, ``what`` names the verifier in messages. ``work`` counts what was done.

    Raises:
        UserError: the system has no such processes.
    """

    def __init__(self, count: int, limit_s: float, module: str, arguments: Sequence[str] = (), what: str = "") -> None:
        if os.name != "posix":
            raise UserError(
                f"the verifier {what} needs a POSIX system (Linux, macOS, WSL): it runs in processes with alarms; on "
                "Windows there are exact, text, numeric, choice and countdown"
            )
        self.work = Work()
        program = (module, f"{limit_s + 1.0}", *arguments)
        self._workers = [_Worker(limit_s, program, what, self.work) for _ in range(count)]
        self._hung: dict[bytes, Reply] = {}

    def ask(self, questions: Sequence[Any], dear: Callable[[Any], float] = lambda _: 0.0) -> list[Reply]:
        """One reply per question, in order; equal questions are asked once, the most expensive last.

        Raises:
            UserError: a worker cannot import what it needs, does not start, or rejects the settings.
        """
        keys = [hashlib.blake2b(json.dumps(q).encode(), digest_size=16).digest() for q in questions]
        replies = {k: self._hung[k] for k in keys if k in self._hung}
        new = {k: q for k, q in zip(keys, questions, strict=True) if k not in replies}
        order = sorted(new, key=lambda k: dear(new[k]))
        fresh = dict(zip(order, self._ask_all([new[k] for k in order]), strict=True))
        for key, reply in fresh.items():
            if reply.why.startswith((DIED, OVERDUE)):
                self._hung[key] = reply
                if len(self._hung) > REMEMBERED:
                    del self._hung[next(iter(self._hung))]
        replies |= fresh
        return [replies[k] for k in keys]

    def _ask_all(self, questions: Sequence[Any]) -> list[Reply]:
        self.work.asked += len(questions)
        replies: list[Reply | None] = [None] * len(questions)
        waiting = deque(range(len(questions)))
        tried: set[int] = set()
        before = self.work.ended
        try:
            for worker in self._workers[: -(-len(questions) // ROWS_PER_MESSAGE)]:
                worker.launch()  # all of them load at the same time
            while waiting or any(w.rows for w in self._workers):
                for worker in self._workers:
                    if waiting and not worker.rows:
                        chunk = [waiting.popleft() for _ in range(min(ROWS_PER_MESSAGE, len(waiting)))]
                        worker.give(chunk, [questions[i] for i in chunk])
                again: list[int] = []
                for row, reply in self._collect():
                    if reply.why.startswith(DIED) and row not in tried:  # the row need not be the cause
                        tried.add(row)
                        again.append(row)
                    else:
                        replies[row] = reply
                for worker in self._workers:
                    if worker.process is None:  # killed, or dead: the rows that it had not reached
                        waiting.extendleft(reversed(worker.rows))
                        worker.rows.clear()
                waiting.extendleft(again)
                if self.work.ended - before >= ENDS_PER_CALL:
                    self.work.not_tried += len(waiting)
                    for row in waiting:
                        replies[row] = NOT_TRIED
                    waiting.clear()
        except BaseException:  # an interrupt too: what is still in the pipes belongs to no later question
            self.close()
            raise
        return [r for r in replies if r is not None]

    def _collect(self) -> list[tuple[int, Reply]]:
        """Wait until a busy worker replies or is overdue; return its rows with their replies."""
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
                done.append(worker.give_up(f"{OVERDUE}: not decided within {worker.limit_s:g} s"))
        return done

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [w.process.pid for w in self._workers if w.process is not None and w.process.poll() is None]

    def close(self) -> None:
        """End all workers, whatever they do, and reap them."""
        for worker in self._workers:
            worker.stop()
            worker.rows.clear()


class _Worker:
    """One process, the rows it has not answered yet, and when it must have answered the first of them."""

    def __init__(self, limit_s: float, program: Sequence[str], what: str, work: Work) -> None:
        self.limit_s = limit_s
        self._program = tuple(program)
        self._what = what
        self._work = work
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

    def give(self, rows: Sequence[int], questions: Sequence[Any]) -> None:
        """Hand over rows; a process that has died since the last of them is replaced first."""
        self.launch()
        self._await_ready()
        self.rows.extend(rows)
        message = json.dumps(questions).encode() + b"\n"
        try:
            self._write(message)
        except BrokenPipeError:  # it died just now, before it read a row: no row is the cause
            self.stop()
        self.deadline = time.monotonic() + self.limit_s

    def take(self) -> list[tuple[int, Reply]]:
        """The replies so far. If the process has died, the row it was working on is unknown."""
        data = os.read(self.output, 1 << 16)
        if not data:
            return [self.give_up("")]
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.deadline = time.monotonic() + self.limit_s
        said = [json.loads(line) for line in lines]
        wrong = next((message for verdict, message in said if verdict == "error"), None)
        if wrong is not None:
            raise UserError(wrong)
        return [(self.rows.popleft(), Reply(*reply)) for reply in said]

    def give_up(self, why: str) -> tuple[int, Reply]:
        """End the process; the row it was working on is unknown, the rows after it stay in ``rows``."""
        code = self.stop()
        self._work.ended += 1
        if not why:
            alarm = code == -signal.SIGALRM
            why = f"{OVERDUE}: the process ended itself" if alarm else f"{DIED}: {_exit_text(code)}"
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
        command = [sys.executable, "-P", "-m", *self._program]
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**self._environment(), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self._work.started += 1
        self._finalizer = weakref.finalize(self, _kill, self.process)
        self._ready = False

    def _environment(self) -> dict[str, str]:
        """The environment: a user's own function may need a key; a parser of mathematics does not."""
        return dict(os.environ) if self._program[0].endswith(".user_worker") else environment_without_secrets()

    def _await_ready(self) -> None:
        if self._ready:
            return
        said = self._first_line()
        if said[:1] != ["ready"]:
            self.stop()
            why = " ".join(said[1:]) or "its process ended at once"
            raise UserError(f"the {self._what} verifier cannot start: {why}")
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
        """Write without waiting for a stopped process longer than its limit."""
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

Judge = Callable[[Any], Sequence[str]]
"""Question -> ``[verdict, why]``, or ``["error", message]``."""


def serve(make_judge: Callable[[], Judge], alarm_s: float, memory_bytes: int | None = MEMORY_BYTES) -> None:
    """Answer questions until standard input ends."""
    out = os.dup(1)
    os.dup2(2, 1)  # output of libraries must not be mixed with the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles an interrupt of the command line
    limit_resources(memory_bytes)
    try:
        judge = make_judge()
    except Exception as error:
        _say(out, ["error", str(error) or type(error).__name__])
        return
    _say(out, ["ready"])
    for line in sys.stdin:
        for question in json.loads(line):
            # The default action of SIGALRM ends the process even while Python is inside one long multiplication.
            signal.setitimer(signal.ITIMER_REAL, alarm_s)
            reply = judge(question)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _say(out, reply)


def _say(out: int, what: Sequence[str]) -> None:
    rest = json.dumps(what).encode() + b"\n"
    while rest:
        rest = rest[os.write(out, rest) :]


def limit_resources(memory_bytes: int | None) -> None:
    """No core dumps, and a limit on memory if the system supports it."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is None:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    bound = memory_bytes if hard == resource.RLIM_INFINITY else min(hard, memory_bytes)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    except (ValueError, OSError):  # macOS refuses it; the time limit still holds
        return
