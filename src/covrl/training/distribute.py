"""A run on all ranks: each gets its part of the weights that the first has loaded, or all of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from covrl.distributed.processes import Processes
from covrl.distributed.sharding import all_tensors, fill
from covrl.errors import UserError
from covrl.generation.outside import OutsideGenerator
from covrl.models.copies import Offloaded
from covrl.models.model import resolve_device
from covrl.models.policy import in_parts
from covrl.models.spread import fill_from_files, shard_model, why_not
from covrl.training.run import Run


def distribute(run: Run) -> None:
    """Bring the weights of a run that was just assembled to all ranks, whole or in parts (``training.weights``)."""
    world = run.world
    if not isinstance(world, Processes):
        return
    policy = run.models["policy"]
    reason, parts = world.broadcast(why_not(policy)), in_parts(run.config, world)
    if reason and parts:
        raise UserError(f"training.load = parts: the weights cannot be sharded: {reason}; set it to whole")
    if reason and run.config.training.weights == "sharded":
        run.notes = (*run.notes, f"weights are replicated and not sharded: {reason}")
    device = resolve_device(run.config.model.device)
    given = {name: all_tensors(model.model) for name, model in run.models.items()} if world.first and not parts else {}
    if run.config.training.weights == "sharded" and not reason:
        sharded = shard_model(policy, init_device_mesh(device.type, (world.size,)))
        world.shard(sharded, sharded.memory)
    trained = {"policy", *(spec.name for spec in run.algorithm.models if spec.trainable)}
    for name, model in run.models.items():  # a model beside the policy is read only, and whole on every rank
        if model is not policy and model.model is policy.model:
            model.place(device)  # a value head; all else it shares with the policy, and its adapter came with that
            continue
        if parts:
            fill_from_files(model.model, Path(model.model.name_or_path), device)
            continue
        fill(model.model, torch.device("cpu") if isinstance(model, Offloaded) else device, given.pop(name, None))
        model.place(device)
        if name not in trained:
            model.model.requires_grad_(False)
    run.take_parameters()
    if isinstance(run.generator, OutsideGenerator):
        run.generator.start(run.config.generation.engine)


def check_alike(run: Run) -> None:
    """Raises UserError if the ranks are about to train different runs."""
    state = (run.done, run.source.state_dict(), run.config.model_dump(mode="json"))
    run.world.check_same(state, "settings or checkpoints")
