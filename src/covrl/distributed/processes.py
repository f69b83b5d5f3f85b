"""Several processes under torchrun: gloo on the CPU, NCCL on GPUs (with gloo for records).

torchrun --nproc-per-node 2 -m covrl train --config run.toml
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from covrl.distributed.deferred_oom import DeferredOOM, is_out_of_memory
from covrl.distributed.world import World, part_of
from covrl.errors import OutOfMemoryError, TrainingStoppedError, UserError
from covrl.precision import wide
from covrl.records import Output, Scores

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another. Sampling takes different times on different ranks; a dead rank is noticed at
once."""

BUCKET = 16 << 20
"""Elements of gradients that are summed in one message."""


def join_world(device: str) -> World:
    """The world that torchrun's environment describes; a world of one process without it.

    ``device`` is ``model.device``. With ``auto`` or ``cuda`` each process takes the GPU of its local rank.

    Raises:
        UserError: fewer GPUs than processes, or a device that several processes would share.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
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


class Shards(Protocol):
    """A policy whose weights are spread over the ranks."""

    def gathered(self) -> AbstractContextManager[None]:
        """While entered, every rank has whole weights."""

    def leave_pass(self) -> None:
        """Reset after a forward pass that has no backward pass."""


class Processes(World):
    """The processes of one torchrun.

    The first rank loads the weights; every rank then gets its part of them (:meth:`shard`), or all. Gradients are added
    up over ranks either way.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._shards: Shards | None = None
        self._whole = False
        self._agreed: Exception | None = None
        self._memory = DeferredOOM()
        self._independent = False

    def shard(self, shards: Shards, memory: DeferredOOM) -> None:
        """From here on each rank holds a part of the policy's weights."""
        self.sharded, self._shards, self._memory = True, shards, memory

    def shared(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], together: int = 1
    ) -> list[Result]:
        if not items:
            return []
        mine = items[part_of(len(items), self.rank // together, self.size // together)]
        own: Any = []
        error: Exception | None = None
        try:
            with self.independent():
                done = work(mine) if mine else []
                own = _portable(done if self.rank % together == 0 else [])
        except Exception as caught:  # raised below, on every rank: if one rank left alone, the others would wait for it
            error = caught
        self.raise_together(error)
        return [result for part in self._gathered(own) for result in _restored(part)]

    def gathered(self, own: Sequence[Item]) -> list[Item]:
        return [item for part in self._gathered(_portable(own)) for item in _restored(part)]

    def _gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: Result) -> Result:
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
        """In buckets of one dtype, each a single message; a rank without a gradient that another rank has adds 0."""
        shards = [isinstance(p, DTensor) for p in parameters]  # FSDP has summed these
        present = torch.tensor([g is not None for g in gradients], dtype=torch.int32)
        dist.all_reduce(present, dist.ReduceOp.MAX)
        result = [g if sharded else None for g, sharded in zip(gradients, shards, strict=True)]
        for bucket in _buckets([i for i in range(len(parameters)) if present[i] and not shards[i]], parameters):
            parts = [gradients[i] for i in bucket]
            flat = torch.cat(
                [
                    torch.zeros_like(parameters[i]).flatten() if g is None else g.flatten()
                    for i, g in zip(bucket, parts, strict=True)
                ]
            )
            dist.all_reduce(flat)
            sums = flat.split([parameters[i].numel() for i in bucket])
            for i, total in zip(bucket, sums, strict=True):
                result[i] = total.view_as(parameters[i])
        return result

    def raise_together(self, error: Exception | None) -> None:
        """The first rank with an error raises it, the others a copy of it."""
        found = self._gathered(None if error is None else _sendable(error))
        owner = next((rank for rank, one in enumerate(found) if one is not None), None)
        if owner is not None:
            self._agreed = error if error is not None and owner == self.rank else found[owner]
            raise self._agreed

    @property
    def can_raise_alone(self) -> bool:
        return self._independent

    @contextmanager
    def independent(self) -> Generator[None]:
        before, self._independent = self._independent, not self.sharded or self._whole
        try:
            yield
        finally:
            self._independent = before

    def agree(self, error: Exception | None, asked: bool) -> bool:
        """With sharded weights one small message per pass; if it asks to stop, all ranks stop before the backward."""
        if self.can_raise_alone:
            return super().agree(error, asked)
        held = self._memory.taken()  # cleared in any case, so that it does not appear in the next pass
        error = error or held
        flag = torch.tensor(2 if error is not None else int(asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        if flag:
            assert self._shards is not None
            self._shards.leave_pass()
        if flag == 2:
            self.raise_together(error)
        return bool(flag)

    def broke_off(self, error: Exception) -> bool:
        return not self.can_raise_alone and (self._memory.inside or not is_out_of_memory(error))

    def agreed(self, error: Exception) -> bool:
        if error is self._agreed or (error.__cause__ is not None and error.__cause__ is self._agreed):
            return True
        return isinstance(error, TrainingStoppedError) and not isinstance(error, OutOfMemoryError)

    def on_rank0(self, work: Callable[[], object]) -> None:
        error: Exception | None = None
        try:
            if self.first:
                work()
        except Exception as caught:
            error = caught
        self.raise_together(error)

    def check_same(self, value: object, what: str) -> None:
        found = self._gathered(value)
        if any(other != found[0] for other in found):
            raise UserError(f"the processes read different {what}; they need one shared folder")

    @contextmanager
    def whole_weights(self) -> Generator[None]:
        if not self.sharded or self._whole:
            yield
            return
        assert self._shards is not None
        with self._shards.gathered():
            self._whole = True
            try:
                yield
            finally:
                self._whole = False

    def norm(self, gradient: Sequence[Tensor | None]) -> float:
        """The squares of shards are summed over ranks; those of whole gradients are the same on all."""
        squares = {True: 0.0, False: 0.0}
        for g in gradient:
            if g is not None:
                local = g.to_local() if isinstance(g, DTensor) else g
                squares[isinstance(g, DTensor)] += float(wide(local).pow(2).sum())
        shards = self.total({"squares": squares[True]})["squares"] if self.sharded else 0.0
        return math.sqrt(shards + squares[False])

    def clip_gradient(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        if not self.sharded:
            return super().clip_gradient(parameters, limit)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = self.norm(gradients)
        factor = min(1.0, limit / (norm + 1e-6))  # as torch's own
        for g in gradients:
            (g.to_local() if isinstance(g, DTensor) else g).mul_(factor)
        return torch.tensor(norm, dtype=torch.float64)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


_ENDED = ("by peer", "Broken pipe", "remote process exited")
"""Messages of gloo (closed or reset "by peer", or a broken pipe) and NCCL about a connection whose other end has
ended."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether a message between ranks failed because another rank has ended, judged by the backends' messages."""
    if isinstance(error, dist.checkpoint.CheckpointException):
        return any(is_lost_peer(cause) for cause, _ in error.failures.values())
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _ENDED)


def _sendable(error: Exception) -> Exception:
    """The error, or its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class of the user may do anything when it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _buckets(indices: Sequence[int], parameters: Sequence[nn.Parameter]) -> Generator[list[int]]:
    """Runs of parameters of one dtype with at most ``BUCKET`` elements; a larger parameter is a run of its own."""
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
    """Scores for sending: one tensor, and the place of each value in it. A view would be sent with its whole
    storage."""

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
