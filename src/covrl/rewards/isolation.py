"""One program in a process of its own: isolated by bubblewrap, under limits of the system.

bubblewrap (https://github.com/containers/bubblewrap) gives it namespaces of its own: it sees Python and the system's
libraries, which it cannot change, and an empty folder in memory; no other file, no other process and no network. The
limits are set by the worker (:mod:`covrl.rewards.code_sandbox`).

Whether this works depends on the kernel, the container and the user, so a planted program that tries to get out proves
it first (:func:`fault`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FILE_BYTES = 1 << 20
"""What one file of a program may hold."""
FOLDER_BYTES = 64 << 20
"""What all files of an isolated program may hold; they are in memory."""

_NOBODY = 65534
_FOLDER = "/tmp/covrl-program"
_ENVIRONMENT = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_WORKER = Path(__file__).with_name("code_sandbox.py")
_LIBRARIES = ("/usr", "/bin", "/lib", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")


class Ran(NamedTuple):
    """How a program ended.

    ``code`` is the exit code, negative for a signal, None if the program was killed after the limit on the clock.
    ``reply`` is what stands in the place of the runner's reply. ``complaint`` is the last line that bubblewrap or
    Python wrote before the program began, which cannot write there.
    """

    code: int | None
    reply: Mapping[str, Any]
    token: str
    complaint: str

    @property
    def passed(self) -> bool:
        """Whether all tests have run through, for only then does the runner give the token back."""
        return self.reply.get("passed") == self.token


def clock_limit(seconds: float) -> float:
    """The limit in wall seconds for a program's limit in seconds of processor time."""
    return 2 * seconds + 2


def run_program(program: str, tests: Sequence[str], seconds: float, memory: int, isolated: bool = True) -> Ran:
    """Run a program and its tests. ``seconds`` of processor time are rounded up to whole ones; ``memory`` is in bytes.

    Without ``isolated`` it may do whatever the user may, within the limits.
    """
    token = secrets.token_hex(16)
    user = _NOBODY if isolated and os.getuid() == 0 else None
    job = {"program": program, "tests": list(tests), "token": token, "user": user}
    job |= {"cpu_ms": round(seconds * 1000), "memory": memory, "file_size": FILE_BYTES}
    with (
        tempfile.TemporaryDirectory(prefix="covrl-code-") as folder,
        tempfile.TemporaryFile() as task,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        task.write(json.dumps(job).encode())
        task.seek(0)
        command = [*(_bubblewrap() if isolated else ()), sys.executable, "-I", "-B", str(_WORKER)]
        home = dict.fromkeys(("HOME", "TMPDIR"), _FOLDER if isolated else folder)
        streams = {"stdin": task, "stdout": output, "stderr": errors}
        code = _exit_code(command, clock_limit(seconds), cwd=folder, env=home | _ENVIRONMENT, **streams)
        output.seek(0)
        errors.seek(0)
        try:
            said = json.loads(output.read(1 << 16))
        except (ValueError, RecursionError):
            said = {}
        complaint = errors.read(1 << 16).decode(errors="replace").strip().rpartition("\n")[2]
    return Ran(code, said if isinstance(said, dict) else {}, token, complaint)


def _exit_code(command: Sequence[str], limit_s: float, **how: Any) -> int | None:
    """The exit code of a command, as in :class:`Ran`; its group of processes ends with it."""
    with subprocess.Popen(command, start_new_session=True, **how) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
    return code if code <= 128 else 128 - code  # bubblewrap tells of a signal as shells do


def _bubblewrap() -> list[str]:
    """The command that isolates the command after it.

    Root makes the namespaces as root, which the worker then gives up, since no limit on processes holds for root;
    anybody else needs a namespace of users. ``/proc`` is left out: containers often do not let one mount it.
    """
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    root = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    user = root if os.getuid() == 0 else ["--unshare-user"]
    folder = ["--perms", "1777", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp"]
    folder += ["--perms", "1777", "--dir", _FOLDER, "--chdir", _FOLDER]  # /tmp itself may hold Python's folders
    shown = dict.fromkeys((*_LIBRARIES, sys.base_prefix, sys.prefix, str(_WORKER)), "--ro-bind-try")
    shown |= dict.fromkeys(("/dev/null", "/dev/urandom"), "--dev-bind")
    above = {str(parent): None for path in shown for parent in reversed(Path(path).parents)}
    places = [part for path in above for part in ("--dir", path)]  # else nobody but root could pass them
    places += [part for path, how in shown.items() for part in (how, path, path)]
    ends = ["--new-session", "--die-with-parent"]
    return [shutil.which("bwrap") or "bwrap", *spaces, *user, *ends, *folder, *places, "--remount-ro", "/"]


@cache
def fault() -> str:
    """Why programs cannot be isolated here; empty if they can, which is proved once per process."""
    if not sys.platform.startswith("linux"):
        return "bubblewrap is for Linux"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret = os.path.join(folder, "secret")
        Path(secret).touch()
        os.chmod(folder, 0o755)  # nothing but the isolation protects it
        os.chmod(secret, 0o666)
        escapes = {
            "writes a file outside its folder": f"open({secret!r}, 'w')",
            "reads a file outside its folder": f"open({secret!r})",
            "changes Python's own files": "import sys, tempfile; tempfile.TemporaryFile(dir=sys.prefix)",
            "reaches the network": f"import socket; socket.create_connection({server.getsockname()}, 1)",
            "sees other processes": "import os; os.kill(-1, 0)",  # asks for any, and sends nothing
            "starts a process": "import os; os.fork() or os._exit(0)",
        }
        tests = [
            f"try:\n    {each}\nexcept OSError:\n    pass\nelse:\n    raise AssertionError" for each in escapes.values()
        ]
        ran = run_program("open('notes', 'w').write('x')", tests, 5.0, 1 << 30)
    if ran.passed:
        return ""
    if reached := re.fullmatch(r"test (\d+) ended with AssertionError", str(ran.reply.get("why"))):
        return f"a program in bubblewrap {list(escapes)[int(reached[1]) - 1]}"
    return f"bubblewrap does not run Python: {ran.complaint or ran.reply.get('why') or f'exit code {ran.code}'}"
