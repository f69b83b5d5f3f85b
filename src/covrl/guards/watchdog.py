"""Ends a process whose step hangs, with the stacks of all its threads.

``faulthandler`` keeps the time and writes the stacks from a thread of its own that needs no interpreter lock, so it
works while the main thread hangs in C. It can write to one file only; that file is a pipe to a child process (this
file run as a script), which copies what comes to standard error and to a file in the run's folder, and says the
last line. The child lives as long as the run: it ends when the pipe is closed.
"""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

STEP = b"covrl step "
"""How a line in the pipe begins that says which step is watched; anything else is a stack."""


class Watchdog:
    """From :meth:`arm` on, the process has ``seconds`` until the next :meth:`arm`, or :meth:`disarm`.

    Else it ends with exit code 1, the stacks being in ``hung-PID.txt`` under ``folder`` (the present folder if there
    is none) and on standard error. There is one such timer in a process, as ``faulthandler`` has only one.
    """

    def __init__(self, seconds: float, folder: Path | None) -> None:
        self.seconds = seconds
        self.folder = folder or Path()
        self._child: subprocess.Popen[bytes] | None = None

    def arm(self, step: int) -> None:
        """Start the time for ``step``; the child is started on the first call, and again if it was killed."""
        faulthandler.cancel_dump_traceback_later()
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-I", __file__, str(self.folder.resolve()), repr(self.seconds)]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        pipe = self._child.stdin
        assert pipe is not None
        pipe.write(STEP + str(step).encode() + b"\n")
        pipe.flush()
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=pipe)

    def disarm(self) -> None:
        """Stop the time and let the child end."""
        faulthandler.cancel_dump_traceback_later()
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            self._child.wait()
            self._child = None


def relay(pipe: BinaryIO, folder: Path, seconds: float, parent: int) -> None:
    """Copy the stacks in ``pipe`` to standard error and a file; without any, do nothing."""
    step, file, path = "?", None, folder / f"hung-{parent}.txt"
    for line in pipe:
        if file is None and line.startswith(STEP):
            step = line.removeprefix(STEP).decode().strip()
            continue
        if file is None:
            file = path.open("wb")
            head = f"step {step} was not done after {seconds:g} s; all threads at {time.strftime('%F %T')}:\n"
            file.write(head.encode())
            sys.stderr.write("\n" + head)
        file.write(line)
        sys.stderr.write(line.decode(errors="replace"))
    if file is not None:
        file.close()
        print(
            f"covrl: step {step} hung: it was not done after guards.step_deadline_s = {seconds:g}; the stacks of all "
            f"threads are in {path}; covrl train --resume goes on from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    import os

    relay(sys.stdin.buffer, Path(sys.argv[1]), float(sys.argv[2]), os.getppid())
