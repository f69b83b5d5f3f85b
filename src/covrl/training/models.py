"""The policy as adapters, and models beside it: frozen or following copies that are read and never trained."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from covrl.algorithms.base import ModelSpec
from covrl.config import ModelConfig, RunConfig
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.models import adapters
from covrl.models.compute import compile_trunk, compute_in_bfloat16, recompute_activations
from covrl.models.critic import Critic, HeadOnTrunk
from covrl.models.four_bit import quantise
from covrl.models.model import (
    LanguageModel,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_path,
    without_memory,
)
from covrl.training.parts import save_model
from covrl.training.run import Run
from covrl.training.sharding import ModelShape, empty_like, whole


class Adapted(LanguageModel):
    """A model that shares its base with others and differs from it by an adapter, or by none (``adapter`` is None).

    The policy's adapter is on whenever no other model of the base is being read. Its weights take a gradient, and so do
    those of a critic's adapter (:class:`covrl.models.critic.Critic`).
    """

    def __init__(self, base: LanguageModel, adapter: str | None) -> None:
        super().__init__(base.model, base.temperature)
        self.adapter = adapter
        self.paths, self.compute_dtype, self.noise = base.paths, base.compute_dtype, base.noise

    def own_weights(self) -> list[nn.Parameter]:
        if self.adapter is None:
            return []
        return list(adapters.adapter_weights(self.model, self.adapter).values())

    def named_trained(self) -> dict[str, nn.Parameter]:
        if self.adapter != adapters.POLICY:
            return {}
        own = set(map(id, self.own_weights()))
        return {name: p for name, p in super().named_trained().items() if id(p) in own}

    def save(self, folder: Path) -> None:
        """Write the adapter, as PEFT reads it."""
        assert self.adapter is not None
        adapters.save_adapter(self.model, self.adapter, folder)

    def load(self, folder: Path) -> None:
        assert self.adapter is not None
        adapters.put_weights(self.model, self.adapter, adapters.read_weights(folder), folder)

    def _forward(self, ids: Tensor, **named: Any) -> Tensor:
        if self.adapter == adapters.POLICY:
            return super()._forward(ids, **named)
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.own_weights())
        with adapters.switched(self.model, self.adapter), torch.set_grad_enabled(learns):
            return super()._forward(ids, **named)


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
    if config.training.recompute:
        recompute_activations(policy.model)
    if config.model.compile:
        compile_trunk(policy.model)
    return policy, tokenizer


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


def save_trained(run: Run, folder: Path) -> None:
    """Write the policy as a Hugging Face folder, with LoRA the adapter, and the tokenizer. All ranks call it."""
    save_policy(run.models["policy"], folder, run.world)
    run.world.on_rank0(lambda: run.prompts.tokenizer.save_pretrained(folder))


def load_beside(
    policy: LanguageModel, specs: Sequence[ModelSpec], config: RunConfig, resumed: bool, world: World | None = None
) -> dict[str, LanguageModel]:
    """The models that a method wants beside the policy, as they are before the first step.

    Those of a policy with an adapter share its weights: a frozen one is the base, a following one or a critic has an
    adapter of its own, which begins as the policy's.
    Else they are copies of the base, all frozen ones the same; the base is the policy itself unless it is ``resumed``.
    """
    check_value_heads(policy, specs)
    heads: dict[str, LanguageModel] = {spec.name: HeadOnTrunk(policy) for spec in specs if spec.on_trunk}
    specs = [spec for spec in specs if not spec.on_trunk]
    if isinstance(policy, Adapted):
        return {spec.name: _sharing(policy, spec) for spec in specs} | heads
    found: dict[str, LanguageModel] = {}
    if not specs:
        return heads
    if in_parts(config, world or World()):
        raise UserError(
            f"training.load = parts: {config.algorithm.name} reads a whole model beside the policy "
            f"({', '.join(spec.name for spec in specs)}); set it to whole"
        )
    base = policy
    if resumed:
        base, _ = loaded(world or World(), config.model, config.generation.temperature)
        base.paths, base.noise = policy.paths, policy.noise  # of the same shape, so what was proved holds
        if config.model.compile:
            compile_trunk(base.model)
    shared: LanguageModel | None = None
    for spec in specs:
        if spec.trainable:
            found[spec.name] = Critic(frozen_copy(base))
            continue
        copied = shared if shared and spec.follows == "frozen" else _copied(base, config.model)
        shared = copied if spec.follows == "frozen" else shared
        found[spec.name] = copied
    return found | heads


def check_value_heads(policy: LanguageModel, specs: Sequence[ModelSpec]) -> None:
    """That a method's critics can be made of this policy.

    Raises:
        UserError: they cannot, with what can.
    """
    for spec in specs:
        if spec.head == "value" and not policy.paths.split_head:
            raise UserError(
                f"model.path: its output layer cannot be used apart from its trunk, so it can have no {spec.name} with "
                "a value head; take a method without a critic, such as grpo"
            )


def _sharing(policy: Adapted, spec: ModelSpec) -> LanguageModel:
    if spec.follows == "frozen" and not spec.trainable:
        return Adapted(policy, None)
    adapters.copy_adapter(policy.model, adapters.POLICY, spec.name)
    own = Adapted(policy, spec.name)
    return Critic(own) if spec.trainable else own


def _copied(base: LanguageModel, config: ModelConfig) -> LanguageModel:
    if not config.offload_reference:
        return frozen_copy(base)
    return Offloaded(frozen_copy(base, torch.device("cpu")), resolve_device(config.device))


class Offloaded(LanguageModel):
    """A copy whose weights are in host memory, and on the device ``work`` from a reading to the next :meth:`rest`.

    What is on the device is a copy of them, so nothing has to be brought back.
    """

    def __init__(self, copied: LanguageModel, work: torch.device) -> None:
        super().__init__(copied.model, copied.temperature)
        self.work = work
        self.paths, self.compute_dtype, self.noise = copied.paths, copied.compute_dtype, copied.noise
        self._home: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.work

    def own_weights(self) -> list[nn.Parameter]:
        """In host memory."""
        self.rest()
        return super().own_weights()

    def save(self, folder: Path) -> None:
        self.rest()
        super().save(folder)

    def load(self, folder: Path) -> None:
        self.rest()
        super().load(folder)

    def _forward(self, ids: Tensor, **named: Any) -> Tensor:
        self._fetch()
        return super()._forward(ids, **named)

    def _fetch(self) -> None:
        if self._home:
            return
        named = (self.model.named_parameters(remove_duplicate=False), self.model.named_buffers(remove_duplicate=False))
        self._home = {name: tensor for part in named for name, tensor in part}
        distinct = {id(tensor): tensor for tensor in self._home.values()}
        there = {key: _like(t, t.detach().to(self.work, non_blocking=True)) for key, t in distinct.items()}
        self._put({name: there[id(tensor)] for name, tensor in self._home.items()})  # what was tied is tied there too

    def rest(self) -> None:
        """Give the device's memory back."""
        self._put(self._home)
        self._home = {}

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, tensor)


