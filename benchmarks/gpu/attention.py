"""FlexAttention at real sizes, with windows, caps and shared key heads: against rows side by side and float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from speed.device import peak_mb, wait
from torch import Tensor

from covrl.models.flex import attend_flex, can_differentiate
from covrl.models.proof import Row
from covrl.models.shared import Call, lay_out
from gpu.common import Finding, Task, milliseconds, tried


class Shape(NamedTuple):
    """Heads of queries and of keys, numbers of each, the window, the soft cap and the dtype."""

    heads: int
    key_heads: int
    size: int
    window: int | None
    cap: float | None
    dtype: torch.dtype


SHAPES = (
    Shape(16, 8, 128, None, None, torch.bfloat16),
    Shape(14, 2, 64, 300, None, torch.bfloat16),
    Shape(28, 4, 128, None, None, torch.float32),
    Shape(8, 4, 128, 300, 50.0, torch.bfloat16),
)
GROUPS = ((300, (500, 900, 37, 1)), (129, (700, 128, 255)))
"""Tokens of a prompt, and of the rows that continue it."""

TINY_GROUPS = ((20, (5, 9)), (7, (3, 4)))


def findings(task: Task) -> Iterator[Finding]:
    """Both ways on each shape: distance from float64, time, memory, and whether the same call gives the same bits."""
    groups = TINY_GROUPS if task.tiny else GROUPS
    rows: list[Row] = [(tuple(range(40)), 0)]
    for number, (prompt, lengths) in enumerate(groups):
        ids = range(1000 * number, 1000 * number + prompt)
        rows += [((*ids, *range(5000, 5000 + length)), prompt) for length in lengths]
    for shape in SHAPES:
        layout, call = lay_out(rows, task.device), Call(0, shape.window, shape.size**-0.5, shape.cap)
        given = values(task, shape, len(layout.ids))
        exact = gradients(partial(layout.attend, call), [t.double() for t in given])
        ways: dict[str, Callable[..., Tensor]] = {"side by side": partial(layout.attend, call)}
        if can_differentiate(task.device):
            ways["flex"] = partial(attend_flex, layout, call)
        for name, way in ways.items():
            about = {"way": name, **shape._asdict(), "dtype": str(shape.dtype), "tokens": len(layout.ids)}
            yield tried(about, partial(looked_at, task, way, given, exact))


def values(task: Task, shape: Shape, count: int) -> list[Tensor]:
    """Random queries, keys, values, and the gradient of the output."""
    made = torch.Generator().manual_seed(0)
    sizes = [(1, n, count, shape.size) for n in (shape.heads, shape.key_heads, shape.key_heads)]
    sizes.append((1, count, shape.heads, shape.size))
    return [torch.randn(size, generator=made).to(task.device, shape.dtype) for size in sizes]


def gradients(way: Callable[..., Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values."""
    leaves = [t.clone().requires_grad_() for t in given[:3]]
    out = way(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, given[3])]


def looked_at(task: Task, way: Callable[..., Tensor], given: Sequence[Tensor], exact: Sequence[Tensor]) -> Finding:
    """One way on one shape; the first call may compile."""
    begun = time.perf_counter()
    found = gradients(way, given)
    wait(task.device)
    first = time.perf_counter() - begun
    peak_mb(task.device)
    taken = milliseconds(task.device, lambda: gradients(way, given), 1 if task.tiny else 3)
    peak = peak_mb(task.device)
    again = gradients(way, given)
    off = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)]
    return {
        "off": [round(each, 7) for each in off],
        "first_s": round(first, 1),
        "ms": taken,
        "peak_mb": peak,
        "same_bits": [torch.equal(a, b) for a, b in zip(found, again, strict=True)],
    }
