"""The model that is trained: all of its weights, or an adapter on them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from covrl.config import RunConfig
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.models import adapters
from covrl.models.adapted import Adapted
from covrl.models.compute import compile_trunk, recompute_activations
from covrl.models.four_bit import quantise
from covrl.models.lean import cast_once, keep_less, read_by_layers
from covrl.models.model import LanguageModel, resolve_path
from covrl.models.spread import loaded, save_model


def load_policy(
    config: RunConfig, saved: Path | None = None, world: World | None = None
) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """The model that is trained, as ``config`` says, and its tokenizer; of ``saved`` are the weights that it has.

    Of several ranks the first alone has weights as yet (see :func:`loaded`).

    Raises:
        UserError: the model cannot be loaded, is an adapter itself, or the settings do not fit it or the ``world``.
    """
    source, world = resolve_path(config.model.path), world or World()
    if adapters.is_adapter(source):
        raise UserError(
            f"model.path: {source} is a LoRA adapter: make a model of it with `covrl merge {source} --out FOLDER` and "
            "train that"
        )
    if config.model.compile and world.size > 1 and config.training.weights == "sharded":
        raise UserError('model.compile does not go with sharded weights: set training.weights = "replicated"')
    refuse_four_bits_in_parts(config, world.size)
    place = {} if saved is None or config.lora.rank else {"path": str(saved)}
    if in_parts(config, world) and config.lora.rank:
        raise UserError("training.load = parts: a model with LoRA adapters is loaded by one rank; set it to whole")
    at = config.model.model_copy(update=place)
    policy, tokenizer = loaded(world, at, config.generation.temperature, in_parts(config, world))
    if config.lora.rank:
        policy = _with_adapter(policy, config, saved)
    if not config.model.compile:  # a compiler chooses itself what to keep
        _keep_less(policy, config, world)
    if config.training.recompute:
        recompute_activations(policy.model)
    if config.model.compile:
        compile_trunk(policy.model)
    return policy, tokenizer


def _keep_less(policy: LanguageModel, config: RunConfig, world: World) -> None:
    """Let blocks keep less for the backward pass; sharded weights are gathered in bfloat16, so nothing is cast."""
    keep_less(policy.model)
    if policy.compute_dtype is None or (world.size > 1 and config.training.weights == "sharded"):
        return
    norms: list[str] = []
    ids = torch.zeros(1, 4, dtype=torch.long)
    world.on_rank0(lambda: norms.extend(read_by_layers(policy.model, ids.to(policy.device))))
    cast_once(policy.model, world.broadcast(norms))


def refuse_four_bits_in_parts(config: RunConfig, ranks: int) -> None:
    """That a base of 4 bits is not to be spread over ranks.

    Raises:
        UserError: it is.
    """
    if config.lora.four_bit_base and ranks > 1 and config.training.weights == "sharded":
        raise UserError(
            'lora.four_bit_base does not go with sharded weights: set training.weights = "replicated", which a base of '
            "4 bits leaves room for"
        )


def in_parts(config: RunConfig, world: World) -> bool:
    """Whether no rank loads the whole policy."""
    return world.size > 1 and config.training.weights == "sharded" and config.training.load == "parts"


def _with_adapter(base: LanguageModel, config: RunConfig, saved: Path | None) -> Adapted:
    """``base`` with a new adapter that changes nothing yet, or with that of the folder ``saved``."""
    four = quantise(base.model) if config.lora.four_bit_base else 0
    if config.lora.four_bit_base and not four:
        raise UserError("lora.four_bit_base: this model has no linear layers that can be kept in 4 bits; leave it out")
    adapters.add_adapter(base.model, config.lora, config.training.seed, config.model.path)
    policy = Adapted(base, adapters.POLICY)
    if saved:
        policy.load(saved)
    mine, whole = (sum(p.numel() for p in part) for part in (policy.parameters(), base.model.parameters()))
    layers = len(policy.parameters()) // 2
    note = f"LoRA of rank {config.lora.rank} on {layers} layers: {mine:,} weights are trained beside {whole - mine:,}"
    said = [f"the base's linear layers, {four:,} weights, are rounded to 4 bits (NF4)"] * bool(four)
    policy.given_up = [*base.given_up, note, *said]
    return policy


def save_policy(policy: LanguageModel, folder: Path, world: World) -> None:
    """Write the policy's folder without its tokenizer; all ranks call it."""
    if isinstance(policy, Adapted):
        world.on_rank0(lambda: policy.save(folder))  # an adapter is whole on every rank
    else:
        save_model(policy.model, folder, world)
