"""Milliseconds a token: steps recorded, launched one by one, prompts kept once; and what drawing the tokens costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np
import torch
from speed.device import peak_mb, wait

from covrl.generation import decoding, engine
from covrl.generation.base import Sampling
from covrl.generation.recorded import fixed
from covrl.models.compute import weights_ready
from covrl.models.model import LanguageModel
from gpu.common import Finding, Task, milliseconds, mixed_model, set_to, tried
from gpu.noise import COPIED, KEPT_ONCE

SIZES = ("0.5B", "1.5B")
KINDS = {"recorded": COPIED, "copied": COPIED, "kept once": KEPT_ONCE}
GROUP = 8
"""Rows of a prompt."""

DRAWN_MB = (32, 2048)


def findings(task: Task) -> Iterator[Finding]:
    """For each size of model: each form of decoding, then drawing in small and in large portions."""
    rows, steps, prompt = (8, 4, 12) if task.tiny else (256, 140, 256)
    for size in SIZES[:1] if task.tiny else SIZES:
        model = mixed_model(task, task.workload(size))
        vocabulary = model.model.config.vocab_size
        prompts = [tuple((7 * (i // GROUP) + j) % vocabulary for j in range(prompt)) for i in range(rows)]
        for kind, limits in KINDS.items():
            work = partial(decoded, task, model, prompts, steps, kind == "recorded", limits)
            yield tried({"model": size, "rows": rows, "kind": kind}, work)
        with torch.no_grad():
            logits = torch.randn(rows, vocabulary, device=task.device, dtype=torch.bfloat16)
        yield from drawn(task, logits, size)


def decoded(
    task: Task,
    model: LanguageModel,
    prompts: list[tuple[int, ...]],
    steps: int,
    recorded: bool,
    limits: dict[str, int],
) -> Finding:
    """The time of a token for all rows; half of the rows leave in the middle, where a step is recorded again."""
    times = []
    with set_to(decoding, **limits), weights_ready(model.model):
        logits, state = decoding.prefill_shared(model.model, prompts, task.device, 512)
        state = fixed(state, prompts) if recorded else state
        for step in range(steps):
            if step == steps // 2:
                state.select(torch.arange(len(prompts) // 2, device=task.device))
                logits = logits[: len(prompts) // 2]
            tokens = torch.full((len(logits),), 5 + step, device=task.device)
            wait(task.device)
            begun = time.perf_counter()
            logits = state.advance(model.model, tokens)
            wait(task.device)
            times.append(1e3 * (time.perf_counter() - begun))
    shown = {"ms_median": round(median(times), 2), "ms_most": round(max(times), 1), "peak_mb": peak_mb(task.device)}
    return shown | {"logits": round(float(logits.float().sum()), 2)}  # alike in all kinds


def drawn(task: Task, logits: torch.Tensor, size: str) -> Iterator[Finding]:
    """The time to draw a token for each row of logits ``[B, V]``."""
    draws = np.linspace(0.01, 0.99, len(logits))
    for megabytes in DRAWN_MB:

        def timed(megabytes: int = megabytes) -> Finding:
            with set_to(engine, drawn_bytes=lambda _: megabytes << 20):
                return {"ms": milliseconds(task.device, lambda: engine.next_tokens(logits, Sampling(8, "x"), draws))}

        yield tried({"model": size, "drawn_mb": megabytes}, timed)
