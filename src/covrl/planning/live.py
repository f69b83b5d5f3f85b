"""Bytes of the tensors that are alive, now and at most, on any device and for tensors without numbers too.

That is the unit of :mod:`covrl.planning.phases`: what allocators round up or keep is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts while entered: ``live`` are the bytes of storages that are alive, ``peak`` the most of them so far.

    A storage counts once, whatever views it has, from the operation that makes it to its end. What was there before
    counts if it is given as ``held``. What an operation takes inside of itself is not seen.

    Example:
        >>> with LiveBytes() as live:
        ...     a = torch.zeros(100)
        ...     b = a + 1
        ...     del a
        >>> live.live, live.peak
        (400, 800)
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def restart(self) -> None:
        """Let the peak be what is alive now."""
        self.peak = self.live

    def _see(self, tensor: Tensor) -> None:
        if tensor.layout is torch.strided:
            held: Any = tensor.untyped_storage()
            key, size = held._cdata, held.nbytes()
        else:  # packed for a kernel (:func:`covrl.models.compute.weights_ready`): it shows no storage
            held, key, size = tensor, id(tensor), tensor.numel() * tensor.element_size()
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(held, self._gone, key)
        self.live += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
