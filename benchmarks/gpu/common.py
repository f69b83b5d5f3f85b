"""What the parts share: the task, models with random weights, times, memory, and findings that may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from speed.device import wait
from speed.workloads import WORKLOADS, Workload, model_config

from covrl.models.compute import compute_in_bfloat16
from covrl.models.model import LanguageModel, Paths

Finding = dict[str, Any]
"""Plain values by name; ``failed`` says why there are no others."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a part is given.

    ``model`` is a pretrained model, ``scratch`` an empty folder. ``tiny``: sizes that a CPU does in seconds, so that a
    test runs every line that needs no accelerator.
    """

    device: torch.device
    model: str
    scratch: Path
    tiny: bool = False

    def workload(self, name: str) -> Workload:
        """The workload of this name, or the one for tests."""
        return WORKLOADS["tiny" if self.tiny else name]


def mixed_model(task: Task, workload: Workload) -> LanguageModel:
    """A model with random float32 weights and bfloat16 products, which shares prompts."""
    from transformers import Qwen2ForCausalLM

    with task.device:
        model = LanguageModel(Qwen2ForCausalLM(model_config(workload)))
    model.compute_dtype = torch.bfloat16
    compute_in_bfloat16(model.model)
    model.paths = Paths()
    return model


def tried(about: Finding, work: Callable[[], Finding]) -> Finding:
    """What ``work`` finds, beside what it is about. An error is a finding too: the next things are looked at."""
    try:
        return about | work()
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        return about | {"failed": f"{type(error).__name__}: {said[:300]}"}


def milliseconds(device: torch.device, work: Callable[[], object], times: int = 3) -> float:
    """The mean time of ``work`` on the wall; the first call, which may compile, is not counted."""
    work()
    wait(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return round((time.perf_counter() - begun) / times * 1e3, 3)


@contextmanager
def set_to(module: ModuleType, **values: object) -> Generator[None]:
    """Give constants of a module other values for a while."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
