"""What is read of all responses of a group together, without gradients: numbers that need the others' hidden states.

Responses go through the trunk in packs like any others. The group's reading then gets the hidden states of all of them
and the output layer, which it applies to a few positions at a time; no tensor spans positions × vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from covrl.models.projection import Projection
from covrl.records import Output, Problem, Rollout, Scores
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, PassLimits, Reading, Trunk, make_packs, make_unit

if TYPE_CHECKING:
    from covrl.models.model import LanguageModel


@dataclass(frozen=True, slots=True)
class GroupStates:
    """The responses of one group as the model sees them.

    ``hidden[i]`` ``[T_i, D]`` are the last hidden states that predict response i's tokens ``targets[i]`` ``[T_i]``, in
    float32 or wider; both are empty for a rollout that is not read. ``positions`` are as many as may have logits at
    once.
    """

    rollouts: tuple[Rollout, ...]
    hidden: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    project: Projection
    positions: int

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probs over the vocabulary from hidden states: ``[n, D] -> [n, V]``."""
        return torch.log_softmax(self.project.logits(self.project.product(hidden)), dim=-1)

    def chunks(self, response: int) -> Iterator[slice]:
        """The response's positions, a few at a time."""
        length = len(self.targets[response])
        return (slice(at, min(at + self.positions, length)) for at in range(0, length, self.positions))


class GroupReading(NamedTuple):
    """A number a token that depends on all responses of its group.

    Example:
        >>> GroupReading("prior", token_influence, "influence")

    ``read`` gives ``[T_i]`` for each rollout, stored as ``Output("trace", output)``.
    """

    context: str
    read: Callable[[GroupStates], Sequence[Tensor]]
    output: str


def read_group(
    models: Mapping[str, LanguageModel],
    contexts: Sequence[Context],
    readings: Sequence[GroupReading],
    problem: Problem,
    rollouts: Sequence[Rollout],
    limits: PassLimits,
) -> list[Scores]:
    """What ``readings`` say of the rollouts of one problem; one :class:`Scores` each, in the same order."""
    found: list[dict[Output, Tensor]] = [{} for _ in rollouts]
    tokens = [0] * len(rollouts)
    with torch.no_grad():
        for name in dict.fromkeys(reading.context for reading in readings):
            context = next(c for c in contexts if c.name == name)
            states, sizes = _states(models, context, problem, rollouts, limits)
            tokens = [a + b for a, b in zip(tokens, sizes, strict=True)]
            for reading in (r for r in readings if r.context == name):
                for own, values in zip(found, reading.read(states), strict=True):
                    own[Output("trace", reading.output)] = values
    return [Scores(values, count) for values, count in zip(found, tokens, strict=True)]


def _states(
    models: Mapping[str, LanguageModel],
    context: Context,
    problem: Problem,
    rollouts: Sequence[Rollout],
    limits: PassLimits,
) -> tuple[GroupStates, list[int]]:
    """Hidden states of a group's responses under one context, and the tokens of each one's row."""
    model = models[context.model]
    wanted = [Reading("trace", (context.name,), log_prob, ("log_prob",))]  # of which only the rows are made
    units = [make_unit(i, (context,), wanted, problem, rollout) for i, rollout in enumerate(rollouts)]
    hidden: dict[int, Tensor] = {}
    for pack in make_packs([unit for unit in units if unit.rows], limits.tokens):
        trunk = Trunk(models, (context,), pack)
        found = {unit.index: trunk.before([unit], context.name, "trace") for unit in pack}
        hidden |= {index: states.to(model.score_dtype) for index, states in found.items()}
    project = model.projection().prepared()
    nothing = torch.zeros(0, _width(project, hidden), dtype=model.score_dtype, device=model.device)
    ids = [rollout.trace_ids if i in hidden else () for i, rollout in enumerate(rollouts)]
    targets = tuple(torch.tensor(row, dtype=torch.long, device=model.device) for row in ids)
    states = tuple(hidden.get(i, nothing) for i in range(len(rollouts)))
    vocabulary = nothing.shape[1] if project.weight is None else project.weight.shape[0]
    positions = max(1, limits.logits_bytes // (4 * max(vocabulary, 1)))
    return GroupStates(tuple(rollouts), states, targets, project, positions), [unit.tokens for unit in units]


def _width(project: Projection, hidden: Mapping[int, Tensor]) -> int:
    """D, of the hidden states or of the layer that they go into."""
    if project.weight is not None:
        return project.weight.shape[1]
    return next((part.shape[1] for part in hidden.values()), 0)
