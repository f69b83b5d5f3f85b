"""Unit tests as a reward: the last python block of a response, run with the problem's tests in a process of its own.

The tests are ``problem.accepted``, each a piece of Python that raises if the program is wrong; ``problem.answer``
where ``accepted`` is empty. :mod:`covrl.rewards.isolation` keeps the process from all else on the machine.
"""

from __future__ import annotations

import ast
import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from covrl.errors import UserError
from covrl.records import Problem
from covrl.rewards.extract import after_thought
from covrl.rewards.isolation import clock_limit, fault, run_program
from covrl.rewards.judgement import Judgement
from covrl.rewards.names import parse_name
from covrl.rewards.workers import Reply

HOW = "python_block"
MAX_PROGRAM_CHARS = 100_000
HANGS_PER_CALL = 8
HURRIED_S = 1.0

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*$", re.MULTILINE)


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


def isolation_notes(*names: str) -> list[str]:
    """What is to be said if one of the verifiers of these names runs programs without isolation."""
    allowed = any(name.startswith("code,") and parse_name(name).values["allow_unisolated"] for name in names)
    return [f"programs of the verifier code run under limits only: {fault()}"] if allowed and fault() else []


class CodeVerifier:
    """Right if all tests pass, wrong if one fails or the program crashes or uses up its seconds.

    ``seconds`` are of processor time; a program that has not used them up after :func:`clock_limit` is unknown, because
    the machine may be the cause. Equal programs with equal tests run once per call. After eight programs of a call have
    hung, the others have one second each, and are unknown if that is too short. Where programs cannot be isolated,
    ``allow_unisolated`` runs them with limits only. POSIX only.

    Raises:
        UserError: programs cannot be isolated here, or the platform has no resource limits.
    """

    def __init__(
        self,
        seconds: float = 4.0,
        memory_mb: float = 1024.0,
        allow_unisolated: bool = False,
        workers: int | None = None,
    ) -> None:
        if os.name != "posix":
            raise UserError("the verifier code needs a POSIX system: it runs programs under resource limits")
        self.isolated = not fault()
        if not self.isolated and not allow_unisolated:
            raise UserError(
                f"the verifier code cannot isolate the programs that it runs: {fault()}; see docs/verifiers.md, or "
                "allow limits only: code,allow_unisolated=1"
            )
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
        ran = run_program(program, tests, seconds, self.memory, self.isolated)
        if ran.code in {None, -signal.SIGXCPU, -signal.SIGKILL}:
            self.work.hung += 1
            if hurried:
                return Reply("unknown", f"time limit: {seconds:g} s, as {HANGS_PER_CALL} programs of the call had hung")
            if ran.code is None:
                return Reply("unknown", f"time limit: not finished after {clock_limit(seconds):g} s on the clock")
            if ran.code == -signal.SIGKILL:
                return Reply("unknown", "killed: by the system, for memory or after it ignored its limit on time")
            return Reply("wrong", f"did not finish: {seconds:g} s of processor time")
        if ran.passed:
            return Reply("right", "all tests passed")
        if ran.complaint and not ran.reply:
            return Reply("unknown", f"not run: {ran.complaint[:200]}")
        why = str(ran.reply.get("why") or "")[:200]
        if ran.reply.get("hidden"):
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
