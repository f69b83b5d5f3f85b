"""Copies of a model that are read and never trained, on the device or in host memory between readings."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from covrl.models.model import LanguageModel


class Offloaded(LanguageModel):
    """A copy whose weights are in host memory, and on the device ``work`` from a reading to the next :meth:`rest`.

    What is on the device is a copy of them, so nothing has to be brought back.
    """

    def __init__(self, copied: LanguageModel, work: torch.device) -> None:
        super().__init__(copied.model, copied.temperature)
        self.work = work
        self.paths, self.compute_dtype, self.noise = copied.paths, copied.compute_dtype, copied.noise
        self._home: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.work

    def own_weights(self) -> list[nn.Parameter]:
        """In host memory."""
        self.rest()
        return super().own_weights()

    def save(self, folder: Path) -> None:
        self.rest()
        super().save(folder)

    def load(self, folder: Path) -> None:
        self.rest()
        super().load(folder)

    def _forward(self, ids: Tensor, **named: Any) -> Tensor:
        self._fetch()
        return super()._forward(ids, **named)

    def _fetch(self) -> None:
        if self._home:
            return
        named = (self.model.named_parameters(remove_duplicate=False), self.model.named_buffers(remove_duplicate=False))
        self._home = {name: tensor for part in named for name, tensor in part}
        distinct = {id(tensor): tensor for tensor in self._home.values()}
        there = {key: _like(t, t.detach().to(self.work, non_blocking=True)) for key, t in distinct.items()}
        self._put({name: there[id(tensor)] for name, tensor in self._home.items()})  # what was tied is tied there too

    def rest(self) -> None:
        """Give the device's memory back."""
        self._put(self._home)
        self._home = {}

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, tensor)


def _like(tensor: Tensor, moved: Tensor) -> Tensor:
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def rest(models: Iterable[LanguageModel]) -> None:
    """Give the device back what models beside the policy took of it; those that stay there are left alone."""
    for model in models:
        if isinstance(model, Offloaded):
            model.rest()


def frozen_copy(model: LanguageModel, device: torch.device | None = None) -> LanguageModel:
    """A copy whose weights take no gradient, on the same fast paths; on ``device``, without a second copy elsewhere.

    Of a model that is empty as yet the copy is too.
    """

    def put(tensor: Tensor) -> Tensor:
        return tensor.detach().to(tensor.device if tensor.is_meta else device or tensor.device, copy=True)

    placed: dict[int, Tensor] = {id(p): nn.Parameter(put(p), requires_grad=False) for p in model.model.parameters()}
    placed |= {id(b): put(b) for b in model.model.buffers()}
    copied = LanguageModel(copy.deepcopy(model.model, placed), model.temperature)
    copied.paths = model.paths
    copied.compute_dtype, copied.noise = model.compute_dtype, model.noise
    return copied
