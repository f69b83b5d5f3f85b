"""`covrl doctor`: what is installed, which device is used, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import NamedTuple

from covrl.extras import core_command, install_command
from covrl.rewards.isolation import fault

EXTRAS = {
    "datasets": ("data", "data sets by name"),
    "pyarrow": ("data", "Parquet files"),
    "peft": ("lora", "LoRA adapters"),
    "gguf": ("gguf", "models in GGUF files"),
    "tensorboard": ("tensorboard", "curves in TensorBoard"),
    "wandb": ("wandb", "curves in Weights & Biases"),
    "trackio": ("trackio", "curves in trackio"),
    "mlflow-skinny": ("mlflow", "curves in MLflow"),
    "pandas": ("notebook", "metrics and traces of a run as frames"),
    "vllm": ("vllm", "faster sampling on an accelerator"),
}
CORE = ("torch", "transformers", "tokenizers", "safetensors", "pydantic", "typer", "rich", "jinja2", "math-verify")


class Finding(NamedTuple):
    """One line: what was checked, the result, whether it is fine, and what to do if not."""

    what: str
    found: str
    well: bool = True
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, core first. Imports torch."""
    return [*_packages(), *_extras(), *_device(), _isolator()]


def _packages() -> list[Finding]:
    found = [Finding("covrl", _version("covrl") or "not installed"), Finding("python", platform.python_version())]
    for name in CORE:
        version = _version(name)
        found.append(Finding(name, version or "missing", bool(version), "" if version else core_command(name)))
    return found


def _extras() -> list[Finding]:
    return [
        Finding(name, version or f"not installed ({use})", True, "" if version else install_command(extra))
        for name, (extra, use) in EXTRAS.items()
        for version in [_version(name)]
    ]


def _device() -> list[Finding]:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    build = f"torch {torch.__version__} sees no accelerator; if there is one, see its driver and torch build"
    found = [Finding("device", str(accelerator or "cpu"), True, "" if accelerator else build)]
    if accelerator is not None and accelerator.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        found.append(Finding("accelerator", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    return [
        *found,
        *_threads(torch.get_num_threads(), os.cpu_count() or 1, os.environ.get("OMP_WAIT_POLICY")),
        Finding("CPU instructions", torch.backends.cpu.get_cpu_capability()),
    ]


def _threads(threads: int, cores: int, policy: str | None) -> list[Finding]:
    """How many threads torch uses, and whether they spin while they wait."""
    few, passive = threads <= cores, (policy or "").lower() == "passive"
    return [
        Finding(
            "cores and threads",
            f"{cores} cores, torch uses {threads}",
            few,
            "" if few else f"export OMP_NUM_THREADS={cores}: more threads than cores are slower",
        ),
        Finding(
            "OMP_WAIT_POLICY",
            policy or "not set",
            passive,
            "" if passive else "export OMP_WAIT_POLICY=passive: idle threads spin",
        ),
    ]


def _isolator() -> Finding:
    advice = "only the verifier code needs it, and is refused: docs/verifiers.md" if fault() else ""
    return Finding("isolator", fault() or "bubblewrap isolates programs", True, advice)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
