"""Models beside the policy: frozen ones, those that follow it, and critics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from covrl.config import ModelConfig, RunConfig
from covrl.distributed.sharding import whole
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.models import adapters
from covrl.models.adapted import Adapted
from covrl.models.compute import compile_trunk
from covrl.models.copies import Offloaded, frozen_copy
from covrl.models.critic import Critic, HeadOnTrunk
from covrl.models.model import LanguageModel, resolve_device
from covrl.models.policy import in_parts
from covrl.models.spec import ModelSpec
from covrl.models.spread import loaded


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
