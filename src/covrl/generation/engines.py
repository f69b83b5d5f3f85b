"""Which engine samples: the trained model itself, vLLM in this process, or a vLLM server."""

from __future__ import annotations

from typing import Any

from covrl.config import GenerationConfig, RunConfig
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.generation.base import Generator
from covrl.generation.engine import TorchGenerator
from covrl.generation.outside import OutsideGenerator
from covrl.models.gguf import is_gguf

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
    if world.size > 1:
        raise UserError(
            f"generation.engine = {engine}: with several processes only the torch engine samples; set it to torch, or "
            "train in one process"
        )
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
        from covrl.generation.vllm_local import LocalVllm

        dtype = VLLM_DTYPES[config.model.dtype]
        local = LocalVllm(model.name_or_path, model, dtype, config.generation.engine_memory, rows)
        return OutsideGenerator(local, model, tokenizer)
    from covrl.generation.vllm_server import ServerVllm

    return OutsideGenerator(ServerVllm(engine, model, rows), model, tokenizer)
