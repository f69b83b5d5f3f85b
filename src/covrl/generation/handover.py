"""The trained weights on their way to an engine: a parameter at a time, or a layer at a time.

A weight that is spread over ranks (FSDP2's shards) is put together when its turn comes, on every rank, and let go
before the next: no rank holds a whole copy. So all ranks go through the same weights in the same order, and an engine
that stops in the middle must not keep its rank from the rest (:func:`handed_over`).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from covrl.distributed.deferred_oom import is_out_of_memory, no_room
from covrl.models.four_bit import packed, weight_of

Weights = Iterator[tuple[str, Tensor]]
"""Names as a model's files have them, and whole tensors."""


def weights_of(model: Any, dtype: torch.dtype | None = None) -> Weights:
    """The weights that a model computes with, tied ones once, in the order of its layers; floating ones in ``dtype``.

    Engines that get whole matrices know no adapters: a linear layer with LoRA is sent as W + scale·BA, added up before
    it is rounded, and one of 4 bits as the matrix that it computes with. All ranks of a sharded model have to go
    through all of them.
    """
    for _, part in layers_of(model, dtype):
        yield from part.items()


def layers_of(model: Any, dtype: torch.dtype | None = None) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same by layers: the name of each, such as ``model.layers.3``, with all of its weights.

    What stands outside of the blocks comes a module at a time. Weights that a model's files hold under other names or
    in another form than it computes with (fused experts) are brought to that form, a layer at a time too.
    """
    converts = bool(getattr(model, "_weight_conversions", None))
    four_bit = packed(model)
    apart, made = {id(own.scales) for own in four_bit}, {id(own.weight): own for own in four_bit}
    named = ((name, p) for name, p in model.named_parameters() if ".lora_" not in name and id(p) not in apart)
    for layer, part in groupby(named, key=lambda pair: layer_of(pair[0])):
        found: dict[str, Tensor] = {}
        for name, parameter in part:
            own = made.get(id(parameter))
            weight = parameter if own is None else weight_of(own.weight, own.scales)
            found[name.replace(".base_layer.", ".")] = _whole(model, name, weight, dtype)
        yield layer, revert_weight_conversion(model, found) if converts else found


def layer_of(name: str) -> str:
    """The block that a weight belongs to, or the module.

    Example:
        >>> layer_of("model.layers.3.mlp.experts.7.up_proj.weight"), layer_of("model.norm.weight")
        ('model.layers.3', 'model.norm')
    """
    block = re.match(r"(.*?\.\d+)\.", name)
    return block[1] if block else name.rpartition(".")[0]


@torch.no_grad()
def _whole(model: Any, name: str, parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
    own = parameter.detach()
    deltas = _deltas(model, name)
    if dtype is not None and own.is_floating_point() and not deltas:
        own = own.to(dtype)  # before it is sent between ranks
    value = own.full_tensor() if isinstance(own, DTensor) else own
    if deltas:
        value = sum((d.to(torch.promote_types(d.dtype, value.dtype)) for d in deltas), value)
        value = value.to(dtype or own.dtype)
    return value


def _deltas(model: Any, name: str) -> list[Tensor]:
    """What the adapters that are on add to a weight."""
    owner, inside, leaf = name.rpartition(".base_layer.")
    if not inside or leaf != "weight":
        return []
    layer = model.get_submodule(owner)
    on = () if layer.disable_adapters else layer.active_adapters
    return [layer.get_delta_weight(adapter) for adapter in on if adapter in layer.lora_A]


@contextmanager
def handed_over(parts: Iterator[Any]) -> Generator[Iterator[Any]]:
    """``parts`` of a model's weights for an engine to take; those that it leaves are gone through at the end.

    Else the other ranks, which put each weight together with this one, would wait for it.

    Raises:
        OutOfMemoryError: this rank could not put one together, whatever the engine made of that.
    """
    kept = _Kept(parts)
    try:
        yield kept
    finally:
        try:
            for _ in kept:
                pass
        except (RuntimeError, MemoryError):
            if kept.error is None:
                raise
        if kept.error is not None:
            raise no_room(kept.error, "a weight on its way to the engine") from kept.error


class _Kept:
    """The same parts; remembers where one could not be made for lack of memory."""

    def __init__(self, parts: Iterator[Any]) -> None:
        self.parts = parts
        self.error: BaseException | None = None

    def __iter__(self) -> _Kept:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.parts)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self.error = error
            raise
