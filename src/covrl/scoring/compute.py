"""How a model's forward is computed: in bfloat16 on float32 weights, and with activations computed again.

Both replace a module's ``forward`` by a method of the same module, so that deep copies (frozen references) and FSDP's
hooks, which are outside of ``forward``, work as without.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks: the members of the trunk's largest list of modules."""
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=()))


def compute_in_bfloat16(model: Any) -> None:
    """Run matrix products and attention in bfloat16 (autocast); weights, residuals, norms and gradients stay wide.

    Training, scoring and sampling all go through the same two ``forward``.
    """
    for module in (model, model.base_model):
        module.forward = MethodType(_autocast, module)


def _autocast(module: nn.Module, *given: Any, **named: Any) -> Any:
    with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
        return type(module).forward(module, *given, **named)


def recompute_activations(model: Any) -> None:
    """Keep only each block's input for the backward pass, which computes the block again: less memory, more time."""
    for block in blocks(model):
        block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return type(block).forward(block, *given, **named)
    # no random numbers to keep: dropout is off in every pass
    return checkpoint(type(block).forward, block, *given, use_reentrant=False, preserve_rng_state=False, **named)
