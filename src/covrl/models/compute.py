"""How a model's forward is computed: in bfloat16 on float32 weights, and with activations computed again.

Both replace a module's ``forward`` by a method of the same module, so that deep copies (frozen references) and FSDP's
hooks, which are outside of ``forward``, work as without.
"""

from __future__ import annotations

import platform
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from covrl.errors import UserError
from covrl.models.adapters import as_now
from covrl.models.text import rope_switches, trunk


def blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks: the members of the trunk's largest list of modules."""
    lists = [m for m in trunk(model).modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=()))


def compute_in_bfloat16(model: Any) -> None:
    """Run matrix products and attention in bfloat16 (autocast); weights, residuals, norms and gradients stay wide.

    Training, scoring and sampling all go through the same two ``forward``.
    """
    for module in (model, trunk(model)):
        module.forward = MethodType(_autocast, module)


def _autocast(module: nn.Module, *given: Any, **named: Any) -> Any:
    with torch.autocast(next(module.parameters()).device.type, torch.bfloat16):
        return type(module).forward(module, *given, **named)


def computes_in_short_numbers(model: Any) -> bool:
    """Whether a model computes in 16 bits, by its weights or by :func:`compute_in_bfloat16`."""
    mixed = getattr(model.forward, "__func__", None) is _autocast
    return mixed or next(model.parameters()).dtype in (torch.bfloat16, torch.float16)


@contextmanager
def weights_ready(model: Any) -> Generator[None]:
    """Inside, passes without gradients share what each of them would else do to the weights first.

    That is the cast of a model that computes in bfloat16 on float32 weights, and on a CPU the layout that its
    bfloat16 units want (oneDNN's). For a pass of a few tokens either costs more than the products themselves.
    """
    mixed = getattr(model.forward, "__func__", None) is _autocast
    weights = list(model.parameters())
    device, short = weights[0].device.type, mixed or weights[0].dtype == torch.bfloat16
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if short and device == "cpu" and _can_pack():
            stack.callback(_unpack, _pack(model))
        if mixed:
            floating = [p for p in weights if p.is_floating_point()]
            stack.callback(_give_back, floating, [p.requires_grad for p in floating])
            for p in floating:  # autocast keeps casts of those alone that want a gradient
                p.requires_grad_(True)
            stack.enter_context(torch.autocast(device, torch.bfloat16))
        yield


def _give_back(weights: Sequence[nn.Parameter], learned: Sequence[bool]) -> None:
    for p, before in zip(weights, learned, strict=True):
        p.requires_grad_(before)


def _pack(model: Any) -> list[nn.Linear]:
    """Let every linear layer multiply by a packed copy of its weights; the layers, for :func:`_unpack`."""
    layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in m.__dict__]
    for layer in layers:
        bias = None if layer.bias is None else layer.bias.to(torch.bfloat16)
        layer.forward = partial(_times_packed, _packed(layer.weight), bias)
    return layers


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16), None)


def _unpack(layers: Sequence[nn.Linear]) -> None:
    for layer in layers:
        del layer.__dict__["forward"]


def _times_packed(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows.to(torch.bfloat16), packed, bias, "none", [], "")


@cache
def _can_pack() -> bool:
    """Whether this torch has these operators, which are not public, and they multiply rightly here."""
    rows, weight = (torch.linspace(-1, 1, n * 48).view(n, 48).bfloat16() for n in (5, 33))
    try:
        found = _times_packed(_packed(weight), None, rows)
    except (AttributeError, RuntimeError, TypeError):  # another build, or a CPU without the units
        return False
    return bool(torch.allclose(found.float(), rows.float() @ weight.float().T, rtol=0.02, atol=0.1))


def has_bfloat16_units() -> bool | None:
    """Whether this processor multiplies in bfloat16; None where that is not known."""
    asks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    if platform.machine().lower() not in ("x86_64", "amd64") or not all(asks):
        return None
    return any(has() for has in asks if has)


def faster_note(dtype: str, device: torch.device) -> str | None:
    """That ``mixed`` may be faster than ``float32``, on a processor with units for bfloat16; None elsewhere."""
    if dtype != "float32" or device.type != "cpu" or not has_bfloat16_units():
        return None
    return (
        "this processor has units for bfloat16: with model.dtype = mixed matrix products use them, at weights, "
        "gradients and moments in float32 as now; the estimated time of a dry run with each says which is faster here"
    )


def emulated_note(dtype: str, device: torch.device) -> str | None:
    """What to say of ``model.dtype`` on a processor without units for bfloat16; None where it has them or may have."""
    if dtype not in ("mixed", "bfloat16") or device.type != "cpu" or has_bfloat16_units() is not False:
        return None
    return (
        f"model.dtype = {dtype}: this processor has no units for bfloat16, so products take several times as long as "
        "in float32; set model.dtype = float32"
    )


def recompute_activations(model: Any) -> None:
    """Keep only each block's input for the backward pass, which computes the block again: less memory, more time."""
    for block in blocks(model):
        block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return type(block).forward(block, *given, **named)
    again = as_now(block)
    if again is not None:
        named["context_fn"] = lambda: (nullcontext(), again)
    # no random numbers to keep: dropout is off in every pass
    return checkpoint(type(block).forward, block, *given, use_reentrant=False, preserve_rng_state=False, **named)


def compile_trunk(model: Any) -> None:
    """Let torch.compile make the trunk's passes without a cache, which score and train; sampling is left as it is.

    Shapes are dynamic: what is compiled serves rows of any number and length. The module's hooks stay outside. The
    first such pass compiles, and later ones do again where they are of another kind (with gradients, of one row); they
    raise UserError if there is no compiler or it cannot do this model. What a backward pass needs is compiled in it,
    and raises what :func:`is_compile_error` knows.
    """
    inside = trunk(model)
    own = inside.__dict__.get("forward")
    inner = type(inside).forward if own is None else own.__func__
    compiled = torch.compile(inner, dynamic=True)

    def forward(module: nn.Module, *given: Any, **named: Any) -> Any:
        decodes = getattr(named.get("covrl_layout"), "decodes", False)
        if decodes or named.get("use_cache") is not False or named.get("past_key_values") is not None:
            return inner(module, *given, **named)
        try:
            return compiled(module, *given, **named)
        except Exception as error:
            if not is_compile_error(error):  # what the pass itself raises: memory that runs out, an interruption
                raise
            raise UserError(cannot_compile(type(model).__name__, error)) from error

    inside.forward = MethodType(forward, inside)


def passes_are_apart(model: Any) -> bool:
    """Whether passes of several threads at once leave each other alone.

    A compiled trunk is not made for several threads, and rotary frequencies that change with a row's length are those
    of the latest pass.
    """
    own = trunk(model).__dict__.get("forward")
    plain = own is None or getattr(own, "__func__", None) is _autocast
    return plain and not rope_switches(model.config)


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile raised it, from a missing compiler to a bug in one of its many stages."""
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__)


def cannot_compile(name: str, error: BaseException) -> str:
    """What is to be said of an error of torch.compile with a model of class ``name``."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Set TORCH")]
    said = " ".join(lines[:2]) or type(error).__name__
    return (
        f"model.compile: torch.compile cannot do {name} here: {said[:300]}; it needs a C++ compiler (g++ or "
        "clang++) for a CPU and triton for a GPU; leave model.compile out"
    )
