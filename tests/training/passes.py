"""How large the passes of a run are, seen from outside: what goes through the policy at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from covrl.training.run import Run


class Pass(NamedTuple):
    """One forward through the policy: whether it learns, and its tokens with padding."""

    learns: bool
    tokens: int


@contextmanager
def passes(run: Run, most: int | None = None) -> Iterator[list[Pass]]:
    """All passes through the policy while entered; memory runs out in those of more than ``most`` tokens."""
    policy, found = run.models["policy"], []
    states = policy.states

    def measured(rows: Any) -> Any:
        found.append(Pass(torch.is_grad_enabled(), len(rows) * max(len(ids) for ids, _ in rows)))
        if most is not None and found[-1].tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return states(rows)

    policy.states = measured  # ty: ignore[invalid-assignment]
    try:
        yield found
    finally:
        policy.states = states  # ty: ignore[invalid-assignment]
