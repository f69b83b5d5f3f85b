"""Several processes under torchrun: gloo on the CPU, NCCL on GPUs (with gloo for records).

    torchrun --nproc-per-node 2 -m covrl train --config run.toml
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from covrl.errors import NonFiniteError, UserError
from covrl.records import Output, Scores
from covrl.training.parallel import Solo, part_of

if TYPE_CHECKING:
    from covrl.training.loop import Run

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another. Ranks sample for different times; one that died is noticed at once."""

BUCKET = 16 << 20
"""Elements of gradients that are added up in one message."""


def join_world(device: str) -> Solo:
    """The world that torchrun's environment describes; a world of one process without it.

    ``device`` is ``model.device``. With ``auto`` or ``cuda`` each process takes the GPU of its local rank.

    Raises:
        UserError: fewer GPUs than processes, or a device that several processes would share.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Solo()
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        _take_gpu(device, int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    return Processes(dist.get_rank(), dist.get_world_size())


def _take_gpu(device: str, local_rank: int) -> None:
    if ":" in device:
        raise UserError(f"model.device: {device}: several processes cannot share one GPU; use cuda or auto")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started a process for GPU {local_rank}, but torch sees {torch.cuda.device_count()}; "
            "lower --nproc-per-node, or set model.device=cpu"
        )
    torch.cuda.set_device(local_rank)


class Processes(Solo):
    """The processes of one torchrun. Every rank holds all weights; gradients are added up over ranks."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def shared(self, work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
        if not items:
            return []
        mine = items[part_of(len(items), self.rank, self.size)]
        parts = self._gathered(_portable(work(mine) if mine else []))
        return [result for part in parts for result in _restored(part)]

    def _gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def same(self, value: Result) -> Result:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, flag: bool) -> bool:
        count = torch.tensor(int(flag))
        dist.all_reduce(count)
        return bool(count)

    def union(self, names: list[str]) -> list[str]:
        return list(dict.fromkeys(name for part in self._gathered(names) for name in part))

    def total(self, values: dict[str, float]) -> dict[str, float]:
        sums = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def summed(self, gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """In buckets of one dtype, each a single message; a rank that has no gradient where another has one adds 0."""
        present = torch.tensor([g is not None for g in gradients], dtype=torch.int32)
        dist.all_reduce(present, dist.ReduceOp.MAX)
        result: list[Tensor | None] = [None] * len(gradients)
        for bucket in _buckets([p for p in range(len(parameters)) if present[p]], parameters):
            parts = [gradients[i] for i in bucket]
            flat = torch.cat(
                [torch.zeros_like(parameters[i]).flatten() if g is None else g.flatten() for i, g in zip(bucket, parts, strict=True)]
            )
            dist.all_reduce(flat)
            sums = flat.split([parameters[i].numel() for i in bucket])
            for i, total in zip(bucket, sums, strict=True):
                result[i] = total.view_as(parameters[i])
        return result

    def postpone(self, error: NonFiniteError) -> NonFiniteError:
        return error

    def settle(self, error: NonFiniteError | None) -> None:
        messages = self._gathered(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise NonFiniteError(f"{message} (on rank {rank})")

    def distribute(self, run: Run) -> None:
        state = self._gathered((run.done, run.source.state_dict(), run.config.model_dump(mode="json")))
        if any(other != state[0] for other in state):
            raise UserError("the processes read different settings or checkpoints; they need one shared folder")

    @contextmanager
    def whole_run(self, run: Run) -> Generator[Run | None]:
        yield run if self.first else None
        dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _buckets(indices: Sequence[int], parameters: Sequence[nn.Parameter]) -> Generator[list[int]]:
    """Runs of parameters of one dtype with at most ``BUCKET`` elements; a larger parameter comes alone."""
    bucket: list[int] = []
    held = 0
    for i in indices:
        parameter = parameters[i]
        if bucket and (held + parameter.numel() > BUCKET or parameter.dtype != parameters[bucket[0]].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(i)
        held += parameter.numel()
    if bucket:
        yield bucket


@dataclass(frozen=True, slots=True)
class _FlatScores:
    """Scores as they travel: one tensor, and where each value is in it. Views would be sent with all they view."""

    layout: list[tuple[int, list[tuple[Output, torch.Size]]]]  # (tokens, values) of each rollout
    flat: Tensor
    device: str


def _portable(results: Sequence[Any]) -> Any:
    if not any(isinstance(r, Scores) for r in results):
        return list(results)
    values = [v for scores in results for v in scores.values.values()]
    layout = [(s.tokens, [(output, v.shape) for output, v in s.values.items()]) for s in results]
    flat = torch.cat([v.detach().flatten() for v in values]) if values else torch.zeros(0)
    assert all(v.dtype == flat.dtype for v in values), "scores of one model have one dtype"
    return _FlatScores(layout, flat.cpu(), flat.device.type)


def _restored(part: Any) -> list[Any]:
    if not isinstance(part, _FlatScores):
        return part
    flat, at, found = part.flat.to(part.device), 0, []
    for tokens, layout in part.layout:
        values: dict[Output, Tensor] = {}
        for output, shape in layout:
            values[output] = flat[at : at + shape.numel()].view(shape)
            at += shape.numel()
        found.append(Scores(values, tokens))
    return found
