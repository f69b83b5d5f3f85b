"""Which engine samples: the trained model itself, vLLM in each process, or vLLM servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from covrl.config import GenerationConfig, RunConfig
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.generation.base import Generator
from covrl.generation.engine import TorchGenerator
from covrl.generation.outside import OutsideGenerator
from covrl.models.gguf import is_gguf
from covrl.models.model import resolve_device

Made = TypeVar("Made")

VLLM_DTYPES = {"float32": "float32", "mixed": "bfloat16", "bfloat16": "bfloat16"}
"""vLLM's dtype for each ``model.dtype``: mixed training also uses its float32 weights in bfloat16."""

ROWS = 256
"""Rows of a batch if the setting is "auto" and no number has been chosen (yet)."""


def rows_of(generation: GenerationConfig) -> int:
    """``generation.rows_per_pass`` as a number; :mod:`covrl.training.fit` chooses one that fits the machine."""
    return ROWS if generation.rows_per_pass == "auto" else generation.rows_per_pass


def make_generator(config: RunConfig, engine: str, model: Any, tokenizer: Any, world: World) -> Generator:
    """The engine ``engine`` for ``model``; the torch engine's decoding paths are not checked yet.

    Raises:
        UserError: it is not installed, does not answer, or cannot be used with these settings.
    """
    rows = rows_of(config.generation)
    if engine == "torch":
        return TorchGenerator(model, tokenizer, rows, world)
    if config.model.dtype not in VLLM_DTYPES:
        raise UserError(
            f"generation.engine = {engine}: vLLM has no {config.model.dtype}; use float32 or the torch engine"
        )
    if engine == "vllm":
        if is_gguf(model.name_or_path):
            raise UserError(
                f"generation.engine = vllm reads no {model.name_or_path}: make a folder of it with "
                f"`covrl merge {model.name_or_path} --out FOLDER` and give that as model.path"
            )
        return _in_process(config, model, tokenizer, world)
    from covrl.generation.vllm_server import ServerVllm

    way = config.generation.handover
    _check_handover(config, next(model.parameters()).device)
    dtype = getattr(torch, VLLM_DTYPES[config.model.dtype])
    servers = _on_all(world, lambda: ServerVllm(engine, model, rows, world, dtype, way))
    return OutsideGenerator(servers, model, tokenizer, world)


def _check_handover(config: RunConfig, device: torch.device) -> None:
    """That servers can get weights in the way that is asked for.

    Raises:
        UserError: they cannot.
    """
    way = config.generation.handover
    if way == "adapters" and not config.lora.rank:
        raise UserError(
            "generation.handover = adapters: lora.rank is 0, so all weights are trained and there is no adapter to "
            "send; leave it out, or set lora.rank"
        )
    if way == "adapters" and config.lora.four_bit_base:
        raise UserError(
            "generation.handover = adapters: the servers' base is not rounded to 4 bits, as lora.four_bit_base says; "
            "leave one of them out"
        )
    if way == "nccl" and device.type != "cuda":
        raise UserError(
            f"generation.handover = nccl: NCCL is between CUDA devices, and the model is on {device.type}; leave it out"
        )
    if way == "nccl":
        from covrl.generation.vllm_local import import_vllm

        import_vllm()


def _in_process(config: RunConfig, model: Any, tokenizer: Any, world: World) -> Generator:
    from covrl.generation.vllm_local import LocalVllm, import_vllm

    ranks, cuda = config.generation.engine_ranks, resolve_device(config.model.device).type == "cuda"
    if world.size % ranks:
        raise UserError(
            f"generation.engine_ranks = {ranks}: {world.size} processes cannot be parted into groups of {ranks}"
        )
    _on_all(world, import_vllm)  # a rank that cannot must not keep the others waiting inside of vLLM
    dtype, memory, rows = VLLM_DTYPES[config.model.dtype], config.generation.engine_memory, rows_of(config.generation)
    local = _on_all(world, lambda: LocalVllm(model.name_or_path, model, dtype, memory, rows, world, ranks, cuda))
    return OutsideGenerator(local, model, tokenizer, world, ranks)


def _on_all(world: World, make: Callable[[], Made]) -> Made:
    """What every rank makes; an error of one is raised on all."""
    made: list[Made] = []
    failed: Exception | None = None
    try:
        made.append(make())
    except UserError as error:
        failed = error
    world.raise_together(failed)
    return made[0]
