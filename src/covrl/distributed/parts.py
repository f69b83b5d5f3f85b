"""Tensors that are spread over ranks, to and from files: each rank writes its part, and reads only what it holds.

The work is that of torch.distributed.checkpoint, in safetensors files, so that nothing is ever unpickled. A reader may
have another number of ranks than the writer, or be one process alone.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter

from covrl.distributed.world import World


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


def names_in(folder: Path) -> set[str]:
    """The tensors' names in the safetensors files of a folder."""
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update(file.keys())
    return found
