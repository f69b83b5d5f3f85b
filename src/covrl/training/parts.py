"""Tensors that are spread over ranks, to and from files: each rank writes its part, and reads only what it holds.

The work is that of torch.distributed.checkpoint, in safetensors files, so that nothing is ever unpickled. A reader may
have another number of ranks than the writer, or be one process alone.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.training.sharding import saved_tensors


def save_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write this rank's part of each tensor to a file of its own; what is whole on all ranks is written by one.

    All ranks call it with the same names.

    Raises:
        OSError, SafetensorError: a rank could not write; raised on all of them.
    """
    _save(tensors, HuggingFaceStorageWriter(str(folder), save_distributed=True))


def save_joined(tensors: Mapping[str, Tensor], folder: Path, world: World) -> None:
    """As :func:`save_parts`, and then the first rank joins the files to one, ``model.safetensors``, piece by piece.

    Raises:
        OSError, SafetensorError: a rank could not write; raised on all of them.
    """
    _save(tensors, HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=True))

    def tidy() -> None:
        shutil.rmtree(folder / "sharded")
        (folder / "model.safetensors.index.json").unlink()
        (joined,) = folder.glob("model-*.safetensors")
        joined.rename(folder / "model.safetensors")  # the name that one process gives it

    world.on_rank0(tidy)


def _save(tensors: Mapping[str, Tensor], writer: HuggingFaceStorageWriter) -> None:
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, Exception):
                raise cause from error
        raise


def load_parts(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill ``tensors`` (whole ones, or this rank's parts) from the safetensors files in ``folder``.

    All ranks call it with the same names.

    Raises:
        OSError, SafetensorError, CheckpointException: a file is damaged, or has not what is asked for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled", category=UserWarning)
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


@torch.no_grad()
def fill_from_files(model: Any, folder: Path, device: torch.device) -> None:
    """Give an empty model, of which each rank holds parts, the weights of a folder: each rank reads what it holds.

    Buffers that are in no file are computed as the model's class does it.

    Raises:
        UserError: the files lack a tensor of the model, or a buffer is computed in another way.
    """
    model.to_empty(device=device)
    model.tie_weights()
    saved = saved_tensors(model)
    if missing := sorted(saved.keys() - names_in(folder)):
        raise UserError(f"training.load = parts: {folder} has no tensor {missing[0]}; set it to whole")
    computed = {name: b for name, b in model.named_buffers() if name not in saved}
    for buffer in computed.values():
        buffer.fill_(torch.nan if buffer.is_floating_point() else 0)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in computed):
        model._init_weights(model.get_submodule(owner))
    for name, buffer in computed.items():
        if not buffer.is_floating_point() or bool(buffer.isnan().any()):
            raise UserError(f"training.load = parts: the buffer {name} of this model is in no file; set it to whole")
    load_parts(saved, folder)


def names_in(folder: Path) -> set[str]:
    """The tensors' names in the safetensors files of a folder."""
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update(file.keys())
    return found


def save_model(model: Any, folder: Path, world: World) -> None:
    """Write a Hugging Face model's folder as ``save_pretrained`` does; of a sharded one no rank holds the whole.

    All ranks call it.

    Raises:
        OSError, SafetensorError: it could not be written; raised on all ranks.
    """
    if not world.sharded:
        world.on_rank0(lambda: model.save_pretrained(folder))
        return
    save_joined(saved_tensors(model), folder, world)

    def describe() -> None:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)

    world.on_rank0(describe)
