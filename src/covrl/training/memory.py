"""Out of memory: again with smaller passes or fewer rows, which are kept; then the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from covrl.distributed.deferred_oom import is_out_of_memory
from covrl.distributed.world import local_part
from covrl.errors import OutOfMemoryError
from covrl.generation.engine import TorchGenerator
from covrl.generation.engines import rows_of
from covrl.models.text import cache_numbers, vocabulary
from covrl.records import Problem, Request, Rollout
from covrl.scoring.pack import PassLimits, Unit, make_unit, padded_tokens
from covrl.training.run import Run

T = TypeVar("T")


def with_smaller_passes(run: Run, attempt: Callable[[PassLimits], T], pairs: Sequence[tuple[Problem, Rollout]]) -> T:
    """``attempt`` with the run's limits; where memory runs out, again with half the tokens and half the logits of a
    pass, and so on.

    Smaller limits are kept from then on, and said once. ``attempt`` has to start from nothing each time: what a failed
    one left behind must not count. It is repeated only where all ranks can do so together.

    Raises:
        OutOfMemoryError: not even passes of one trace each fit, with the arithmetic.
    """
    tried = run.limits
    while True:
        try:
            found = attempt(tried)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)  # which holds the failed pass's tensors
            text = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        else:
            if tried is not run.limits:
                run.remarks.append(_warning(run.limits, tried, text))
                run.limits = tried
            return found
        _free()
        largest, all_of_them = pass_sizes(run, pairs)
        once_more = tried is run.limits or tried.tokens > largest
        if not run.world.agreed(failed) or not once_more:
            raise OutOfMemoryError(f"{text}: {pass_arithmetic(run, pairs, tried)}") from failed
        tried = _halved(tried, all_of_them)


def _halved(limits: PassLimits, all_of_them: int) -> PassLimits:
    """Half of both, and of the tokens again as long as one pass would still hold them all."""
    tokens = max(1, limits.tokens // 2)
    while tokens > 1 and tokens >= all_of_them:
        tokens //= 2
    return PassLimits(tokens, max(1, limits.logits_bytes // 2))


def _warning(limits: PassLimits, smaller: PassLimits, text: str) -> str:
    return (
        f"out of memory: done again with training.tokens_per_pass = {smaller.tokens} instead of {limits.tokens} and "
        f"logits of {mebibytes(smaller.logits_bytes)}, which is kept from here on; set it so, and no pass is made "
        f"twice ({text[:200]})"
    )


def with_fewer_rows(run: Run, requests: Sequence[Request], max_tokens: int, attempt: Callable[[], T]) -> T:
    """``attempt()``, which samples ``requests``; where memory runs out, again with half the rows at once, and so on.

    Fewer rows are kept from then on, and said once. Random numbers are keyed by trace, so the samples are the same up
    to rounding. ``max_tokens`` may follow each request.

    Raises:
        OutOfMemoryError: one row at a time does not fit, or the engine has rows of its own; with the arithmetic.
    """
    before = rows_at_once(run)
    share = -(-len(requests) // run.world.size)
    while True:
        try:
            found = attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)  # which holds keys and values
        else:
            if rows_at_once(run) != before:
                run.remarks.append(
                    f"out of memory while sampling: done again with generation.rows_per_pass = {rows_at_once(run)} "
                    f"instead of {before}, which is kept from here on; set it so, and no row is sampled twice"
                )
            return found
        _free()
        rows = rows_at_once(run)
        if rows is None or min(rows, share) <= 1 or not run.world.agreed(failed):
            longest = max(len(r.prompt_ids) + len(r.prefix_ids) for r in requests)
            where = generation_arithmetic(run, max_tokens, longest)
            raise OutOfMemoryError(f"out of memory while sampling: {where}") from failed
        rows //= 2
        while rows >= share:  # which would be decoded together as before
            rows //= 2
        set_rows(run, rows)


def rows_at_once(run: Run) -> int | None:
    """Rows that the torch engine decodes side by side; None for another engine, which sees to that itself."""
    return run.generator.rows_per_pass if isinstance(run.generator, TorchGenerator) else None


def set_rows(run: Run, rows: int) -> None:
    """Let the torch engine decode so many rows side by side."""
    if isinstance(run.generator, TorchGenerator):
        run.generator.rows_per_pass = rows


def portions(run: Run) -> dict[str, int]:
    """How much the run does at once now: what is set, or less where memory ran out."""
    rows = rows_at_once(run)
    held = {"tokens_per_pass": run.limits.tokens, "logits_bytes": run.limits.logits_bytes}
    return held if rows is None else held | {"rows_per_pass": rows}


def take_portions(run: Run, held: Mapping[str, int], before: Mapping[str, Any]) -> None:
    """Take up :func:`portions` of a checkpoint, apart from those whose setting is another now than ``before``."""
    training, generation = run.config.training, run.config.generation
    old = before.get("training", {})
    same = training.tokens_per_pass == old.get("tokens_per_pass")
    if same and training.logits_mb_per_chunk == old.get("logits_mb_per_chunk"):
        run.limits = PassLimits(
            min(run.limits.tokens, held.get("tokens_per_pass", run.limits.tokens)),
            min(run.limits.logits_bytes, held.get("logits_bytes", run.limits.logits_bytes)),
        )
    rows = rows_at_once(run)
    if rows and generation.rows_per_pass == before.get("generation", {}).get("rows_per_pass"):
        set_rows(run, min(rows, held.get("rows_per_pass", rows)))


def _free() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def pass_sizes(run: Run, pairs: Iterable[tuple[Problem, Rollout]]) -> tuple[int, int]:
    """Padded tokens of the largest trace's rows, and of all traces' rows as long as the longest."""
    units = _units(run, pairs)
    return max((padded_tokens([unit]) for unit in units), default=0), padded_tokens(units)


def _units(run: Run, pairs: Iterable[tuple[Problem, Rollout]]) -> list[Unit]:
    readings = (*run.algorithm.scoring, *run.algorithm.training)
    return [make_unit(i, run.algorithm.contexts, readings, *pair) for i, pair in enumerate(pairs)]


def pass_arithmetic(run: Run, pairs: Iterable[tuple[Problem, Rollout]], limits: PassLimits) -> str:
    """Where the memory of a scoring or training pass goes, in a sentence, and what to change."""
    units, algorithm = _units(run, pairs), run.algorithm
    readings = (*algorithm.scoring, *algorithm.training)
    largest = max(((len(u.rows) * u.longest, len(u.rows), u.longest) for u in units), default=(0, 0, 0))
    size = vocabulary(run.models["policy"].model)
    chunk = max(1, limits.logits_bytes // (4 * size))
    contexts = max((len(r.contexts) for r in readings), default=1)
    sizes = model_bytes(run)
    held = ", ".join(f"{name} {mebibytes(bytes_held)}" for name, bytes_held in sizes.items())
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
        f"4 bytes x {contexts} contexts = {mebibytes(chunk * size * 4 * contexts)} at a time, beside {held}; "
        f"{advice}"
    )


def generation_arithmetic(run: Run, max_tokens: int, longest_prompt: int) -> str:
    """Where the memory of sampling goes: the key-value cache of the rows that are decoded side by side."""
    config = run.models["policy"].model.config
    rows = rows_at_once(run) or rows_of(run.config.generation)
    size = next(run.models["policy"].model.parameters()).element_size()
    cache = cache_numbers(config) * (longest_prompt + max_tokens) * size
    held = ", ".join(f"{name} {mebibytes(size)}" for name, size in model_bytes(run).items())
    return (
        f"up to generation.rows_per_pass = {rows} rows x {longest_prompt + max_tokens} tokens take "
        f"{mebibytes(cache)} of cache each, {mebibytes(rows * cache)} together, beside {held}; "
        + (
            "lower generation.rows_per_pass"
            if rows > 1
            else "lower generation.max_trace_tokens, or take a smaller model or a larger device"
        )
    )


def model_bytes(run: Run) -> Mapping[str, int]:
    """Bytes on this rank of weights (of all models, each once), of a full gradient, and of the optimizer's state."""
    weights = list({id(p): p for model in run.models.values() for p in model.model.parameters()}.values())
    states = [state for optimizer in run.optimizers.values() for state in optimizer.state.values()]
    moments = [v for state in states for v in state.values() if isinstance(v, Tensor)]
    return {"weights": _bytes(weights), "gradients": _bytes(run.parameters), "optimizer": _bytes(moments)}


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(local_part(t).numel() * t.element_size() for t in tensors)


def mebibytes(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:,.1f} MiB"
