"""AdamW with a schedule. Parameters below two dimensions (norms, biases) are not decayed."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from covrl.config import TrainingConfig
from covrl.distributed.world import local_part
from covrl.models.eight_bit import MOMENTS, EightBitAdamW


def make_optimizer(parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer at its peak learning rate; :func:`set_learning_rate` sets each step's.

    Shards of parameters and whole parameters are in groups apart, as no operation takes both. Where torch has one
    kernel for the whole update it is taken: it needs no tensors beside its state, and on a CPU it
    is several times as fast.
    """
    kinds = [[p for p in parameters if isinstance(p, DTensor) == sharded] for sharded in (False, True)]
    groups = [
        {"params": [p for p in kind if (p.ndim >= 2) == decays], "weight_decay": config.weight_decay if decays else 0.0}
        for kind in kinds
        if kind
        for decays in (True, False)
    ]
    if config.eight_bit_moments:
        return EightBitAdamW(groups, config.learning_rate, config.adam_betas)
    kind = OffloadedAdamW if config.offload_moments else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.adam_betas, fused=one_kernel(parameters) or None)


def one_kernel(parameters: Iterable[Tensor]) -> bool:
    """Whether torch has one kernel for AdamW's whole update on these parameters' devices."""
    there = _get_fused_kernels_supported_devices()
    return all(p.is_floating_point() and p.device.type in there for p in parameters)


def empty_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state of a parameter that was never moved, in the places where its kernel looks for it."""
    if isinstance(optimizer, EightBitAdamW):
        return optimizer.empty_state(parameter)
    place = parameter.device if optimizer.defaults["fused"] else torch.device("cpu")
    with torch.no_grad():
        moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
    return {"step": torch.zeros((), device=place), **moments}


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose moments are in host memory, and on their parameter's device only inside :meth:`there`.

    Outside, the tensors of its state have their shapes and no storage, so shards stay what they are. The copies are
    exact and the step is AdamW's own, so it computes the same bits. Host memory is pinned where the device is another.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._home: dict[Tensor, list[Tensor]] = {}
        self._there = False

    def step(self, closure: Any = None) -> Any:
        with self.there():
            return super().step(closure)

    @contextmanager
    def there(self) -> Generator[None]:
        """While entered, the state is whole and on the device."""
        if self._there:
            yield
            return
        self._fetch()
        self._there = True
        try:
            yield
        finally:
            self._there = False
            self._rest()

    def _moments(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        with torch.no_grad():
            for parameter, state in self.state.items():
                yield parameter, [local_part(state[name]) for name in MOMENTS if name in state]

    @torch.no_grad()
    def _fetch(self) -> None:
        for parameter, moments in self._moments():
            for moment, home in zip(moments, self._home.get(parameter, ()), strict=True):
                moment.untyped_storage().resize_(home.nbytes)
                moment.copy_(home, non_blocking=True)

    @torch.no_grad()
    def _rest(self) -> None:
        before, self._home = self._home, {}
        for parameter, moments in self._moments():
            homes = before.get(parameter) or [_host_like(moment) for moment in moments]
            for moment, home in zip(moments, homes, strict=True):
                home.copy_(moment, non_blocking=True)
            self._home[parameter] = homes
        for device in {m.device for _, moments in self._moments() for m in moments if m.device.type != "cpu"}:
            torch.accelerator.synchronize(device)  # the copies are under way until then
        for _, moments in self._moments():
            for moment in moments:
                moment.untyped_storage().resize_(0)


def _host_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type != "cpu")


@contextmanager
def moments_there(optimizers: Iterable[torch.optim.Optimizer]) -> Generator[None]:
    """While entered, the whole state of these optimizers can be read and written."""
    with ExitStack() as stack:
        for optimizer in optimizers:
            if isinstance(optimizer, OffloadedAdamW):
                stack.enter_context(optimizer.there())
        yield


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
