"""How a model's forward is computed: in bfloat16 on float32 weights, and with activations computed again.

Both replace a module's ``forward`` by a method of the same module, so that deep copies (frozen references) and FSDP's
hooks, which are outside of ``forward``, work as without.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from covrl.errors import UserError


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


@contextmanager
def weights_cast_once(model: Any) -> Generator[None]:
    """Inside, without gradients, the passes of a model that computes in bfloat16 share one cast of its weights.

    Without this every pass casts them anew, which for a pass of a few tokens costs more than the pass itself.
    """
    if getattr(model.forward, "__func__", None) is not _autocast:
        yield
        return
    weights = list(model.parameters())
    learned = [p.requires_grad for p in weights]
    with torch.no_grad(), torch.autocast(weights[0].device.type, torch.bfloat16):
        try:
            for p in weights:  # autocast keeps casts of those alone that want a gradient
                p.requires_grad_(True)
            yield
        finally:
            for p, before in zip(weights, learned, strict=True):
                p.requires_grad_(before)


def recompute_activations(model: Any) -> None:
    """Keep only each block's input for the backward pass, which computes the block again: less memory, more time."""
    for block in blocks(model):
        block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return type(block).forward(block, *given, **named)
    # no random numbers to keep: dropout is off in every pass
    return checkpoint(type(block).forward, block, *given, use_reentrant=False, preserve_rng_state=False, **named)


def compile_trunk(model: Any) -> None:
    """Let torch.compile make the trunk's passes without a cache, which score and train; sampling is left as it is.

    Shapes are dynamic: what is compiled serves rows of any number and length. The module's hooks stay outside. The
    first such pass compiles, and raises UserError if there is no compiler or it cannot do this model.
    """
    trunk = model.base_model
    own = trunk.__dict__.get("forward")
    inner = type(trunk).forward if own is None else own.__func__
    compiled = torch.compile(inner, dynamic=True)
    tried = False

    def forward(module: nn.Module, *given: Any, **named: Any) -> Any:
        nonlocal tried
        decodes = getattr(named.get("covrl_layout"), "decodes", False)
        if decodes or named.get("use_cache") is not False or named.get("past_key_values") is not None:
            return inner(module, *given, **named)
        if tried:
            return compiled(module, *given, **named)
        try:
            found = compiled(module, *given, **named)
        except Exception as error:  # its many stages raise as many kinds, from a missing compiler to a bug in one
            raise _cannot_compile(type(model).__name__, error) from error
        tried = True
        return found

    trunk.forward = MethodType(forward, trunk)


def _cannot_compile(name: str, error: Exception) -> UserError:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Set TORCH")]
    said = " ".join(lines[:2]) or type(error).__name__
    return UserError(
        f"model.compile: torch.compile cannot do {name} here: {said[:300]}; it needs a C++ compiler (g++ or "
        "clang++) for a CPU and triton for a GPU; leave model.compile out"
    )
