"""The last message of a process that may be one of several under torchrun: a common message is printed once."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time
import traceback
from typing import NoReturn

from covrl.reporting.text import message, visible
from covrl.secrets import redacted

LET_FIRST_SPEAK = 0.3
"""Seconds that the other ranks wait, so that of equal messages it is rank 0's that is printed."""


def several() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process prints and writes: it is alone, or the first of those that torchrun started."""
    return not several() or os.environ.get("RANK", "0") == "0"


def write_any_text() -> None:
    """Let output go out as UTF-8 to a file or a pipe, for which Windows takes a code page that lacks λ and ≥.

    A terminal keeps its encoding; a sign that it lacks is spelt as in Python's strings.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def end(text: str, code: int) -> NoReturn:
    """Print one line on standard error, unless another process of this torchrun has printed it, and exit.

    The text may quote a file, a model or another package: it is printed without control characters and secrets.
    """
    text = message(text)
    rank = int(os.environ.get("RANK", "0")) if several() else 0
    if rank:
        time.sleep(LET_FIRST_SPEAK)
    if not several() or _first_to_say(text):
        print(f"covrl (rank {rank}): {text}" if rank else f"covrl: {text}", file=sys.stderr, flush=True)
    sys.exit(code)


def crash(error: BaseException) -> NoReturn:
    """Print the traceback of an unexpected error, without control characters and secrets, and exit with 1."""
    text = "".join(traceback.format_exception(error))
    print(visible(redacted(text)), end="", file=sys.stderr, flush=True)
    sys.exit(1)


def _first_to_say(text: str) -> bool:
    """The processes count in torchrun's own store; if it cannot be reached, each prints its message."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from datetime import timedelta

    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"covrl/said/{attempt}/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
