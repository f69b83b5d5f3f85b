"""AdamW with a schedule. Parameters below two dimensions (norms, biases) are not decayed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from covrl.config import TrainingConfig


def make_optimizer(parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """The optimizer at its peak learning rate; :func:`set_learning_rate` sets each step's.

    Shards of parameters and whole parameters are in groups apart, as no operation takes both.
    """
    kinds = [[p for p in parameters if isinstance(p, DTensor) == sharded] for sharded in (False, True)]
    groups = [
        {"params": [p for p in kind if (p.ndim >= 2) == decays], "weight_decay": config.weight_decay if decays else 0.0}
        for kind in kinds
        if kind
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.adam_betas)


def learning_rate(config: TrainingConfig, step: int, peak: float | None = None) -> float:
    """The rate of step ``step`` (0, 1, …): a linear warm-up, then constant, linear or cosine to the final share.

    ``peak`` is the largest; None: ``training.learning_rate``.
    """
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    falling = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (config.final_lr_share + (1 - config.final_lr_share) * falling)


def warm_up_note(config: TrainingConfig) -> str | None:
    """What a user should know of a warm-up that is not over when the run is; None for any other."""
    if config.warmup_steps < config.steps:
        return None
    largest = learning_rate(config, config.steps - 1)
    return (
        f"training.warmup_steps = {config.warmup_steps} is not below training.steps = {config.steps}: the learning "
        f"rate rises to {largest:.3g} in the last step and never reaches training.learning_rate = "
        f"{config.learning_rate:g}; lower training.warmup_steps, or train for more steps"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
