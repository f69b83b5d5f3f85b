"""The interface of a generator, for any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from covrl.records import Request, Rollout


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw.

    Example:
        >>> Sampling(max_tokens=2048, stop="</think>")

    ``temperature`` 0 means the most likely token. ``stop`` is searched in the decoded text after the texts of ``after``
    have occurred in their order: an answer may end at a full stop, which reasoning contains too. ``top_p`` below 1
    draws from the fewest tokens that have this probability together. It is only for benchmarks whose protocol has it:
    training always samples with 1, because a truncated sampler draws from another distribution than the one that
    likelihoods describe.
    """

    max_tokens: int
    stop: str
    temperature: float = 1.0
    top_p: float = 1.0
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """The common part of the random numbers' keys in a call: (run seed, step, purpose).

    Problem id, rollout index and position complete it, so a sample does not depend on the batch it is drawn in.
    """

    seed: int
    step: int
    purpose: str = "trace"


class Generator(Protocol):
    """An engine that samples. ``publish`` informs it that the policy's weights changed.

    An engine that runs the trained model itself has ``of_trainer = True`` (:func:`samples_with_trainer`). For every
    other engine the loss is corrected, because its log-probs may differ from the trainer's.
    """

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """One rollout per request, in the same order."""
        ...

    def publish(self, version: int) -> None:
        """Use the policy's current weights from now on and stamp rollouts with ``version``."""
        ...


def rest(generator: Generator) -> None:
    """Let an engine beside the trainer give the accelerator's memory back; :meth:`Generator.generate` takes it."""
    give_back = getattr(generator, "rest", None)
    if give_back is not None:
        give_back()


def samples_with_trainer(generator: Generator) -> bool:
    """Whether samples come from the trained model itself, so that its log-probs differ only by rounding."""
    return getattr(generator, "of_trainer", False)
