"""How much work at once: numbers for ``"auto"`` in ``training.tokens_per_pass``, ``generation.rows_per_pass`` and
``training.logits_mb_per_chunk``.

What a token takes is measured, what the machine has is read, and the choice is arithmetic: no clock has a part in it,
so the same command takes the same numbers on the same machine. The run's ``config.toml`` has them from then on.
The arithmetic is in :mod:`covrl.planning.fitting`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from covrl.errors import UserError
from covrl.generation.engine import TorchGenerator
from covrl.generation.engines import rows_of
from covrl.models.model import resolve_device
from covrl.models.policy import in_parts
from covrl.planning.fitting import (
    FAST_TOKENS,
    FAST_TOKENS_ELSEWHERE,
    SHARE,
    Needs,
    logits_that_fit,
    readable,
    rows_that_fit,
    tokens_that_fit,
    trace_too_large,
)
from covrl.planning.machine import SHARED, Memory, local_processes, memory_of, share_of
from covrl.training.needs import measured
from covrl.training.run import Run

Asked = tuple[int | Literal["auto"], int | Literal["auto"]]
"""``training.tokens_per_pass`` and ``generation.rows_per_pass`` as they were set."""


def fit(run: Run, trains: bool = True) -> Run:
    """A run that was just assembled, with numbers in the place of ``"auto"``; its notes say which. All ranks call it.

    Only the first rank has weights as yet: it measures, and the least memory of any rank decides. Without ``trains``
    no training pass will be made.
    """
    run = _with_logits(run)
    config = run.config
    torch_samples = isinstance(run.generator, TorchGenerator)
    asked: Asked = (
        config.training.tokens_per_pass if trains else run.limits.tokens,
        config.generation.rows_per_pass if torch_samples else rows_of(config.generation),
    )
    if "auto" not in asked:
        return _with(run, asked, ())
    if in_parts(config, run.world):
        raise UserError(
            "training.load = parts: no rank has the weights to measure what a pass takes; set training.tokens_per_pass "
            "and generation.rows_per_pass to numbers"
        )
    needs, memory = _measured_by_first(run, trains), least_memory(run)
    fast = FAST_TOKENS.get(resolve_device(config.model.device).type, FAST_TOKENS_ELSEWHERE)
    planned = SHARE * memory.total
    wanted = _chosen(asked, needs, planned, fast)
    chosen = _chosen(asked, needs, min(planned, memory.free + needs.weights), fast)  # weights are there already
    said = (_said(asked, chosen, needs, memory), _lowered(wanted, chosen, memory))
    return _with(run, chosen, (*said, trace_too_large(needs, memory) if trains else None))


def _with_logits(run: Run) -> Run:
    """A run with a number in the place of ``"auto"`` in ``training.logits_mb_per_chunk``."""
    if run.config.training.logits_mb_per_chunk != "auto":
        return run
    chosen = logits_that_fit(resolve_device(run.config.model.device).type, SHARE * least_memory(run).total)
    training = run.config.training.model_copy(update={"logits_mb_per_chunk": chosen})
    return replace(run, config=run.config.model_copy(update={"training": training}))


def _with(run: Run, chosen: Asked, said: Sequence[str | None]) -> Run:
    tokens, rows = chosen
    training = run.config.training.model_copy(update={"tokens_per_pass": tokens})
    generation = run.config.generation.model_copy(update={"rows_per_pass": rows})
    if isinstance(run.generator, TorchGenerator):
        run.generator.rows_per_pass = int(rows)
    config = run.config.model_copy(update={"training": training, "generation": generation})
    return replace(run, config=config, notes=(*run.notes, *filter(None, said)))


def least_memory(run: Run) -> Memory:
    """The memory of the rank that has least, in all and free."""
    device = resolve_device(run.config.model.device)
    own = share_of(memory_of(device, local_processes()), device, os.environ.get(SHARED, ""))
    every = run.world.gathered([own])
    return replace(own, total=min(m.total for m in every), free=min(m.free for m in every))


def _measured_by_first(run: Run, trains: bool) -> Needs:
    found: list[Needs] = []
    run.world.on_rank0(lambda: found.append(measured(run, trains)))
    (needs,) = run.world.broadcast(found)
    return needs


def _chosen(asked: Asked, needs: Needs, memory: float, fast: int) -> tuple[int, int]:
    tokens, rows = asked
    return (
        tokens_that_fit(needs, memory, fast) if tokens == "auto" else tokens,
        rows_that_fit(needs, memory) if rows == "auto" else rows,
    )


def _said(asked: Asked, chosen: tuple[int, int], needs: Needs, memory: Memory) -> str:
    """What was chosen, and from what."""
    tokens, rows = (one == "auto" for one in asked)
    parts = [
        f"training.tokens_per_pass = {chosen[0]} (each takes {readable(needs.token)})" if tokens else "",
        f"generation.rows_per_pass = {chosen[1]} (each takes up to {readable(needs.row)})" if rows else "",
    ]
    return f"chosen for {readable(memory.total)} of {memory.of}: {', '.join(filter(None, parts))}"


def _lowered(wanted: tuple[int, int], chosen: tuple[int, int], memory: Memory) -> str | None:
    """That other programs hold memory which this run would else have used."""
    names = ("training.tokens_per_pass", "generation.rows_per_pass")
    parts = [
        f"{name} is {new} and not {old}" for name, new, old in zip(names, chosen, wanted, strict=True) if new < old
    ]
    if not parts:
        return None
    return (
        f"only {readable(memory.free)} of {readable(memory.total)} is free now, so {' and '.join(parts)}: with more "
        "free the same command gives the same results up to rounding only"
    )
