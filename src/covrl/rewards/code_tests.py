"""Unit tests as a reward: the last python block of a response, run with the problem's tests in a process of its own.

The tests are ``problem.accepted``, each a piece of Python that raises if the program is wrong; ``problem.answer``
where ``accepted`` is empty. docs/verifiers.md describes what the process is prevented from: it protects from
accidents and simple cheating, not from an attacker.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from covrl.errors import UserError
from covrl.records import Problem
from covrl.rewards.extract import after_thought
from covrl.rewards.judgement import Judgement
from covrl.rewards.workers import Reply

HOW = "python_block"
MAX_PROGRAM_CHARS = 100_000
FILE_BYTES = 1 << 20
HANGS_PER_CALL = 8
HURRIED_S = 1.0

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*$", re.MULTILINE)
_SANDBOX = Path(__file__).with_name("code_sandbox.py")


def last_python_block(text: str) -> str | None:
    """The content of the last closed block that is marked python (or py, python3); None if there is none."""
    found: str | None = None
    opened: tuple[str, int] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence.group(1).lower(), fence.end() + 1
        elif not fence.group(1):
            language, start = opened
            if language in {"python", "py", "python3"} and text[start : fence.start()].strip():
                found = text[start : fence.start()]
            opened = None
        else:  # a fence with a language inside a block: the block before was never closed
            opened = fence.group(1).lower(), fence.end() + 1
    return found


@dataclass(slots=True)
class CodeWork:
    """Counts since the verifier was made: programs, programs that hung, programs that got less time because of
    these."""

    ran: int = 0
    hung: int = 0
    hurried: int = 0


class CodeVerifier:
    """Right if all tests pass, wrong if one fails or the program crashes or uses up its seconds.

    ``seconds`` are of processor time; a program that has not used them up after :func:`clock_limit` is unknown, because
    the machine may be the cause. Equal programs with equal tests run once per call. After eight programs of a call have
    hung, the others have one second each, and are unknown if that is too short. POSIX only.

    Raises:
        UserError: the platform has no resource limits.
    """

    def __init__(self, seconds: float = 4.0, memory_mb: float = 1024.0, workers: int | None = None) -> None:
        if os.name != "posix":
            raise UserError("the verifier code needs a POSIX system: it runs programs under resource limits")
        self.seconds, self.memory = seconds, int(memory_mb * (1 << 20))
        self.work = CodeWork()
        self._count = min(2, os.cpu_count() or 1) if workers is None else workers

    def __call__(self, problem: Problem, response: str) -> Judgement:
        return self.judge_all([(problem, response)])[0]

    def judge_all(self, rows: Sequence[tuple[Problem, str]]) -> list[Judgement]:
        """One judgement per row, in order; a few processes at a time."""
        programs = [last_python_block(after_thought(response)) for _, response in rows]
        tests = [problem.accepted or (problem.answer,) for problem, _ in rows]
        refused = [_refusal(p, t) for p, t in zip(programs, tests, strict=True)]
        jobs = {(p, t): None for p, t, no in zip(programs, tests, refused, strict=True) if p is not None and no is None}
        before = self.work.hung
        with ThreadPoolExecutor(self._count) as pool:
            replies = dict(zip(jobs, pool.map(lambda job: self._judge(*job, before), jobs), strict=True))
        return [
            _no_program() if p is None else _judgement(p, no or replies[p, t])
            for p, t, no in zip(programs, tests, refused, strict=True)
        ]

    def _judge(self, program: str, tests: tuple[str, ...], hung_before: int) -> Reply:
        hurried = self.work.hung - hung_before >= HANGS_PER_CALL and self.seconds > HURRIED_S
        seconds = HURRIED_S if hurried else self.seconds
        self.work.ran += 1
        self.work.hurried += hurried
        code, said, token, used = run_program(program, tests, seconds, self.memory)
        if code == -signal.SIGKILL and used < seconds:  # for instance, the system ran out of memory
            return Reply("unknown", f"killed: after {used:.1f} s of processor time, not by its limits")
        if code is None or code in {-signal.SIGXCPU, -signal.SIGKILL}:
            self.work.hung += 1
            if hurried:
                return Reply("unknown", f"time limit: {seconds:g} s, as {HANGS_PER_CALL} programs of the call had hung")
            if code is None:
                return Reply("unknown", f"time limit: not finished after {clock_limit(seconds):g} s on the clock")
            return Reply("wrong", f"did not finish: {seconds:g} s of processor time")
        if said.get("passed") == token:
            return Reply("right", "all tests passed")
        why = str(said.get("why") or "")[:200]
        if said.get("hidden"):
            return Reply("unknown", f"tests use a name of Python's own that the program defines: {why}")
        return Reply("wrong", f"tests failed: {why or 'the program ended before them'}")


def _judgement(program: str, reply: Reply) -> Judgement:
    return Judgement(reply.verdict, program, reply.why, HOW)


def _no_program() -> Judgement:
    return Judgement("unknown", None, "no answer found: looked for a ```python block")


def _refusal(program: str | None, tests: tuple[str, ...]) -> Reply | None:
    if program is not None and len(program) > MAX_PROGRAM_CHARS:
        return Reply("unknown", f"program too long: more than {MAX_PROGRAM_CHARS:,} characters")
    wrong = _tests_wrong(tests)
    return Reply("unknown", f"no tests: {wrong}") if wrong else None


@lru_cache(maxsize=4096)
def _tests_wrong(tests: tuple[str, ...]) -> str:
    """Why these are not valid tests; empty if they are."""
    try:
        bodies = [ast.parse(test).body for test in tests]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"not Python ({type(error).__name__})"
    return "" if any(bodies) else "nothing to run"


def clock_limit(seconds: float) -> float:
    """The limit in wall seconds for a program's limit in seconds of processor time."""
    return 2 * seconds + 2


