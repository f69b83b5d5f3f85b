"""Proofs of the fast paths that are made once for each model, for files of tests that build the same one many times.

With ``COVRL_TEST_PROOFS``, a folder, what was found is kept for other processes too.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from covrl.distributed.world import World
from covrl.generation.engine import TorchGenerator
from covrl.generation.proof import prove
from covrl.models.model import LanguageModel

Proof = tuple[Any, Any, list[str], Any]
"""Paths and noise of a model, what was said of it, and its engine's paths."""

MADE: dict[str, Proof] = {}
PROOFS = "COVRL_TEST_PROOFS"
PROVING = ("covrl.assembly", "covrl.api", "covrl.cli.eval_run", "covrl.cli.evaluate")
"""The modules that prove what they load."""


def prove_once(
    model: LanguageModel,
    engine: Any,
    tokenizer: Any,
    longest: int,
    source: str,
    world: World | None = None,
    stand_in: Callable[[], LanguageModel] | None = None,
) -> list[str]:
    """:func:`covrl.generation.proof.prove`, or what it found for the same weights, settings and length of rows.

    The first rank of a ``world`` has the weights, so it knows. A ``stand_in`` is proved each time.
    """
    world = world or World()
    own = engine if isinstance(engine, TorchGenerator) else None
    if stand_in is not None:
        return prove(model, engine, tokenizer, longest, source, world, stand_in)
    key = _key(model, own, longest, type(engine)) if world.first else ""
    found = world.broadcast(_recalled(key) if world.first else None)
    if found is None:
        said = prove(model, engine, tokenizer, longest, source, world)
        if world.first:
            _keep(key, (model.paths, model.noise, said, own and own.paths))
        return said
    model.paths, model.noise, said, paths = found
    if own is not None:
        own.paths = paths
    return list(said)


def _recalled(key: str) -> Proof | None:
    folder = os.environ.get(PROOFS)
    if key not in MADE and folder and (Path(folder) / key).is_file():
        MADE[key] = pickle.loads((Path(folder) / key).read_bytes())
    return MADE.get(key)


def _keep(key: str, found: Proof) -> None:
    MADE[key] = found
    if folder := os.environ.get(PROOFS):
        written = Path(folder) / f"{key}-{os.getpid()}"
        written.write_bytes(pickle.dumps(found))
        written.rename(Path(folder) / key)


def _key(model: LanguageModel, own: TorchGenerator | None, *more: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    inner = model.model
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    shape = inner.config.to_json_string(use_diff=False)
    decoding = own and (own.rows_per_pass, own.records)
    facts = (type(model), type(inner), shape, model.compute_dtype, model.temperature, decoding, *more)
    digest.update(repr(facts).encode())
    return digest.hexdigest()
