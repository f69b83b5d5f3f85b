"""How much work at once: numbers for ``"auto"`` in ``training.tokens_per_pass``, ``generation.rows_per_pass`` and
``training.logits_mb_per_chunk``.

What a token takes is measured, what the machine has is read, and the choice is arithmetic: no clock has a part in it,
so the same command takes the same numbers on the same machine. The run's ``config.toml`` has them from then on.

    tokens   the fewest with which a pass is within 5 % of the fastest, or that hold a whole group where groups are
             scored in their training forward; what memory holds, if that is less
    rows     as many as sampling gains from; what memory holds, if that is less
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
from covrl.scoring.pack import LOGITS
from covrl.training.machine import SHARED, Memory, local_processes, memory_of, share_of
from covrl.training.memory import readable
from covrl.training.models import in_parts
from covrl.training.needs import Needs, measured
from covrl.training.run import Run

FAST_TOKENS = {"cpu": 2048}
"""Fewest padded tokens with which a training pass is within 5 % of the fastest, by kind of device. CONFIRMED for a CPU
on the workload M-wide (``docs/results/speed/memory.json``: 1,024 are 10 % slower, 16,384 no faster); INFERRED for other
models, until ``python benchmarks/run.py --part passes`` has measured them."""

FAST_TOKENS_ELSEWHERE = 16384
"""The same on accelerators. INFERRED: none was at hand to measure it on."""

LOGITS_ELSEWHERE = 1024
"""On accelerators, the most MiB of logits held at once: there each chunk costs launches and a pass over the output
layer's gradient, whatever its size (INFERRED from their number: at 64 MiB and a vocabulary of 151,936 they take longer
than the trunk). On a CPU it is :data:`covrl.scoring.pack.LOGITS`."""

LOGITS_PART = 64
"""Of an accelerator's memory, the part that a chunk of logits may take; a head holds about ten of them
(:data:`covrl.training.needs.COPIES`)."""

FAST_ROWS = 256
"""Fewest rows with which sampling is within 5 % of the fastest. INFERRED; the same benchmark measures it."""

SHARE = 0.8
"""Of all memory, what a run plans for: the rest is for what is not counted (Python, what allocators keep, the layer
that a backward pass is in)."""

Asked = tuple[int | Literal["auto"], int | Literal["auto"]]
"""``training.tokens_per_pass`` and ``generation.rows_per_pass`` as they were set."""


def power_of_two(number: float) -> int:
    """The largest power of two that is at most ``number``; at least 1.

    Example:
        >>> power_of_two(5000)
        4096
    """
    return 1 << (max(1, int(number)).bit_length() - 1)


def tokens_that_fit(needs: Needs, memory: float, fast: int) -> int:
    """``training.tokens_per_pass`` in ``memory`` bytes.

    A trace that is larger comes alone whatever this is, so it is no less than about a trace.
    """
    group = 2 * power_of_two(needs.group - 1) if needs.group > 1 else 1  # the next power of two that holds it
    wanted = max(fast, group)
    most = (memory - needs.training(0)) / needs.token if needs.token else wanted
    return min(wanted, max(power_of_two(most), power_of_two(needs.trace)))


def rows_that_fit(needs: Needs, memory: float, fast: int = FAST_ROWS) -> int:
    """``generation.rows_per_pass`` in ``memory`` bytes; at least 1."""
    return min(fast, power_of_two((memory - needs.sampling(0)) / needs.row))


def logits_that_fit(kind: str, memory: float) -> int:
    """``training.logits_mb_per_chunk`` for a ``kind`` of device with ``memory`` bytes.

    Example:
        >>> logits_that_fit("cuda", 24e9)
        320
    """
    if kind == "cpu":
        return LOGITS
    return min(LOGITS_ELSEWHERE, max(1, int(memory / LOGITS_PART / 2**20 / LOGITS)) * LOGITS)


def trace_too_large(needs: Needs, memory: Memory) -> str | None:
    """What to say where one trace of full length does not fit in a training pass; None where it does."""
    most = SHARE * memory.total
    if needs.training(needs.trace) <= most:
        return None
    said = (
        f"a training pass over one trace of full length, {needs.trace:,} tokens in all its prompts, takes about "
        f"{readable(needs.training(needs.trace))}, and there is {readable(memory.total)} of {memory.of}: "
    )
    if needs.recomputed is None:
        return f"{said}lower generation.max_trace_tokens, train adapters (lora.rank), or take a smaller model"
    then = replace(needs, token=needs.recomputed).training(needs.trace)
    also = "" if then <= most else " and lower generation.max_trace_tokens"
    return f"{said}set training.recompute = true (about {readable(then)} then){also}"


def what_does_not_fit(training: int, sampling: int, memory: Memory) -> str | None:
    """What to change where a training pass or sampling, of so many bytes, takes more than there is; None if neither."""
    most = SHARE * memory.total
    over = {
        "a training pass": (training, "lower training.tokens_per_pass (or set it to auto), or set training.recompute"),
        "sampling": (sampling, "lower generation.rows_per_pass (or set it to auto)"),
    }
    said = [f"{what} takes about {readable(size)}: {change}" for what, (size, change) in over.items() if size > most]
    if not said:
        return None
    return (
        f"there is {readable(memory.total)} of {memory.of}, of which a run should take {SHARE:.0%}, and "
        + "; ".join(said)
    )


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
