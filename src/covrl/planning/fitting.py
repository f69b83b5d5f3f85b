"""What a run takes of memory, as numbers, and how much work at once fits: arithmetic that knows no run.

tokens   the fewest with which a pass is within 5 % of the fastest, or that hold a whole group where groups are
         scored in their training forward; what memory holds, if that is less
rows     as many as sampling gains from; what memory holds, if that is less
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from covrl.planning.machine import Memory
from covrl.scoring.pack import LOGITS

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


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run takes, in bytes; of sharded weights this process's part.

    Held all the time: ``weights``, and the ``optimizer``'s state (0 where it is there in its step alone). In a
    training pass besides: ``gradients``, ``apart``
    (one more for each stream, in steps that measure these), ``fixed`` (casts of weights), ``token`` for each token,
    ``logits``. In sampling besides: ``ready`` (weights made ready for it), and ``row`` for each row of full length.

    ``trace`` are the padded tokens of one trace's rows of full length; ``group`` those of a whole group where it is
    read once, in its training forward, else 0. ``recomputed`` is about what ``token`` is with ``training.recompute``;
    None where that is set.
    """

    weights: int
    optimizer: int
    gradients: int
    apart: int
    fixed: int
    token: float
    recomputed: float | None
    logits: int
    ready: int
    row: int
    trace: int
    group: int

    def training(self, tokens: float) -> int:
        """Bytes in a pass of so many padded tokens."""
        held = self.weights + self.optimizer + self.gradients + self.apart + self.fixed + self.logits
        return held + round(self.token * tokens)

    def sampling(self, rows: float) -> int:
        """Bytes while so many rows are decoded."""
        return self.weights + self.optimizer + self.ready + round(self.row * rows)


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


def readable(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):,.1f} {unit}"
    return f"{size:,.0f} bytes"
