"""What a method says of a model that it wants beside the policy."""

from __future__ import annotations

from typing import Literal, NamedTuple


class ModelSpec(NamedTuple):
    """A model beside the policy, which begins as a copy of the base.

    ``follows`` says how one that is not ``trainable`` changes. A trainable one has an optimizer of its own, at ``rate``
    times the policy's learning rate, or with a peak of its own, ``learning_rate``, on the policy's schedule.
    ``head = "value"`` gives one number a position, 0 before the first step, in the
    place of logits; ``on_trunk`` such a head reads the policy's own hidden states and trains its trunk too.

    Example:
        >>> ModelSpec("reference")                              # the base, frozen
        >>> ModelSpec("reference", "copy", every=50)            # becomes the policy every 50 steps
        >>> ModelSpec("reference", "average", keep=0.99)        # 0.99 of itself + 0.01 of the policy, every step
        >>> ModelSpec("reference", "reset")                     # becomes the policy where reset_after says so
        >>> ModelSpec("critic", trainable=True, head="value", rate=10.0)
    """

    name: str
    follows: Literal["frozen", "copy", "average", "reset"] = "frozen"
    every: int = 1
    keep: float = 0.0
    trainable: bool = False
    head: Literal["lm", "value"] = "lm"
    on_trunk: bool = False
    rate: float = 1.0
    learning_rate: float | None = None
