"""Steps on an accelerator: tokens a second, time by phase, and the share of the device's own speed in matrix products.

GRPO and CoVRL with random weights in the shapes of Qwen2.5 0.5B and 1.5B, 16 problems of 8 rollouts, prompts of 256
tokens, traces that close with chance 1/128 at each token and at 512; float32 weights, bfloat16 products. Each method
also runs with a fast path left out: FlexAttention (rows padded for attention), recorded steps (operations launched one
by one).

The share (MFU) is floating-point operations of the model's matrices over what products of large bfloat16 matrices
reach on this device in the same process. Counted are 2 for a weight and token that goes forward, 6 for one that is
trained, and each token once for each prompt that it is read under, a prompt once for its group. Attention itself is
left out. So the share is a lower bound.

Without an accelerator there is nothing to measure, and the part says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from speed.meter import asked, begin, emit
from speed.processes import Bench, WorkerError, spread
from speed.workloads import WORKLOADS, Workload, workload_of

SIZES = ("0.5B", "1.5B")
METHODS = ("grpo", "covrl")
PATHS: dict[str, dict[str, bool]] = {"all": {}, "no flex": {"flex": False}, "no recorded steps": {"recorded": False}}
PHASES = ("generate", "score", "train", "other")
PRODUCT = 8192
"""Rows and columns of the matrices whose product says how fast the device is."""


def measure(bench: Bench) -> dict[str, Any]:
    """Every size, method and set of paths, in turn.

    Raises:
        WorkerError: there is no accelerator.
    """
    if bench.worker("device", look=True)["device"] == "cpu":
        raise WorkerError("torch sees no accelerator here, so there is nothing to measure")
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(bench.repeats):
        for size in SIZES:
            for method in METHODS:
                for name, paths in PATHS.items():
                    task: dict[str, Any] = {"workload": size, "model": bench.model(WORKLOADS[size]), "steps": 3}
                    found = bench.worker("device", **task, algorithm=method, paths=paths, memory_mb=None)
                    runs.setdefault(f"{size} {method}, {name}", []).append(found)
    return {"runs": {name: summary(found) for name, found in runs.items()}}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and most over runs of each run's median step."""
    kept = {k: runs[0][k] for k in ("device", "paths", "notes")}
    numbers = [name for name in runs[0] if name not in kept]
    return {**kept, **{name: spread([median(run[name]) for run in runs]) for name in numbers}}


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = []
    for name, shown in found["runs"].items():
        taken = [path for path, on in shown["paths"].items() if on]
        rows.append(
            f"{name}: {shown['generated_per_s'][0]:,.0f} tokens sampled a second, "
            f"{shown['trained_per_s'][0]:,.0f} trained; step {shown['step'][0]:.2f} s "
            f"({', '.join(f'{phase} {shown[phase][0]:.2f}' for phase in PHASES)}); MFU {shown['mfu'][0]:.1%}, "
            f"of training {shown['mfu_train'][0]:.1%}; peak {shown['peak_mb'][0]:,.0f} MiB; paths {', '.join(taken)}"
            + "".join(f"; {note}" for note in shown["notes"])
        )
    return rows


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """The worker: steps of the production loop on the device, one number a step for each figure."""
    import torch

    from covrl.training import loop
    from speed.ours import build_run

    begin(asked["threads"])
    here = torch.accelerator.current_accelerator(check_available=True)
    if asked.get("look"):
        return {"device": here.type if here else "cpu"}
    workload, count = workload_of(asked), asked["steps"]
    where = {"model": {"device": "auto"}, "training": {"tokens_per_pass": asked.get("tokens_per_pass", 32_768)}}
    run = build_run(workload, asked["model"], "mixed", asked["algorithm"], count + 1, where)
    choose(run, asked.get("paths", {}))
    policy = run.models["policy"]
    speed = product_speed(policy.device, asked.get("product", PRODUCT))
    weights = matrix_weights(policy.model)
    metrics, peaks = [], []
    for _, report in zip(range(count + 1), loop.steps(run), strict=True):
        metrics.append(report.metrics)
        peaks.append(peak_mb(policy.device))
    contexts = len(run.algorithm.contexts)
    steps = [figures(m, workload, contexts, weights, speed) for m in metrics[1:]]  # the first one compiles and records
    paths = policy.paths._asdict() | run.generator.paths._asdict()
    record: dict[str, Any] = {"device": name_of(policy.device), "paths": paths, "notes": list(run.notes)}
    return record | {k: [s[k] for s in steps] for k in steps[0]} | {"peak_mb": peaks[1:]}


def choose(run: Any, paths: Mapping[str, bool]) -> None:
    """Leave fast paths out."""
    for holder in (run.models["policy"], run.generator):
        mine = {name: on for name, on in paths.items() if name in holder.paths._fields}
        holder.paths = holder.paths._replace(**mine)


def figures(
    metrics: Mapping[str, float], workload: Workload, contexts: int, weights: int, speed: float
) -> dict[str, float]:
    """Rates of one step: tokens a second, seconds by phase, and shares of ``speed`` (operations a second).

    A trace is read in ``contexts``, by ``weights`` numbers in matrices.
    """
    seconds = {phase: metrics.get(f"time/{phase}", 0.0) for phase in PHASES}
    step, generated, prompts = metrics["time/step"], metrics["tokens/generated"], workload.problems * workload.prompt
    with_weight = 1 - metrics["train/dropped_traces"] / workload.rows
    trained = contexts * (prompts + generated * with_weight)
    scored = contexts * (prompts + generated) if metrics["tokens/scored"] else 0.0
    sampling, scoring, training = 2 * weights * (generated + prompts), 2 * weights * scored, 6 * weights * trained
    return {
        "step": step,
        **seconds,
        "generated_per_s": generated / seconds["generate"],
        "trained_per_s": trained / seconds["train"],
        "mfu": (sampling + scoring + training) / step / speed,
        "mfu_train": training / seconds["train"] / speed,
    }


def matrix_weights(model: Any) -> int:
    """Numbers in the matrices that every token is multiplied by: all but the embedding, and the output layer once."""
    import torch

    layers = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
    return sum(layers.values())


def product_speed(device: Any, size: int) -> float:
    """Floating-point operations a second of a product of two bfloat16 matrices ``[size, size]``; the best of five."""
    import torch

    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait(device)
        begun = time.perf_counter()
        for _ in range(4):
            a @ b
        wait(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - begun))
    return best


def wait(device: Any) -> None:
    """Until the device has done what it was given."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_mb(device: Any) -> float:
    """The most memory of the device that tensors took since the last call, in MiB; 0 on a CPU."""
    import torch

    if device.type == "cpu":
        return 0.0
    found = torch.accelerator.max_memory_allocated(device) / 2**20
    torch.accelerator.reset_peak_memory_stats(device)
    return found


def name_of(device: Any) -> str:
    """The device's own name where torch knows it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type != "cpu" and torch.cuda.is_available() else device.type


if __name__ == "__main__":
    emit(main(asked()))
