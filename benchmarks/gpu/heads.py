"""The output layer's passes at a vocabulary of 151,936: size of chunks, the weight's gradient in slices or whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from speed.device import peak_mb
from torch import nn

from covrl.models.projection import Projection
from covrl.scoring import head
from gpu.common import Finding, Task, milliseconds, set_to, tried

CHUNKS_MB = (64, 1024)
SLICES = (2**20, 2**40)
"""Elements of a slice of the weight's gradient; the second is all of it at once."""


def findings(task: Task) -> Iterator[Finding]:
    """Time, memory, and the distance of the weight's gradient from that of the first way."""
    size, width, tokens = (512, 64, 64) if task.tiny else (151_936, 2048, 4096)
    with task.device:
        weight = nn.Parameter(torch.randn(size, width) * 0.02)
        hidden = torch.randn(tokens, width, requires_grad=True)
        targets = torch.randint(size, (tokens,))
    first: torch.Tensor | None = None
    for megabytes, elements in itertools.product(CHUNKS_MB, SLICES):
        chunk = max(1, (megabytes << 20) // (4 * size))

        def both(chunk: int = chunk) -> None:
            weight.grad = hidden.grad = None
            projection = Projection(weight, dtype=torch.bfloat16)
            (found,) = head.apply_head(head.log_prob, [hidden], targets, [projection], chunk)
            found.sum().backward()

        def measured(elements: int = elements) -> Finding:
            with set_to(head, ROWS_ELEMENTS=elements):
                peak_mb(task.device)
                taken = milliseconds(task.device, both, 1 if task.tiny else 2)
            return {"ms": taken, "us_per_token": round(taken * 1e3 / tokens, 1), "peak_mb": peak_mb(task.device)}

        found = tried({"chunk_mb": megabytes, "slices": -(-size // max(1, elements // width))}, measured)
        if weight.grad is not None and "failed" not in found:
            first = weight.grad.clone() if first is None else first
            found["off"] = float((weight.grad - first).norm() / first.norm())
        yield found
