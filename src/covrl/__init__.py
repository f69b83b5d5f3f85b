"""covrl: reinforcement learning of language-model reasoning, with or without a verifier.

The names below load on first use, so that ``import covrl`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covrl.api import Trained, build, train
    from covrl.config import RunConfig
    from covrl.errors import NonFiniteError, TrainingStoppedError, UserError
    from covrl.notebook.run import Run
    from covrl.records import Problem, Request, Rollout
    from covrl.rewards.named import NamedReward

__version__ = "0.1.0"

_HOMES = {
    "build": "covrl.api",
    "train": "covrl.api",
    "Trained": "covrl.api",
    "RunConfig": "covrl.config",
    "UserError": "covrl.errors",
    "TrainingStoppedError": "covrl.errors",
    "NonFiniteError": "covrl.errors",
    "Problem": "covrl.records",
    "Request": "covrl.records",
    "Rollout": "covrl.records",
    "Run": "covrl.notebook.run",
    "NamedReward": "covrl.rewards.named",
}

__all__ = [
    "NamedReward",
    "NonFiniteError",
    "Problem",
    "Request",
    "Rollout",
    "Run",
    "RunConfig",
    "Trained",
    "TrainingStoppedError",
    "UserError",
    "build",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'covrl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
