"""FSDP2 on a model whose output layer is used apart from its trunk.

Each transformer block and the rest of the trunk are sharded; the output layer, and with it the embedding where the two
are tied, stays whole on every rank, because the chunked head reads its weight outside of any module's forward.
Adapters stay whole too: they are small, and wider than a base in bfloat16, which no one group of shards can be. The
gradients of what is whole are added up as those of replicated weights are.

FSDP divides the gradient by the number of ranks. Ours is a sum over all ranks' traces with denominators of the whole
batch, so that division is switched off here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from covrl.scoring.adapters import all_adapters
from covrl.scoring.compute import blocks
from covrl.scoring.model import LanguageModel


def why_not(model: LanguageModel) -> str | None:
    """Why a model's weights cannot be sharded, or None."""
    if not model.paths.split_head:
        return "its output layer cannot be used apart from its trunk"
    if not model.paths.padded:
        return "it reads rows of one length at a time, so ranks would differ in their numbers of passes"
    return None


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Shard a Hugging Face model in place, over all ranks of ``mesh``."""
    trunk = model.base_model
    whole = {*model.get_output_embeddings().parameters(), *all_adapters(model)}
    for block in blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(trunk, mesh=mesh, ignored_params=whole)
    for module in _sharded_modules(model):
        module.set_gradient_divide_factor(1.0)  # a sum over ranks, not a mean
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    return (m for m in model.modules() if isinstance(m, FSDPModule))


@contextmanager
def gathered(model: Any) -> Generator[None]:
    """While entered, every rank has the whole weights and forward passes need no other rank. No backward passes."""
    modules = list(_sharded_modules(model))
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not model.base_model, recurse=False)


def like_parameter(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """``value`` (an optimizer's moment of the whole parameter) laid out over ranks as ``parameter`` is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; all ranks call it."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()


def whole_copy(model: Any, keep: bool) -> Any:
    """A plain model of the same class with the whole weights, in the CPU's memory; None unless ``keep``.

    All ranks call it.
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        full = whole(value)
        if keep:
            state[name] = full.cpu()
    if not keep:
        return None
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
