"""What a run is between two steps, as plain records: small enough to keep at every step, with tensors where needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Boundary:
    """What a run is between two steps, apart from its tensors.

    ``updates`` is the optimizer's step count: while it is the same, the tensors are still those of the boundary.
    ``portions`` is how much is done at once, which memory that ran out may have lowered.
    """

    done: int
    problems: dict[str, Any]
    algorithm: dict[str, Any]
    guards: dict[str, Any]
    best: tuple[float, float] | None
    updates: int
    portions: dict[str, int]


@dataclass(frozen=True, slots=True)
class Weights:
    """Copies in host memory of all weights that a step moves, and of the optimizer's state of each parameter.

    A parameter that the optimizer never moved has no state: None.
    """

    tensors: list[Tensor]
    optimizer: list[dict[str, Any] | None]


@dataclass(slots=True)
class StepInProgress:
    """The step that is being taken: what it can be taken back to, and how far it has come.

    ``update`` is the number of the update that is being made (1, 2, …; 0 before the first). ``applied`` says whether
    the optimizer has moved the weights: from then on the step can be taken back only with a copy of the ``weights``.
    """

    before: Boundary
    weights: Weights | None
    update: int = 0
    applied: bool = False

    @property
    def can_be_undone(self) -> bool:
        return not self.applied or self.weights is not None
