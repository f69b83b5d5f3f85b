"""Models beside the policy: frozen or following copies that are read and never trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch

from covrl.algorithms.base import ModelSpec
from covrl.scoring.model import LanguageModel


def frozen_copy(model: LanguageModel) -> LanguageModel:
    """A copy whose weights take no gradient, on the same fast paths."""
    copied = LanguageModel(copy.deepcopy(model.model).requires_grad_(False), model.temperature)
    copied.paths = model.paths
    copied.compute_dtype = model.compute_dtype
    return copied


@torch.no_grad()
def follow(specs: Sequence[ModelSpec], models: Mapping[str, LanguageModel], done: int) -> None:
    """Move the models that follow the policy, after ``done`` steps.

    ``copy``: they become the policy's every ``every`` steps. ``average``: keep·own + (1 − keep)·policy, as often.
    """
    for spec in specs:
        if spec.follows == "frozen" or done % spec.every:
            continue
        keep = 0.0 if spec.follows == "copy" else spec.keep
        for own, policy in zip(models[spec.name].model.parameters(), models["policy"].model.parameters(), strict=True):
            own.lerp_(policy.to(own.dtype), 1.0 - keep)
