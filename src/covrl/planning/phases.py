"""`covrl train --dry-run --plan "8x80GB"`: what a run takes of hardware that is not there, by phase and kind.

Every line is arithmetic on a model's numbers (:class:`covrl.planning.weightless.Shape`) and on what one pass takes
(:class:`Passes`, counted on tensors without numbers). The unit is bytes of live tensors on one rank: what the driver,
NCCL and the allocator take on top is what :data:`PLANNED` leaves free.

    loading      the first rank while the fast paths are proved
    sampling     the weights that it computes with, keys and values of all rows at full length, the logits of a token
    scoring      a pass without gradients
    head         a training pass in the backward of the output layer: all that the blocks keep is there
    blocks       the same in the backward of the last block
    AdamW        the optimizer's step
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from covrl.errors import UserError
from covrl.generation.decoding import ROOM, room_to_add
from covrl.generation.engine import DRAWN_BYTES
from covrl.models.eight_bit import CHUNK, WORK, WORK_OF_SHORT
from covrl.planning.weightless import HeadBytes, Shape, TrunkBytes

PLANNED = 0.9
"""Of a device's memory, what live tensors should take at most. INFERRED: the driver's context, NCCL's buffers and what
the allocator keeps between sizes take a few GB, and no GPU was at hand to measure them."""

LINES = (
    "weights",
    "other models",
    "gradients",
    "moments",
    "casts",
    "gathered weights",
    "gathered gradients",
    "keys and values",
    "activations",
    "head",
    "update",
)
"""Of the table, from top to bottom."""

SIZES = {"float32": 4, "mixed": 4, "bfloat16": 2, "float64": 8}
"""Bytes of a weight, by ``model.dtype``."""

COMPUTED = {"float32": 4, "mixed": 2, "bfloat16": 2, "float64": 8}
"""Bytes of a number in matrix products, keys and values."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """So many devices of so many bytes each.

    Example:
        >>> Hardware.named("8x80GB")
        Hardware(devices=8, memory=80000000000)
    """

    devices: int
    memory: int

    @classmethod
    def named(cls, text: str) -> Hardware:
        """What a user writes; GB are 10⁹ bytes, of which a device that is sold by GB has some more.

        Raises:
            UserError: it is written otherwise.
        """
        found = re.fullmatch(r"\s*([1-9]\d{0,4})\s*[x×]\s*(\d+(?:\.\d+)?)\s*GB\s*", text, flags=re.IGNORECASE)
        if not found or not float(found[2]):
            raise UserError(f'--plan {text!r}: write devices and the memory of each, such as "8x80GB" or "1x24GB"')
        return cls(int(found[1]), round(float(found[2]) * 1e9))


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of each rank.

    ``sharded``: weights, gradients and moments are spread over ``ranks``. ``rows`` are decoded side by side, of
    ``prompt`` + ``trace`` tokens each, ``siblings`` of them after one prompt. ``engine_bytes`` are those of an engine
    beside the trainer (vLLM), 0 where torch samples; ``samples_here``: not on a server elsewhere. ``copies`` are whole
    models beside the policy, of which ``away`` says that they are on the device only while they are read.
    ``loads_parts``: no rank ever holds a whole copy on its way from the files. ``eight_bit``: moments of matrices are
    codes.
    """

    dtype: str
    ranks: int
    sharded: bool
    offload_moments: bool
    rows: int
    prompt: int
    trace: int
    siblings: int
    engine_bytes: int = 0
    samples_here: bool = True
    copies: int = 0
    away: bool = False
    loads_parts: bool = False
    eight_bit: bool = False

    @property
    def parts(self) -> int:
        """Among how many ranks a whole is split."""
        return self.ranks if self.sharded else 1


@dataclass(frozen=True, slots=True)
class Passes:
    """What passes take beside weights, gradients and moments: ``trunk`` of the pass that trains and scores, ``prefill``
    of one that reads prompts; ``trace`` and ``answer`` of the head on these spans (None: not read)."""

    trunk: TrunkBytes
    prefill: TrunkBytes
    trace: HeadBytes | None
    answer: HeadBytes | None = None

    @property
    def spans(self) -> list[HeadBytes]:
        """The heads that are applied."""
        return [span for span in (self.trace, self.answer) if span is not None]


