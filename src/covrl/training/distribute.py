"""A run on all ranks: each gets its part of the weights that the first has loaded, or all of them."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh

from covrl.distributed.processes import Processes
from covrl.models.model import resolve_device
from covrl.training.models import Offloaded
from covrl.training.run import Run
from covrl.training.sharding import ShardedPolicy, all_tensors, fill, shard, why_not


def distribute(run: Run) -> None:
    """Bring the weights of a run that was just assembled to all ranks, whole or in parts (``training.weights``)."""
    world = run.world
    if not isinstance(world, Processes):
        return
    policy = run.models["policy"]
    reason = world.broadcast(why_not(policy))
    if reason and run.config.training.weights == "sharded":
        run.notes = (*run.notes, f"weights are replicated and not sharded: {reason}")
    device = resolve_device(run.config.model.device)
    given = {name: all_tensors(model.model) for name, model in run.models.items()} if world.first else {}
    if run.config.training.weights == "sharded" and not reason:
        memory = shard(policy.model, init_device_mesh(device.type, (world.size,)))
        world.shard(ShardedPolicy(policy.model), memory)
    trained = {"policy", *(spec.name for spec in run.algorithm.models if spec.trainable)}
    for name, model in run.models.items():  # a model beside the policy is read only, and whole on every rank
        if model is not policy and model.model is policy.model:
            model.place(device)  # a value head; all else it shares with the policy, and its adapter came with that
            continue
        fill(model.model, torch.device("cpu") if isinstance(model, Offloaded) else device, given.pop(name, None))
        model.place(device)
        if name not in trained:
            model.model.requires_grad_(False)
    run.take_parameters()


def check_alike(run: Run) -> None:
    """Raises UserError if the ranks are about to train different runs."""
    state = (run.done, run.source.state_dict(), run.config.model_dump(mode="json"))
    run.world.check_same(state, "settings or checkpoints")
