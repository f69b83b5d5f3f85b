"""The worker of the verifier ``code``: one program and its tests, in a process of their own.

Run as a file by ``python -I``; imports nothing of covrl. Standard input: one JSON job. Standard output: one JSON reply.
Its caller isolates it (:mod:`covrl.rewards.isolation`); it sets the limits, and keeps the program from passing without
solving the problem. docs/verifiers.md describes what is prevented and what is not.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import resource
import sys
import types
from typing import Any

_PYTHONS_OWN = frozenset(kind for kind in vars(builtins).values() if isinstance(kind, type))


def main() -> None:
    """Do the job: limits first, then the program, then the tests."""
    job = json.loads(sys.stdin.read())
    if job["user"] is not None:
        _become(job["user"])
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    _limit(job)
    sys.addaudithook(_refuse_to_patch)
    why, hidden = _run(job["program"], job["tests"])
    reply = {"passed": job["token"] if why is None else "", "why": why or "", "hidden": hidden}
    os.write(out, json.dumps(reply).encode())
    os._exit(0)


def _become(user: int) -> None:
    """Give up root for good: the system's limit on processes does not hold for it."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _limit(job: dict[str, Any]) -> None:
    seconds = max(1, -(-int(job["cpu_ms"]) // 1000))
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, job["memory"], job["memory"]),
        (resource.RLIMIT_FSIZE, job["file_size"], job["file_size"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS; the limits on time still hold
            continue


def _refuse_to_patch(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook. Through the two modules a program could replace the runner's functions, or ``int.__eq__``."""
    if event.startswith(("gc.get_", "ctypes.")):
        raise ImportError(f"{event} is refused")  # not PermissionError: numpy can do without ctypes


def _run(program: str, tests: list[str]) -> tuple[str | None, list[str]]:
    """None if the program and all tests passed, else the reason; and Python's own names that the program
    defines, which the tests do not see.

    The tests have the program's names in a namespace of their own, with the builtins as they were, so that neither
    ``def all(x)`` nor ``builtins.all = …`` changes what a test means. The program is ``__main__``, which keeps this
    file's functions out of its way.
    """
    current = vars(builtins)
    kept = dict(current)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    error = _executed(program, "program", vars(main))
    if error is not None:
        return error, []
    current.clear()
    current.update(kept)
    names = {name: value for name, value in vars(main).items() if name not in kept and name != "__builtins__"}
    hidden = [name for name in vars(main) if name in kept and not name.startswith("__")]
    names |= {"__name__": "__main__", "__builtins__": dict(kept)}
    for number, test in enumerate(tests, 1):
        code_names = _names_in(test) if hidden else set()
        error = _executed(test, f"test {number}", names)
        if error is not None:
            return error, [name for name in hidden if name in code_names]
    return None, []


def _names_in(test: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}


def _executed(text: str, what: str, names: dict[str, Any]) -> str | None:
    try:
        exec(compile(text, what, "exec"), names)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: exiting early is no pass
        kind = type(error)  # a class of the program may have any name, such as text that it read in a file
        return f"{what} ended with {kind.__name__ if kind in _PYTHONS_OWN else 'an exception of its own'}"
    return None


if __name__ == "__main__":
    main()
