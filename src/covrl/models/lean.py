"""Norms and gated units that keep less for the backward pass, at the same forward.

In plain operators a block keeps more of its norms and of its gated unit than of all its matrix products:

norm   y = w·x̂ with x̂ = x/r, r = √(mean x² + ε). Kept are x twice, and in mixed precision a copy of y for each linear
       layer that reads it. Here: x alone, as ∂x = (w·g − x̂·mean(w·g·x̂))/r and ∂w = Σ g·x̂; and one copy of y.
unit   down(act(gate)·up). Kept are gate, act(gate), up and the product. Here: gate and up; the others come again.

A module is replaced where a small one of its class, with random weights, has the same results and gradients both ways.
What it saves: ``docs/memory.md``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from covrl.models.compute import blocks
from covrl.models.text import trunk

LAYERS = ("gate_proj", "up_proj", "down_proj")
"""A gated unit's linear layers."""

TINY = 6
"""Numbers of a hidden state of the small modules that are compared."""


def keep_less(model: Any) -> None:
    """Replace the forward of each norm and gated unit of the blocks that is one of those above."""
    chosen: dict[Any, Callable[..., Any] | None] = {}
    for module in (m for block in blocks(model) for m in block.modules() if "forward" not in m.__dict__):
        own = [name for name, _ in module.named_parameters(recurse=False)]  # of one class some may have none
        kind = (type(module), *own, _epsilon(module), repr(getattr(module, "act_fn", None)))
        if kind not in chosen:
            chosen[kind] = next((lean for lean in _candidates(module) if _agrees(module, lean)), None)
        if lean := chosen[kind]:
            module.forward = MethodType(lean, module)


def read_by_layers(model: Any, ids: Tensor) -> list[str]:
    """The names of the norms that linear layers alone read, in a model with weights that computes in mixed precision.

    Seen in a pass over ``ids`` ``[1, N]``: what autocast casts before anything else reads it.
    """
    norms = {m: name for name, m in model.named_modules() if getattr(m.forward, "__func__", None) in _CASTS}
    with torch.no_grad(), _Readers(list(norms)) as seen:
        trunk(model)(input_ids=ids, use_cache=False)
    return [norms[module] for module in seen.read_by_casts_alone()]


def cast_once(model: Any, norms: Iterable[str]) -> None:
    """Let these norms give autocast's dtype: the same numbers, of which one copy is kept and not one for each layer.

    The gradients that come back from the layers are added in that dtype.
    """
    for module in map(model.get_submodule, norms):
        own: Any = module.forward
        module.forward = MethodType(_CASTS[own.__func__], module)


def is_lean(forward: Any) -> bool:
    """Whether a module's own ``forward`` is one of those of this file."""
    return getattr(getattr(forward, "__func__", None), "__module__", None) == __name__


def _candidates(module: nn.Module) -> Sequence[Callable[..., Any]]:
    """What may take the place of a module's forward, by its parts."""
    if all(isinstance(getattr(module, name, None), nn.Module) for name in (*LAYERS, "act_fn")):
        return (_unit,)
    parts = dict(module.named_parameters())
    is_norm = parts.keys() == {"weight"} and parts["weight"].ndim == 1 and _epsilon(module) is not None
    return (_norm, _norm_from_one) if is_norm else ()


def _epsilon(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _agrees(module: nn.Module, lean: Callable[..., Any]) -> bool:
    """Whether a small module of the same class has the same results and gradients both ways."""
    chance = torch.Generator().manual_seed(0)
    small = copy.copy(module)
    if lean is _unit:
        shapes = {"gate_proj": (2 * TINY, TINY), "up_proj": (2 * TINY, TINY), "down_proj": (TINY, 2 * TINY)}
        small._modules = module._modules | {name: _linear(shape, chance) for name, shape in shapes.items()}
    else:
        small._parameters = {"weight": nn.Parameter(torch.randn(TINY, generator=chance))}
    given = torch.randn(3, TINY, generator=chance, requires_grad=True)
    back = torch.randn(3, TINY, generator=chance)
    found = []
    for forward in (type(module).forward, lean):
        try:
            with torch.enable_grad():
                out = forward(small, given)
                found.append([out, *torch.autograd.grad(out, [given, *small.parameters()], back)])
        except Exception:  # whatever a class raises that is none of these: it stays as it is
            return False
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))


