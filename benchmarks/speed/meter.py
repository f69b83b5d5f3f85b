"""What both sides of a measurement use: seconds of a step and the memory it takes. Needs torch, nothing of covrl."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

MIB = 2**20


class Meter:
    """Process CPU seconds and wall seconds of each step, and the memory of the steps after ``warm`` of them.

    The memory of a step is the peak of the resident memory (RSS) in the measured steps, less

        the RSS when the model was loaded, its weights touched and the optimizer's code imported,
        the bytes of a whole gradient, and the bytes of the optimizer's state,

    so it is what the step takes over model, gradients and optimizer. The kernel's peak is set back after the warm-up
    steps, so what loading took for a moment does not count.
    """

    def __init__(self, parameters: Iterable[Any], warm: int = 1) -> None:
        self.parameters, self.warm = list(parameters), warm
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.loaded = loaded_rss(self.parameters)
        self._taken = 0

    @contextmanager
    def step(self) -> Generator[None]:
        """Measure what is inside; the first ``warm`` steps are not kept."""
        if self._taken == self.warm:
            self.peak_reset = reset_peak()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        if self._taken >= self.warm:
            self.cpu.append(time.process_time() - cpu)
            self.wall.append(time.perf_counter() - wall)
        self._taken += 1

    def record(self, optimizer: Any) -> dict[str, Any]:
        """The seconds of each measured step, and the memory in MiB."""
        gradients = sum(p.numel() * p.element_size() for p in self.parameters if p.requires_grad)
        moments = [v for state in optimizer.state.values() for v in state.values() if hasattr(v, "element_size")]
        held = sum(v.numel() * v.element_size() for v in moments)
        parts = {"loaded": self.loaded, "gradients": gradients, "optimizer": held, "peak": peak()}
        step = parts["peak"] - self.loaded - gradients - held
        memory = {f"{name}_mb": size / MIB for name, size in {**parts, "step": step}.items()}
        return {"cpu": self.cpu, "wall": self.wall, **memory, "peak_since_warm_up": self.peak_reset}


def loaded_rss(parameters: Iterable[Any]) -> int:
    """Resident bytes with every weight in memory, garbage gone, and what optimizers import imported."""
    import_module("torch._dynamo")  # the first optimizer step imports it, on both sides
    for parameter in parameters:
        float(parameter.detach().sum())
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def reset_peak() -> bool:
    """Set the kernel's peak of the resident memory back to what is resident now; False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    """The most bytes that were resident since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def begin(threads: int, memory_mb: float | None = None) -> None:
    """Threads of this process, and a bound on its memory, beyond which it fails and not another process."""
    import torch

    torch.set_num_threads(threads)
    if memory_mb:
        bound = int(memory_mb * MIB)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def asked() -> dict[str, Any]:
    """What this process is asked to do: its one argument, as JSON."""
    return json.loads(sys.argv[1])


def emit(record: dict[str, Any]) -> None:
    """What a worker found, as the last line of its output."""
    print(json.dumps(record), flush=True)
