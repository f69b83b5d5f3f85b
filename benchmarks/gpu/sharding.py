"""FSDP2 in a world of one process: gradients of sharded weights against whole ones, gathering, memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from speed.device import peak_mb
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from covrl.distributed.sharding import Sharded, whole
from covrl.models.compute import weights_ready
from covrl.models.model import LanguageModel
from covrl.models.proof import Row
from covrl.models.spread import shard_model
from covrl.scoring import head
from gpu.common import Finding, Task, mixed_model, tried


def findings(task: Task) -> Iterator[Finding]:
    """Whole weights, sharded ones, gathered ones, and an object that is sent to all."""
    kind = task.device.type
    backend = f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}" if kind != "cpu" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield from _compared(task)
    finally:
        dist.destroy_process_group()


def _compared(task: Task) -> Iterator[Finding]:
    model = mixed_model(task, task.workload("0.5B"))
    vocabulary, length = model.model.config.vocab_size, 40 if task.tiny else 900
    rows = [(tuple((3 * i + j) % vocabulary for j in range(length)), 20) for i in range(4)]
    expected: dict[str, Tensor] = {}
    sharded: list[Sharded] = []

    def of_whole() -> Finding:
        expected.update(gradient(model, rows))
        return {"peak_mb": peak_mb(task.device)}

    def of_parts() -> Finding:
        sharded.append(shard_model(model, init_device_mesh(task.device.type, (1,))))
        found = gradient(model, rows)
        off = max(float((expected[n] - found[n]).norm() / expected[n].norm().clamp_min(1e-12)) for n in expected)
        return {"peak_mb": peak_mb(task.device), "gradient_off": off}

    @torch.no_grad()
    def in_whole_again() -> Finding:
        with sharded[0].gathered(), weights_ready(model.model):
            total = float(model.states(rows).flat.float().sum())
        return {"peak_mb": peak_mb(task.device), "states": total}

    def sent() -> Finding:
        box: list[object] = [None]
        dist.all_gather_object(box, {"rank": 0})
        return {"received": box}

    peak_mb(task.device)
    for name, work in {"whole": of_whole, "sharded": of_parts, "gathered": in_whole_again, "objects": sent}.items():
        yield tried({"weights": name} if name != "objects" else {}, work)


def gradient(model: LanguageModel, rows: list[Row]) -> dict[str, Tensor]:
    """The whole gradient, by parameter, of the mean log-prob of one token."""
    states = model.states(rows)
    targets = torch.ones(len(states.flat), dtype=torch.long, device=model.device)
    (found,) = head.apply_head(head.log_prob, [states.flat], targets, [model.projection()], 512)
    found.mean().backward()
    kept = {name: whole(p.grad).clone() for name, p in model.model.named_parameters() if p.grad is not None}
    for parameter in model.model.parameters():
        parameter.grad = None
    return kept
