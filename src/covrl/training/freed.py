"""Memory of the CPU that was freed and that the C library holds."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

WORTH = 2**29
"""Freed bytes that are worth giving back: small runs never have so many."""


class _Counts(ctypes.Structure):
    """glibc's ``struct mallinfo2``; ``fordblks`` are the bytes that are freed and held."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    )


def give_back_freed() -> None:
    """Give the system what glibc holds, if that is much; nothing where there is another C library.

    A pass leaves holes between what is still held. The next one, whose tensors have other sizes, takes new memory
    besides: steps of SmolLM2-135M grew by a gigabyte that way.
    """
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > WORTH:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, if it has what is asked of it (glibc from 2.33 on)."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Counts
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, TypeError, AttributeError):
        return None
    return library