def run_program(
    program: str, tests: Sequence[str], seconds: float, memory: int
) -> tuple[int | None, dict[str, object], str, float]:
    """Run both in the sandbox: exit code (None: over the wall limit), its output, the token, processor seconds.

    A reply with the token means that the tests passed. ``seconds`` is rounded up to whole ones for the
    processor's clock; ``memory`` is in bytes.
    """
    token = secrets.token_hex(16)
    job = {"program": program, "tests": list(tests), "token": token, "cpu_ms": round(seconds * 1000), "memory": memory}
    job["file_size"] = FILE_BYTES
    with (
        tempfile.TemporaryDirectory(prefix="covrl-code-") as folder,
        tempfile.TemporaryFile() as task,
        tempfile.TemporaryFile() as output,
    ):
        task.write(json.dumps(job).encode())
        task.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_SANDBOX)],
            stdin=task,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": folder},
            start_new_session=True,
        )
        code, used = _end_of(process, clock_limit(seconds))
        output.seek(0)
        try:
            said = json.loads(output.read(1 << 16))
        except (ValueError, RecursionError):
            said = {}
    return code, said if isinstance(said, dict) else {}, token, used


def _end_of(process: subprocess.Popen[bytes], limit_s: float) -> tuple[int | None, float]:
    """Wait for the process, and kill it and its group after ``limit_s``: its exit code (None: killed here), and the
    seconds of processor time that it used.
    """
    deadline, delay, code = time.monotonic() + limit_s, 0.0005, None
    try:
        while code is None and time.monotonic() < deadline:
            code, used = _reaped(process, os.WNOHANG)
            if code is None:
                delay = min(2 * delay, 0.05)
                time.sleep(delay)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        if code is None:
            os.kill(process.pid, signal.SIGKILL)  # Popen.kill would poll, and so reap it without its processor time
            used = _reaped(process, 0)[1]
    return code, used


def _reaped(process: subprocess.Popen[bytes], options: int) -> tuple[int | None, float]:
    """``Popen.wait`` that also returns the processor time, which is known only when a process is reaped."""
    pid, status, usage = os.wait4(process.pid, options)
    if pid == 0:
        return None, 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime
