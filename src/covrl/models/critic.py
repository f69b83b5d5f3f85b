"""Models whose output layer is one number a position: the value of the state before the next token.

The head is a linear layer on the last hidden states, in float32 or wider, and zero before the first step: every value
is then 0, and an advantage the return itself. It is kept beside the model's own files as ``value_head.safetensors``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from covrl.models.model import LanguageModel, States
from covrl.models.projection import Projection
from covrl.models.text import trunk

HEAD_FILE = "value_head.safetensors"


def value_head(model: Any) -> nn.Linear:
    """A head for a Hugging Face model's hidden states, ``[D] -> [1]``, all zeros, where the model is."""
    output = model.get_output_embeddings().weight
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    device = torch.device("cpu") if output.is_meta else output.device
    head = nn.Linear(output.shape[1], 1, dtype=wide, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class _WithValueHead(LanguageModel):
    """What both kinds share: the head in the place of the output layer."""

    def __init__(self, base: LanguageModel) -> None:
        super().__init__(base.model)
        self.paths, self.compute_dtype, self.noise = base.paths, base.compute_dtype, base.noise
        self.head = value_head(base.model)

    def projection(self) -> Projection:
        return Projection(self.head.weight, self.head.bias)

    def place(self, device: torch.device) -> None:
        self.head.to(device)

    def _save_head(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().contiguous() for name, t in self.head.state_dict().items()}, folder / HEAD_FILE)

    def _load_head(self, folder: Path) -> None:
        self.head.load_state_dict(load_file(folder / HEAD_FILE))


class Critic(_WithValueHead):
    """A trained model with a value head in the place of its output layer.

    ``base`` is a copy of the policy's base, or an adapter on weights that the policy shares. What is its alone takes
    gradients from here on.
    """

    def __init__(self, base: LanguageModel) -> None:
        super().__init__(base)
        self.base = base
        for parameter in self._trunk_weights().values():
            parameter.requires_grad_(True)

    def _trunk_weights(self) -> dict[str, nn.Parameter]:
        own = set(map(id, self.base.own_weights()))
        return {name: p for name, p in trunk(self.model).named_parameters() if id(p) in own}

    def named_trained(self) -> dict[str, nn.Parameter]:
        trained = {f"model.{name}": p for name, p in self._trunk_weights().items() if p.requires_grad}
        return trained | {f"value_head.{name}": p for name, p in self.head.named_parameters()}

    def own_weights(self) -> list[nn.Parameter]:
        return [*self.base.own_weights(), *self.head.parameters()]

    def _forward(self, ids: Tensor, **named: Any) -> Tensor:
        return self.base._forward(ids, **named)

    def save(self, folder: Path) -> None:
        self.base.save(folder)
        self._save_head(folder)

    def load(self, folder: Path) -> None:
        self.base.load(folder)
        self._load_head(folder)


class HeadOnTrunk(_WithValueHead):
    """A value head on the policy's own hidden states: its loss trains the policy's trunk too, at the policy's rate."""

    def __init__(self, policy: LanguageModel) -> None:
        super().__init__(policy)
        self.policy = policy

    @property
    def trunk_of(self) -> LanguageModel:
        return self.policy

    def states(self, rows: Any) -> States:
        return self.policy.states(rows)

    def named_trained(self) -> dict[str, nn.Parameter]:
        return {f"value_head.{name}": p for name, p in self.head.named_parameters()}

    def own_weights(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def save(self, folder: Path) -> None:
        self._save_head(folder)

    def load(self, folder: Path) -> None:
        self._load_head(folder)
