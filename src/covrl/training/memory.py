"""Out of memory: one more try with smaller passes, then the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from covrl.errors import OutOfMemoryError
from covrl.records import Problem, Rollout
from covrl.scoring.pack import make_unit
from covrl.scoring.text import cache_numbers, vocabulary
from covrl.training.lifeline import is_out_of_memory
from covrl.training.parallel import local_part
from covrl.training.step import PassLimits

if TYPE_CHECKING:
    from covrl.training.loop import Run

T = TypeVar("T")


def with_less(
    attempt: Callable[[PassLimits], T],
    limits: PassLimits,
    agreed: Callable[[Exception], bool],
    explain: Callable[[PassLimits], str],
) -> tuple[T, str | None]:
    """``attempt(limits)``; if memory runs out, once more with half the tokens and half the logits of a pass.

    ``attempt`` has to start from nothing each time: what a failed one left behind must not count. Returns what it
    gave, and a warning if the second try was needed. ``agreed`` says whether all ranks have the error, so that they
    can try again together.

    Raises:
        OutOfMemoryError: the second try ran out too, or there is none; ``explain`` gives the arithmetic.
    """
    smaller = PassLimits(max(1, limits.tokens // 2), max(1, limits.logits_bytes // 2))
    for tried in (limits, smaller):
        try:
            found = attempt(tried)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)  # which holds the failed pass's tensors
            text = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        else:
            return found, None if tried is limits else _warning(limits, smaller, text)
        _free()
        if not agreed(failed):
            break
    raise OutOfMemoryError(f"{text}: {explain(tried)}") from failed


def _warning(limits: PassLimits, smaller: PassLimits, text: str) -> str:
    return (
        f"out of memory: done again with training.tokens_per_pass = {smaller.tokens} instead of {limits.tokens}, which "
        f"costs the failed pass each time; set it so ({text[:200]})"
    )


def _free() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def pass_arithmetic(run: Run, pairs: Iterable[tuple[Problem, Rollout]], limits: PassLimits) -> str:
    """Where the memory of a scoring or training pass goes, in a sentence, and what to change."""
    algorithm = run.algorithm
    readings = (*algorithm.scoring, *algorithm.training)
    units = [make_unit(i, algorithm.contexts, readings, *pair) for i, pair in enumerate(pairs)]
    largest = max(((len(u.rows) * u.longest, len(u.rows), u.longest) for u in units), default=(0, 0, 0))
    size = vocabulary(run.models["policy"].model)
    chunk = max(1, limits.logits_bytes // (4 * size))
    contexts = max((len(r.contexts) for r in readings), default=1)
    sizes = model_bytes(run)
    held = ", ".join(f"{name} {_mebibytes(bytes_held)}" for name, bytes_held in sizes.items())
    advice = (
        f"a pass holds at least one trace, {largest[1]} rows x {largest[2]} tokens = {largest[0]}: "
        + (
            "lower training.tokens_per_pass further"
            if largest[0] < limits.tokens
            else "lower generation.max_trace_tokens, or take a smaller model or a larger device"
        )
        if units
        else "lower training.tokens_per_pass"
    )
    return (
        f"with training.tokens_per_pass = {limits.tokens} and logits of {chunk} positions x {size} tokens x "
        f"4 bytes x {contexts} contexts = {_mebibytes(chunk * size * 4 * contexts)} at a time, beside {held}; "
        f"{advice}"
    )


def generation_arithmetic(run: Run, max_tokens: int, longest_prompt: int) -> str:
    """Where the memory of sampling goes: the key-value cache of the rows that are decoded side by side."""
    config = run.models["policy"].model.config
    rows = run.config.generation.rows_per_pass
    size = next(run.models["policy"].model.parameters()).element_size()
    cache = cache_numbers(config) * (longest_prompt + max_tokens) * size
    held = ", ".join(f"{name} {_mebibytes(size)}" for name, size in model_bytes(run).items())
    return (
        f"up to generation.rows_per_pass = {rows} rows x {longest_prompt + max_tokens} tokens take "
        f"{_mebibytes(cache)} of cache each, {_mebibytes(rows * cache)} together, beside {held}; "
        "lower generation.rows_per_pass"
    )


def model_bytes(run: Run) -> Mapping[str, int]:
    """Bytes on this rank of weights (of all models, each once), of a full gradient, and of the optimizer's state."""
    weights = list({id(p): p for model in run.models.values() for p in model.model.parameters()}.values())
    moments = [v for state in run.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return {"weights": _bytes(weights), "gradients": _bytes(run.parameters), "optimizer": _bytes(moments)}


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(local_part(t).numel() * t.element_size() for t in tensors)


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
