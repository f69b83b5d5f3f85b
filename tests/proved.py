"""Proofs of the fast paths that are made once for each model, for files of tests that build the same one many times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from covrl.distributed.world import World
from covrl.generation.engine import TorchGenerator
from covrl.generation.proof import prove
from covrl.models.model import LanguageModel

MADE: dict[tuple[Any, ...], tuple[Any, float, list[str], Any]] = {}


def prove_once(
    model: LanguageModel,
    engine: Any,
    tokenizer: Any,
    longest: int,
    source: str,
    world: World | None = None,
    stand_in: Callable[[], LanguageModel] | None = None,
) -> list[str]:
    """:func:`covrl.generation.proof.prove`, or what it found for the same weights, settings and length of rows."""
    if (world or World()).size > 1:
        return prove(model, engine, tokenizer, longest, source, world, stand_in)
    own = engine if isinstance(engine, TorchGenerator) else None
    key = (*_facts(model), longest, source, type(engine), own and (own.rows_per_pass, own.records))
    if key not in MADE:
        said = prove(model, engine, tokenizer, longest, source, world, stand_in)
        MADE[key] = (model.paths, model.noise, said, own and own.paths)
    model.paths, model.noise, said, paths = MADE[key]
    if own is not None:
        own.paths = paths
    return list(said)


def _facts(model: LanguageModel) -> tuple[Any, ...]:
    digest = hashlib.blake2b()
    inner = model.model
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    shape = inner.config.to_json_string(use_diff=False)
    return type(model), type(inner), shape, digest.hexdigest(), model.compute_dtype, model.temperature
