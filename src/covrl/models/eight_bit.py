"""AdamW whose moments take a byte a number: block-wise dynamic quantisation (Dettmers et al., arXiv 2110.02861).

A moment of a matrix is a code (uint8) for each number, and a scale (float32) for each block of a row: the largest
magnitude in it. A code names one of 256 values in [-1, 1], or in [0, 1] for the second moment, which lie ever closer
towards 0 (:func:`dynamic_map`). Blocks end where their row ends, so they are the same however the rows of a matrix are
spread over ranks, and a checkpoint does not depend on how many wrote it. Vectors (norms, biases) are few, and keep
moments as wide as themselves.

A step reads the moments, computes AdamW's update in float32 with them as they are then, and only afterwards rounds them
to codes again. It works on :data:`CHUNK` numbers at a time, so it takes little beside its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from covrl.distributed.world import local_part
from covrl.models.blockwise import blocks_of, in_blocks, in_rows

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's two moments in an optimizer's state of a parameter, those of torch."""

BLOCK = 256
"""Numbers of a row that share a scale, at most."""

CHUNK = 1 << 22
"""Numbers that a step works on at a time, in whole rows."""

WORK, WORK_OF_SHORT = 16, 24
"""Bytes that the update of one number takes beside weight, state and gradient, and where these are of 16 bits; measured
(``test_a_step_takes_what_the_plan_says``)."""

SCALE = "_scale"
"""What a moment's scales have behind its name in the optimizer's state."""


@cache
def dynamic_map(signed: bool) -> Tensor:
    """The 256 values of the codes, ascending, float32: 0, 1, and in each of seven decades evenly spaced magnitudes.

    The decade below 1 has 64 magnitudes (128 where there is no sign to keep), and each one below half as many.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        width = 0.9 / count
        magnitudes = [(0.1 + width * (i + 0.5)) * 10.0 ** (decade - 6) for i in range(count)]
        values += magnitudes + [-m for m in magnitudes] * signed
    return torch.tensor(sorted(values), dtype=torch.float64).float()


def is_narrow(parameter: Tensor) -> bool:
    """Whether a parameter's moments are codes."""
    return parameter.ndim >= 2


def scales_of(parameter: Tensor) -> int:
    """Scales of a matrix's moment: one for each block of each row."""
    width = parameter.shape[-1]
    return parameter.numel() // max(1, width) * blocks_of(width, BLOCK)


def moment_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of both moments of these parameters, whole."""
    return 2 * sum(p.numel() + 4 * scales_of(p) if is_narrow(p) else p.numel() * p.element_size() for p in parameters)


@dataclass(frozen=True, slots=True)
class Codec:
    """Codes and scales of one moment, to numbers and back, on one device. With a ``floor`` no number above 0 becomes 0:
    a second moment that did would let a first one that did not move its weight by any distance."""

    table: Tensor
    middles: Tensor
    floor: bool

    @classmethod
    def of(cls, signed: bool, device: torch.device) -> Codec:
        """The first moment's (``signed``) or the second's."""
        table = dynamic_map(signed).to(device)
        return cls(table, (table[1:] + table[:-1]) / 2, floor=not signed)

    def read(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The numbers [R, C] of ``codes`` [R, C] with ``scales`` [R, blocks], float32."""
        values = in_blocks(self.table[codes.int()], BLOCK)
        return in_rows(values.mul_(scales[..., None]), codes.shape[1])

    def write(self, values: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Round ``values`` [R, C] into ``codes`` and ``scales``."""
        blocks = in_blocks(values.float(), BLOCK)
        scales.copy_(blocks.abs().amax(-1).clamp_(min=torch.finfo(torch.float32).tiny))
        found = torch.bucketize(blocks / scales[..., None], self.middles, out_int32=True)
        if self.floor:
            found += (blocks > 0) & (found == 0)
        codes.copy_(in_rows(found, codes.shape[1]))


@dataclass(frozen=True, slots=True)
class Rates:
    """What one step of AdamW multiplies with, from its group's settings and the number of steps so far."""

    decay: float
    first: float
    second: float
    step: float
    root: float
    eps: float

    @classmethod
    def of(cls, group: Mapping[str, Any], step: int) -> Rates:
        """The rates of step ``step``, which counts from 1."""
        first, second = group["betas"]
        return cls(
            decay=1.0 - group["lr"] * group["weight_decay"],
            first=1.0 - first,
            second=1.0 - second,
            step=group["lr"] / (1.0 - first**step),
            root=(1.0 - second**step) ** 0.5,
            eps=group["eps"],
        )


def move(weights: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rates: Rates) -> None:
    """AdamW's update of ``weights`` in place; both moments, which are of at least float32, take up the ``gradient``."""
    gradient = gradient.to(first.dtype)
    first.lerp_(gradient, rates.first)
    second.lerp_(gradient.square(), rates.second)
    change = first / second.sqrt().div_(rates.root).add_(rates.eps)
    weights.copy_(weights.to(first.dtype).mul(rates.decay).sub_(change, alpha=rates.step))


class EightBitAdamW(torch.optim.Optimizer):
    """AdamW with 8-bit moments of matrices. State of a parameter: ``step``, each moment, and its scales where it is
    codes; shards where the parameter is one."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = 1e-8) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @staticmethod
    @torch.no_grad()
    def empty_state(parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter that was never moved."""
        state = {"step": torch.zeros(())}
        for name in MOMENTS:
            if is_narrow(parameter):
                state[name] = torch.zeros_like(parameter, dtype=torch.uint8)
                scaled = parameter[..., : blocks_of(parameter.shape[-1], BLOCK)]
                state[name + SCALE] = torch.zeros_like(scaled, dtype=torch.float32)
            else:
                state[name] = torch.zeros_like(parameter)
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        del closure
        codecs: dict[torch.device, tuple[Codec, Codec]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.empty_state(parameter))
                state["step"] += 1
                device, rates = parameter.device, Rates.of(group, int(state["step"]))
                if device not in codecs:
                    codecs[device] = Codec.of(True, device), Codec.of(False, device)
                local = {name: local_part(value) for name, value in state.items()}
                _step(local_part(parameter), local_part(parameter.grad), local, rates, *codecs[device])


def _step(
    weights: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rates: Rates, first: Codec, second: Codec
) -> None:
    """The update of one parameter, or of this rank's part of it."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    m, v = (state[name] for name in MOMENTS)
    if not is_narrow(weights):
        m_now, v_now = m.to(wide), v.to(wide)
        move(weights, gradient, m_now, v_now, rates)
        m.copy_(m_now)
        v.copy_(v_now)
        return
    rows = [t.view(-1, t.shape[-1]) for t in (weights, m, v, *(state[name + SCALE] for name in MOMENTS))]
    for some in _portions(*rows[0].shape):
        w, m, v, m_scale, v_scale = (t[some] for t in rows)
        m_now, v_now = first.read(m, m_scale).to(wide), second.read(v, v_scale).to(wide)
        move(w, gradient.reshape(rows[0].shape)[some], m_now, v_now, rates)
        first.write(m_now, m, m_scale)
        second.write(v_now, v, v_scale)


def _portions(rows: int, width: int) -> Iterator[slice]:
    """Rows to work on at a time: as many as :data:`CHUNK` numbers, and one at least."""
    together = max(1, CHUNK // max(1, width))
    return (slice(at, at + together) for at in range(0, rows, together))
