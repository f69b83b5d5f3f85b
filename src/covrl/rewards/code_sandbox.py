"""The worker of the verifier ``code``: one program and its tests, in a process of their own.

Run as a file by ``python -I``; imports nothing of covrl. Standard input: one JSON job. Standard output: one JSON reply.
What this prevents and what not: docs/verifiers.md. The audit hook is inside the program's own interpreter, so a program
can circumvent it on purpose; the limits of the system cannot be circumvented.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import json
import os
import re
import resource
import struct
import sys
import types
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_LANDLOCK = 444  # the first of its three calls; the numbers are the same on all machines
_LANDLOCK_CHANGES = 0b1_1111_1111_0010  # write a file, remove and make entries of all kinds; not: execute, read
_LANDLOCK_WRITE = 1 << 1
_LANDLOCK_MOVE, _LANDLOCK_TRUNCATE = 1 << 13, 1 << 14
_REFUSED = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.kill",
    "pty.spawn",
    "ctypes.dlopen",
    "ctypes.dlsym",
    "ctypes.call_function",
    "signal.pthread_kill",
    "syslog.",
    "webbrowser.",
    "gc.get_",
    "ftplib.",
    "smtplib.",
    "urllib.",
    "http.client.",
)
_NONE = 99  # no such argument
_CHANGES = {  # event: places of the path and of its open folder among the arguments
    "os.chflags": [(0, _NONE)],
    "os.chmod": [(0, 2)],
    "os.chown": [(0, 3)],
    "os.link": [(0, 2), (1, 3)],
    "os.mkdir": [(0, 2)],
    "os.remove": [(0, 1)],
    "os.removexattr": [(0, _NONE)],
    "os.rename": [(0, 2), (1, 3)],
    "os.rmdir": [(0, 1)],
    "os.setxattr": [(0, _NONE)],
    "os.symlink": [(1, 2)],
    "os.truncate": [(0, _NONE)],
    "os.utime": [(0, 3)],
}
_AF_UNIX = 1
_PYTHONS_OWN = frozenset(kind for kind in vars(builtins).values() if isinstance(kind, type))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Do the job: limits first, then the program, then the tests."""
    job = json.loads(sys.stdin.read())
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    _leave_the_network()
    _keep_files(os.getcwd())
    _limit(job)
    _guard(os.path.realpath(os.getcwd()))
    why, hidden = _run(job["program"], job["tests"])
    reply = {"passed": job["token"] if why is None else "", "why": why or "", "hidden": hidden}
    os.write(out, json.dumps(reply).encode())
    os._exit(0)


def _leave_the_network() -> bool:
    """An empty network namespace, if the system allows users to make one."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
        return unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0
    except (AttributeError, OSError):  # no such call: not Linux
        return False


def _keep_files(folder: str) -> bool:
    """Landlock: from now on the kernel lets this process change files below ``folder`` only; reading stays allowed.

    False if the system does not have it (it came with Linux 5.13, and may be switched off).
    """
    try:
        library = ctypes.CDLL(None, use_errno=True)
        call, prctl = library.syscall, library.prctl
    except (AttributeError, OSError):
        return False
    if not sys.platform.startswith("linux"):
        return False
    call.restype = ctypes.c_long
    version = call(ctypes.c_long(_LANDLOCK), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    truncate = _LANDLOCK_TRUNCATE if version >= 3 else 0
    changes = _LANDLOCK_CHANGES | (_LANDLOCK_MOVE if version >= 2 else 0) | truncate
    rules = struct.pack("Q", changes)
    handle = call(ctypes.c_long(_LANDLOCK), rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0))
    if handle < 0:
        return False
    for path, allowed in ((folder, changes), (os.devnull, _LANDLOCK_WRITE | truncate)):
        place = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", allowed, place)
        call(ctypes.c_long(_LANDLOCK + 1), ctypes.c_int(handle), ctypes.c_int(1), rule, ctypes.c_uint32(0))
        os.close(place)
    alone = prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS, without which the next call is refused
    kept = alone and call(ctypes.c_long(_LANDLOCK + 2), ctypes.c_int(handle), ctypes.c_uint32(0)) == 0
    os.close(handle)
    return kept


def _limit(job: dict[str, Any]) -> None:
    seconds = max(1, -(-int(job["cpu_ms"]) // 1000))
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, job["memory"], job["memory"]),
        (resource.RLIMIT_FSIZE, job["file_size"], job["file_size"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (getattr(resource, "RLIMIT_NPROC", None), 0, 0),
    ):
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (soft, hard))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS; the limits on time still hold
            continue


def _guard(folder: str) -> None:
    """Refuse, for the rest of the process, operations that no solution of a problem needs."""
    inside = folder + os.sep
    others = re.compile(rf"/proc/(?!{os.getpid()}/)\d+/")  # their environments may contain tokens

    def within(path: Any, directory: Any = -1) -> bool:
        if isinstance(path, int):
            return True  # an open file, which was checked when it was opened
        text = os.fsdecode(path)
        if isinstance(directory, int) and directory >= 0:  # relative to an open folder, as shutil.rmtree does it
            try:
                text = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), text)
            except OSError:
                return False
        return text == os.devnull or os.path.realpath(text).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        pair = (
            event == "socket.__new__" and arguments[1] == _AF_UNIX
        )  # used by asyncio to wake itself; connects to nothing
        if event.startswith(_REFUSED) and not pair:
            raise PermissionError(f"{event} is refused")
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITING) if isinstance(flags, int) else any(c in "wax+" for c in mode or "")
            if writes and not within(path):
                raise PermissionError("writing outside the working folder is refused")
            if not isinstance(path, int) and others.match(os.path.realpath(os.fsdecode(path))):
                raise PermissionError("reading about another process is refused")
        elif event in _CHANGES and not all(within(*pair) for pair in _paths(event, arguments)):
            raise PermissionError(f"{event} outside the working folder is refused")

    sys.addaudithook(hook)


def _paths(event: str, arguments: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The paths that a call changes, each with the open folder that it starts from, or -1."""
    at = _CHANGES[event]
    return [(arguments[path], arguments[folder] if folder < len(arguments) else -1) for path, folder in at]


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