def _linear(shape: tuple[int, int], chance: torch.Generator) -> nn.Linear:
    made = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(torch.randn(shape, generator=chance))
    return made


class _Norm(torch.autograd.Function):
    """A norm's own forward, and the backward from its input ``[..., D]``; the weight is ``weight + offset`` ``[D]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, module: nn.Module, offset: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.offset = _epsilon(module), offset
        return type(module).forward(module, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        given, weight = ctx.saved_tensors
        wide = torch.promote_types(given.dtype, torch.float32)
        x, g, w = (t.to(wide) for t in (given, gradient, weight))
        w = w + ctx.offset if ctx.offset else w
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(ctx.epsilon).rsqrt_()
        unit = x * scale
        by_unit = (g * unit).reshape(-1, size)
        along = torch.mv(by_unit, w).div_(size).view(scale.shape)
        back = (g * w).sub_(unit.mul_(along)).mul_(scale).to(given.dtype)
        return back, by_unit.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None, None, None


def _norm(module: Any, x: Tensor, offset: float = 0.0) -> Tensor:
    if not torch.is_grad_enabled():
        return type(module).forward(module, x)
    return _Norm.apply(x, module.weight, module, offset)


def _norm_from_one(module: Any, x: Tensor) -> Tensor:
    return _norm(module, x, 1.0)


def _norm_cast(module: Any, x: Tensor) -> Tensor:
    return _as_autocast(_norm(module, x))


def _norm_from_one_cast(module: Any, x: Tensor) -> Tensor:
    return _as_autocast(_norm_from_one(module, x))


_CASTS: dict[Any, Callable[..., Any]] = {_norm: _norm_cast, _norm_from_one: _norm_from_one_cast}


def _as_autocast(y: Tensor) -> Tensor:
    kind = y.device.type
    return y.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else y


def _unit(module: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return type(module).forward(module, x)
    halves = module.gate_proj(x), module.up_proj(x)
    if type(module.down_proj) is nn.Linear:
        # its product is not made again: what it keeps is there before it begins, and there the second run ends
        return _again(_down, module, *halves)
    return module.down_proj(_again(_product, module, *halves))  # of several products, as with an adapter, the first is


def _again(forward: Callable[..., Tensor], *given: Any) -> Tensor:
    """``forward``, of which the backward pass computes again what it needs."""
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False)


def _down(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    return module.down_proj(_product(module, gate, up))


def _product(module: Any, gate: Tensor, up: Tensor) -> Tensor:
    return module.act_fn(gate) * up


class _Readers(TorchDispatchMode):
    """While entered, sees which operators read the results of ``norms``."""

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self._made: list[tuple[Tensor, nn.Module]] = []  # held, so that no other tensor is taken for one of them
        self._others: set[int] = set()
        self._read: set[int] = set()
        self._norms = norms
        self._hooks: list[Any] = []

    def __enter__(self) -> _Readers:
        self._hooks = [m.register_forward_hook(lambda m, _, y: self._made.append((y, m))) for m in self._norms]
        super().__enter__()
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        casts = func is torch.ops.aten._to_copy.default
        for given in tree_iter((args, kwargs or {})):
            for made, module in self._made if isinstance(given, Tensor) else ():
                if made is given:
                    (self._read if casts else self._others).add(id(module))
        return func(*args, **(kwargs or {}))

    def read_by_casts_alone(self) -> Iterator[nn.Module]:
        """Norms whose results were cast, and read by nothing else."""
        return (m for m in self._norms if id(m) in self._read - self._others)
