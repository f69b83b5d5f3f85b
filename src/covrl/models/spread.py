"""A model on several ranks: the first one alone loads it, or each reads its own part; and its files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase
from transformers.core_model_loading import WeightConverter

from covrl.config import ModelConfig
from covrl.distributed.parts import load_parts, names_in, save_joined
from covrl.distributed.sharding import Sharded, saved_tensors, shard
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.models.adapters import all_adapters
from covrl.models.compute import blocks, compute_in_bfloat16
from covrl.models.model import LanguageModel, load_model, load_tokenizer, resolve_path, without_memory
from covrl.models.text import trunk


def loaded(
    world: World, config: ModelConfig, temperature: float, parts: bool = False
) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer. Of several ranks the first alone loads weights; with ``parts`` none does.

    The others have an empty model of the same class; :func:`covrl.training.distribute.distribute` fills it.

    Raises:
        UserError: as :func:`covrl.models.model.load_model`.
    """
    if world.size == 1:
        return load_model(config, temperature)
    if parts:
        return without_memory(config, temperature)
    found: list[tuple[LanguageModel, PreTrainedTokenizerBase]] = []
    world.on_rank0(lambda: found.append(load_model(config, temperature)))
    facts: tuple[Any, ...] = ()
    for model, _ in found:
        facts = (ModelShape.of(model.model), model.compute_dtype)
    shape, compute_dtype = world.broadcast(facts)
    if found:
        return found[0]
    empty = LanguageModel(empty_like(shape), temperature)
    empty.compute_dtype = compute_dtype
    if compute_dtype is not None:
        compute_in_bfloat16(empty.model)
    return empty, load_tokenizer(str(resolve_path(config.path)))


class ModelShape(NamedTuple):
    """All of a model but its weights."""

    cls: type
    config: Any
    generation_config: Any
    dtypes: dict[str, torch.dtype]

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """What :func:`empty_like` needs."""
        return cls(
            type(model), model.config, model.generation_config, {n: p.dtype for n, p in model.named_parameters()}
        )


def empty_like(shape: ModelShape) -> Any:
    """A model of the same class whose tensors take no memory yet."""
    with torch.device("meta"):
        model = shape.cls(shape.config)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(shape.dtypes[name])
    model.generation_config = shape.generation_config
    return model


def why_not(model: LanguageModel) -> str | None:
    """Why a model's weights cannot be sharded, or None."""
    if not model.paths.split_head:
        return "its output layer cannot be used apart from its trunk"
    if any(isinstance(c, WeightConverter) for c in getattr(model.model, "_weight_conversions", None) or ()):
        return "its files hold weights in another form than it computes with"
    if not model.paths.padded:
        return "it reads rows of one length at a time, so ranks would differ in their numbers of passes"
    return None


def shard_model(model: LanguageModel, mesh: DeviceMesh) -> Sharded:
    """Give each rank of ``mesh`` its part of a model's weights; adapters stay whole on all of them."""
    inner = model.model
    return shard(inner, trunk(inner), blocks(inner), set(all_adapters(inner)), mesh, model.compute_dtype)


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
