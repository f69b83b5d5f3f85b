"""How much memory the machine has for this process: of an accelerator, or main memory under the limits of its group."""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

UNLIMITED = 1 << 60
"""Bytes from which on a control group's limit is none: version 1 writes a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that this process may use in all, and bytes that nobody uses now. ``of`` says of what."""

    total: int
    free: int
    of: str = "main memory"


SHARED = "COVRL_SHARED_BY"
"""Environment variable of processes that are no one run: ``JOBS`` or ``JOBS:BYTES``. They share the machine, of whose
main memory so many bytes were free before the first of them began."""


def share_of(memory: Memory, device: torch.device, shared: str) -> Memory:
    """What one of several jobs may use, as :data:`SHARED` says; all of it where that is empty.

    What was free is what it was before the first job began: what the others hold by now is theirs, and two jobs that
    begin one after the other are to get the same.

    Example:
        >>> share_of(Memory(8000, 500), torch.device("cpu"), "2:6000")
        Memory(total=4000, free=3000, of='main memory for each of 2 jobs')
    """
    jobs, _, free = shared.partition(":")
    if not jobs.isdecimal() or int(jobs) < 2:
        return memory
    count = int(jobs)
    before = int(free) if free.isdecimal() and device.type == "cpu" else memory.total
    left = before // count if device.type == "cpu" else min(memory.free, memory.total // count)
    return Memory(memory.total // count, left, f"{memory.of} for each of {count} jobs")


def memory_of(device: torch.device, processes: int = 1, root: Path = Path("/")) -> Memory:
    """Memory where the model is. ``processes`` of this machine share main memory; an accelerator is a process's own.

    An accelerator whose memory torch cannot tell counts as main memory, which some of them share.
    """
    if device.type != "cpu":
        told = getattr(torch.get_device_module(device), "mem_get_info", None)
        if told is not None:
            free, total = told(device)
            return Memory(int(total), int(free), str(device))
    main = main_memory(root)
    return Memory(main.total // processes, main.free // processes, main.of)


def local_processes() -> int:
    """Processes of the run on this machine, as torchrun says."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def main_memory(root: Path = Path("/")) -> Memory:
    """The machine's memory, or what the control groups of this process leave of it, whichever is less.

    Read from ``proc`` and ``sys`` under ``root``; without them (macOS, Windows) the system is asked.
    """
    told = _numbers(root / "proc/meminfo")
    total = told.get("MemTotal", 0) * 1024
    free, of = told.get("MemAvailable", total // 1024) * 1024, "main memory"
    if not total:
        total, free = _asked_of_the_system()
    for limit, used in _limits(root):
        if limit < total:
            total, of = limit, "main memory (limit of the control group)"
        free = min(free, max(0, limit - used))
    return Memory(total, free, of)


def _asked_of_the_system() -> tuple[int, int]:
    """Total and free bytes. POSIX has no name for what is free, which is then taken for total."""
    if hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    layout = struct.Struct("=2I7Q")  # Windows' MEMORYSTATUSEX: its size, a percentage, then total and free bytes
    record = ctypes.create_string_buffer(layout.pack(layout.size, *[0] * 8), layout.size)
    vars(ctypes)["windll"].kernel32.GlobalMemoryStatusEx(record)
    _, _, total, free, *_ = layout.unpack(record.raw)
    return total, free


def _limits(root: Path) -> list[tuple[int, int]]:
    """Limit and use in bytes of each control group that this process is in and that has a limit.

    A container may see its own group at the mount's root, whatever path it is told, so all parents are looked at.
    What a group holds of files can be dropped and is not counted as used.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        first = "memory" in kinds.split(",")
        if not first and kinds:
            continue
        base = root / "sys/fs/cgroup" / ("memory" if first else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
        inner = base / path.strip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and limit < UNLIMITED:
                told = _numbers(folder / "memory.stat")
                files = told.get("total_inactive_file", told.get("inactive_file", 0))
                found.append((limit, max(0, (used or 0) - files)))
    return found


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none ("max": no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _numbers(path: Path) -> dict[str, int]:
    """Names and numbers of a file of such lines: ``MemTotal:  24 kB`` or ``inactive_file 4096``."""
    try:
        parts = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in parts if len(words) > 1 and words[1].isdigit()}
