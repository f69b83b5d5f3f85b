"""FSDP2 on a model whose output layer is used apart from its trunk.

Each transformer block is a group of shards, and the rest is one more: embedding, last norm and output layer. That
group is whole from the beginning of a pass to the end of its backward, so the chunked head, which reads its weight
outside of any module's forward, finds it; between passes each rank has its part. Adapters stay whole: they are small,
and wider than a base in bfloat16, which no one group of shards can be. Their gradients are added up as those of
replicated weights are.

Where products are computed in bfloat16 on float32 weights, the blocks are gathered in bfloat16: half of the bytes, on
the way and while they are whole, and no casts beside them. What is summed over ranks, or over a pass (the gradients of
embedding and output layer), is float32.

FSDP divides the gradient by the number of ranks. Ours is a sum over all ranks' traces with denominators of the whole
batch, so that division is switched off here, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from covrl.distributed.deferred_oom import DeferredOOM, is_out_of_memory, no_room


class Sharded:
    """A model whose weights are in parts, as :class:`covrl.distributed.processes.Processes` uses it.

    ``memory`` is what holds errors of its passes back until all ranks are out of them.
    """

    def __init__(self, model: nn.Module, trunk: Any, memory: DeferredOOM) -> None:
        self.model, self.memory, self._trunk = model, memory, trunk

    @contextmanager
    def gathered(self) -> Generator[None]:
        """While entered, every rank has whole weights and its forward passes need no other rank. No backward passes."""
        modules = list(_sharded_modules(self.model))
        try:
            for module in modules:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = sum(p.numel() for p in self.model.parameters())
            raise no_room(error, f"a whole copy of the {size:,} weights") from error
        try:
            yield
        finally:
            for module in modules:
                module.reshard()
                module.set_reshard_after_forward(module is not self._trunk, recurse=False)

    def leave_pass(self) -> None:
        """Forget a forward pass whose backward will not come."""
        self._trunk.reset_iter_state()


def shard(
    model: Any,
    trunk: nn.Module,
    blocks: Iterable[nn.Module],
    left_whole: set[nn.Parameter],
    mesh: DeviceMesh,
    compute_dtype: torch.dtype | None = None,
) -> Sharded:
    """Shard a Hugging Face model in place, over all ranks of ``mesh``; ``blocks`` are gathered in ``compute_dtype``.

    ``trunk`` is the model but its output layer; each rank keeps all of the weights ``left_whole``.
    """
    memory = DeferredOOM()
    reduce = None if compute_dtype is None else torch.float32
    policy = MixedPrecisionPolicy(compute_dtype, reduce, cast_forward_inputs=False)
    for block in blocks:
        memory.hold(block)
        fully_shard(block, mesh=mesh, ignored_params=left_whole, mp_policy=policy)
    with _as_member(trunk, model.get_output_embeddings()):
        fully_shard(trunk, mesh=mesh, ignored_params=left_whole)
    for module in _sharded_modules(model):
        module.set_gradient_divide_factor(1.0)  # a sum over ranks, not a mean
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    memory.watch(trunk)
    # FSDP warns of in-place operations on what the trunk gives; there are none
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    return Sharded(model, trunk, memory)


@contextmanager
def _as_member(inside: Any, head: nn.Module) -> Generator[None]:
    """Let the output layer be found inside of the trunk: FSDP then keeps its weight with the trunk's own."""
    if any(module is head for module in inside.modules()):
        yield
        return
    inside.add_module("covrl_head", head)
    try:
        yield
    finally:
        del inside._modules["covrl_head"]


def _sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    return (m for m in model.modules() if isinstance(m, FSDPModule))


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; all ranks call it."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model's file holds: weights (tied ones once) and lasting buffers, in parts where they are sharded."""
    lasting = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in lasting}
    return {name: p.detach() for name, p in model.named_parameters()} | buffers


def fill(model: Any, device: torch.device, given: dict[str, Tensor] | None) -> None:
    """Bring the first rank's tensors ``given`` (all of its model's, whole) to this rank's model, one at a time.

    Of a sharded tensor each rank gets its part. ``given`` is None on the other ranks, whose model is empty.
    """
    if given is None:
        model.to_empty(device=device)
        model.tie_weights()
    with torch.no_grad():
        for name, tensor in all_tensors(model).items():
            source = given[name] if given is not None else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, DTensor):
                part = distribute_tensor(source, tensor.device_mesh, tensor.placements)
                tensor.to_local().copy_(part.to_local())
                continue
            plain = source.view(torch.uint8) if source.dtype == torch.bool else source
            dist.broadcast(plain, src=0)
            tensor.copy_(source)


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter (tied ones once) and buffer, saved or not."""
    return {**{n: p.detach() for n, p in model.named_parameters()}, **dict(model.named_buffers())}
