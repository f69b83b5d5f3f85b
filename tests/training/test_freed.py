"""Memory that was freed goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from covrl.training import freed
from covrl.training.freed import WORTH, give_back_freed

PIECE = 2**19  # bytes, which the C library takes from its heap
STATM = Path("/proc/self/statm")


def resident() -> int:
    return int(STATM.read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux" or freed._glibc() is None, reason="another C library than glibc")
def test_what_lies_in_holes_goes_back_to_the_system() -> None:
    pieces = [torch.ones(PIECE // 4) for _ in range(3 * WORTH // PIECE)]
    before = resident()
    held = pieces[::16]  # so that the heap's end is in use
    del pieces
    assert resident() > before - WORTH
    give_back_freed()
    assert resident() < before - 2 * WORTH
    assert all(bool((piece == 1).all()) for piece in held)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    freed._glibc.cache_clear()

    def no_library(_: object) -> None:
        raise OSError

    monkeypatch.setattr(freed.ctypes, "CDLL", no_library)
    try:
        give_back_freed()
        assert freed._glibc() is None
    finally:
        freed._glibc.cache_clear()