Lines = Mapping[str, int]
"""Bytes by line of the table."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A column of the table."""

    name: str
    lines: Lines = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of live tensors."""
        return sum(self.lines.values())


def weight_bytes(shape: Shape, job: Job) -> int:
    """A rank's weights: its part of the base, and adapters whole, in float32 beside a narrower base.

    Linear layers in 4 bits are whole on every rank too, which is where there are some.
    """
    wide = (shape.base - shape.packed) * SIZES[job.dtype]
    return -(-wide // job.parts) + shape.packed_bytes + shape.adapters * max(4, SIZES[job.dtype])


def trained_width(shape: Shape, job: Job) -> int:
    """Bytes of a weight that is trained."""
    return max(4, SIZES[job.dtype]) if shape.adapters else SIZES[job.dtype]


def gradient_bytes(shape: Shape, job: Job) -> int:
    """A rank's gradients, as wide as the weights that take them; adapters' are whole on every rank."""
    return -(-shape.trained * trained_width(shape, job) // (1 if shape.adapters else job.parts))


def moment_bytes(shape: Shape, job: Job) -> int:
    """AdamW's two moments, each as large as a gradient; where they are codes a byte a number, and four a block."""
    if not job.eight_bit:
        return 2 * gradient_bytes(shape, job)
    one = shape.codes + 4 * shape.scales + (shape.trained - shape.codes) * trained_width(shape, job)
    return 2 * -(-one // (1 if shape.adapters else job.parts))


def update_bytes(shape: Shape, job: Job) -> int:
    """What the step takes beside its state: one kernel nothing, codes what they are read into, some rows at a time."""
    largest = shape.largest if shape.adapters else -(-shape.largest // job.parts)
    work = WORK if trained_width(shape, job) >= 4 else WORK_OF_SHORT
    return work * min(CHUNK, largest) if job.eight_bit else 0


def cast_bytes(shape: Shape, job: Job) -> int:
    """The casts to bfloat16 that a mixed pass makes of the blocks' linear layers, where no gather brings them so."""
    return 2 * shape.linear if job.dtype == "mixed" and job.parts == 1 else 0


def other_models(shape: Shape, job: Job, read: bool) -> int:
    """Whole copies beside the policy, which no rank shares; ``read``: in a phase that reads them."""
    return job.copies * shape.base * SIZES[job.dtype] if read or not job.away else 0


def gathered(shape: Shape, job: Job, elements: int) -> int:
    """``elements`` of the blocks gathered in the dtype of products, and all else as wide as the weights are."""
    return elements * COMPUTED[job.dtype] + shape.ends * SIZES[job.dtype] if job.parts > 1 else 0


def whole_bytes(shape: Shape, job: Job) -> int:
    """All weights gathered on each rank: while torch samples and the policy scores."""
    return gathered(shape, job, shape.blocks)


def gathered_blocks(shape: Shape, job: Job) -> int:
    """For a training pass: two blocks (one computes, the next is on its way), and all else from begin to end."""
    return gathered(shape, job, 2 * shape.block)


def gathered_ends(shape: Shape, job: Job) -> int:
    """Gradients of what is outside of the blocks, whole until the end of the backward."""
    return shape.ends * SIZES[job.dtype] if job.parts > 1 and not shape.adapters else 0


def gathered_gradients(shape: Shape, job: Job) -> int:
    """The same, and those of two blocks before each rank has its part: as computed, and to be summed in float32."""
    if job.parts == 1 or shape.adapters:
        return 0
    return gathered_ends(shape, job) + 2 * shape.block * (COMPUTED[job.dtype] + max(4, SIZES[job.dtype]))


def loading(shape: Shape, job: Job) -> Phase:
    """The first rank while it proves the fast paths of all layers; where ranks load their parts there are a few."""
    if job.loads_parts:
        return Phase("loading", {"weights": weight_bytes(shape, job)})
    casts = 2 * (shape.linear + shape.head) if job.dtype == "mixed" else 0
    whole = shape.base * SIZES[job.dtype] + shape.adapters * max(4, SIZES[job.dtype])
    return Phase("loading", {"weights": whole, "casts": casts})


def slots(trace: int) -> int:
    """Slots of a row's buffer for its own tokens when it has ``trace`` of them."""
    room = min(ROOM, trace)
    while room < trace:
        room += room_to_add(room, trace)
    return room


def key_value_bytes(shape: Shape, job: Job) -> int:
    """Keys and values of all rows at full length; a layer's are there twice while its buffer grows."""
    row = shape.keys * (job.prompt + slots(job.trace)) * COMPUTED[job.dtype]
    whole = job.rows * row
    return whole + whole // shape.layers


def drawing_bytes(shape: Shape, job: Job) -> int:
    """Logits of a token of each row, and what draws from them, some rows at a time: one in float32, two in float64."""
    logits = job.rows * shape.vocabulary * COMPUTED[job.dtype]
    return logits + (4 + 8 + 8) * min(DRAWN_BYTES // 8, job.rows * shape.vocabulary)


def distinct_prompts(job: Job) -> int:
    """Prompts among the rows that are decoded side by side."""
    return -(-job.rows // max(1, job.siblings))


def held(shape: Shape, job: Job, read: bool = False) -> dict[str, int]:
    """What is there in every phase: weights, models beside the policy, and moments where they have no place else."""
    return {
        "weights": weight_bytes(shape, job),
        "other models": other_models(shape, job, read),
        "moments": 0 if job.offload_moments else moment_bytes(shape, job),
    }


def sampling(shape: Shape, job: Job, passes: Passes) -> Phase:
    """While rows are decoded: the larger of reading the prompts and of the last token."""
    base = held(shape, job)
    if not job.samples_here:
        return Phase("sampling", base)
    if job.engine_bytes:
        return Phase("sampling", base | {"keys and values": job.engine_bytes})
    head = 2 * shape.head if job.dtype == "mixed" and job.parts == 1 else 0
    casts = cast_bytes(shape, job) + head
    base |= {"casts": casts, "gathered weights": whole_bytes(shape, job)}
    keys, draw = key_value_bytes(shape, job), drawing_bytes(shape, job)
    prompts = job.rows * shape.keys * (job.prompt + min(ROOM, job.trace)) * COMPUTED[job.dtype]
    reading = prompts + passes.prefill.read - cast_bytes(shape, job) + 2 * job.rows * shape.vocabulary * 4
    if reading > keys + draw:
        rest = max(0, reading - prompts)
        return Phase("sampling", base | {"keys and values": prompts, "activations": rest})
    return Phase("sampling", base | {"keys and values": keys, "head": draw})


def scoring(shape: Shape, job: Job, passes: Passes) -> Phase:
    """A pass without gradients: the larger of the trunk's and the head's."""
    base = held(shape, job, read=True) | {"gathered weights": whole_bytes(shape, job)}
    casts = cast_bytes(shape, job)
    head = max((span.read for span in passes.spans), default=0)
    if passes.trunk.read - casts > head:
        return Phase("scoring", base | {"casts": casts, "activations": passes.trunk.read - casts})
    return Phase("scoring", base | {"head": head})


def training_held(shape: Shape, job: Job) -> dict[str, int]:
    """What a training pass finds: gradients too, those of earlier passes."""
    return held(shape, job) | {
        "gradients": gradient_bytes(shape, job),
        "gathered weights": gathered_blocks(shape, job),
    }


def head_backward(shape: Shape, job: Job, passes: Passes, kept_casts: int) -> Phase:
    """A training pass when its backward begins: what all blocks keep, and what the output layer takes.

    ``kept_casts`` are those that the blocks keep: none where activations are computed again.
    """
    kept = sum(span.kept for span in passes.spans)
    work = max((span.backward - span.kept for span in passes.spans), default=0)
    lines = {
        "casts": kept_casts,
        "activations": passes.trunk.kept - kept_casts,
        "head": kept + work,
        "gathered gradients": gathered_ends(shape, job),
    }
    return Phase("head", training_held(shape, job) | lines)


def block_backward(shape: Shape, job: Job, passes: Passes, kept_casts: int) -> Phase:
    """A training pass in its blocks: the most of the forward and of the backward.

    A tied output layer's gradient waits for that of the embedding.
    """
    waits = shape.head * SIZES[job.dtype] if shape.tied and not shape.adapters and job.parts == 1 else 0
    casts = min(kept_casts or cast_bytes(shape, job), passes.trunk.forward)
    forward = {"casts": casts, "activations": passes.trunk.forward - casts}
    backward = {
        "casts": kept_casts,
        "activations": passes.trunk.backward - kept_casts,
        "head": waits,
        "gathered gradients": gathered_gradients(shape, job),
    }
    larger = max(forward, backward, key=lambda lines: sum(lines.values()))
    return Phase("blocks", training_held(shape, job) | larger)


def optimizer_step(shape: Shape, job: Job) -> Phase:
    """AdamW's step; moments are there, wherever they are else."""
    lines = {
        "moments": moment_bytes(shape, job),
        "gradients": gradient_bytes(shape, job),
        "update": update_bytes(shape, job),
    }
    return Phase("AdamW", held(shape, job) | lines)


def phases(shape: Shape, job: Job, passes: Passes, recompute: bool) -> tuple[Phase, ...]:
    """The columns of the table."""
    kept_casts = 0 if recompute else cast_bytes(shape, job)
    return (
        loading(shape, job),
        sampling(shape, job, passes),
        scoring(shape, job, passes),
        head_backward(shape, job, passes, kept_casts),
        block_backward(shape, job, passes, kept_casts),
        optimizer_step(shape, job),
    )