def _like(tensor: Tensor, moved: Tensor) -> Tensor:
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def rest(models: Iterable[LanguageModel]) -> None:
    """Give the device back what models beside the policy took of it; those that stay there are left alone."""
    for model in models:
        if isinstance(model, Offloaded):
            model.rest()


def frozen_copy(model: LanguageModel, device: torch.device | None = None) -> LanguageModel:
    """A copy whose weights take no gradient, on the same fast paths; on ``device``, without a second copy elsewhere.

    Of a model that is empty as yet the copy is too.
    """

    def put(tensor: Tensor) -> Tensor:
        return tensor.detach().to(tensor.device if tensor.is_meta else device or tensor.device, copy=True)

    placed: dict[int, Tensor] = {id(p): nn.Parameter(put(p), requires_grad=False) for p in model.model.parameters()}
    placed |= {id(b): put(b) for b in model.model.buffers()}
    copied = LanguageModel(copy.deepcopy(model.model, placed), model.temperature)
    copied.paths = model.paths
    copied.compute_dtype, copied.noise = model.compute_dtype, model.noise
    return copied


STEADY = ("copy", "average")
"""Models that follow the policy by the number of steps."""


def follow(specs: Sequence[ModelSpec], models: Mapping[str, LanguageModel], done: int) -> None:
    """Move the models that follow the policy, after ``done`` steps.

    ``copy``: they become the policy's every ``every`` steps. ``average``: keep·own + (1 − keep)·policy, as often.
    Of adapters it is their two factors that are averaged. All ranks call it, outside of whole weights, which may be
    rounded: what is spread over ranks is put together a weight at a time.
    """
    for spec in specs:
        if spec.follows in STEADY and not done % spec.every:
            move_to_policy(models, spec.name, 0.0 if spec.follows == "copy" else spec.keep)


@torch.no_grad()
def move_to_policy(models: Mapping[str, LanguageModel], name: str, keep: float = 0.0) -> None:
    """Make a model ``keep`` of itself and the rest of the policy."""
    for own, policy in zip(models[name].own_weights(), models["policy"].own_weights(), strict=True):
        own.lerp_(whole(policy).to(own), 1.0 - keep)
