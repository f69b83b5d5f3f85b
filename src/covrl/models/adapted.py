"""A model that is a base with an adapter, and shares that base with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from covrl.models import adapters
from covrl.models.model import LanguageModel


class Adapted(LanguageModel):
    """A model that shares its base with others and differs from it by an adapter, or by none (``adapter`` is None).

    The policy's adapter is on whenever no other model of the base is being read. Its weights take a gradient, and so do
    those of a critic's adapter (:class:`covrl.models.critic.Critic`).
    """

    def __init__(self, base: LanguageModel, adapter: str | None) -> None:
        super().__init__(base.model, base.temperature)
        self.adapter = adapter
        self.paths, self.compute_dtype, self.noise = base.paths, base.compute_dtype, base.noise

    def own_weights(self) -> list[nn.Parameter]:
        if self.adapter is None:
            return []
        return list(adapters.adapter_weights(self.model, self.adapter).values())

    def named_trained(self) -> dict[str, nn.Parameter]:
        if self.adapter != adapters.POLICY:
            return {}
        own = set(map(id, self.own_weights()))
        return {name: p for name, p in super().named_trained().items() if id(p) in own}

    def save(self, folder: Path) -> None:
        """Write the adapter, as PEFT reads it."""
        assert self.adapter is not None
        adapters.save_adapter(self.model, self.adapter, folder)

    def load(self, folder: Path) -> None:
        assert self.adapter is not None
        adapters.put_weights(self.model, self.adapter, adapters.read_weights(folder), folder)

    def _forward(self, ids: Tensor, **named: Any) -> Tensor:
        if self.adapter == adapters.POLICY:
            return super()._forward(ids, **named)
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.own_weights())
        with adapters.switched(self.model, self.adapter), torch.set_grad_enabled(learns):
            return super()._forward(ids, **named)
