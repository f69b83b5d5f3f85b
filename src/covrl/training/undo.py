"""The state before a step, to go back to when the step is not taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from covrl.distributed.world import local_part

if TYPE_CHECKING:
    from covrl.training.loop import Run


class Before:
    """What a checkpoint would hold if it were cut now: steps done, problems' position, the method's memory.

    ``weights`` adds copies of all weights that a step moves and of the optimizer's state, in host memory. They are
    needed only where something can fail after the first optimizer step: with several updates a batch of rollouts, or
    with an evaluation that may be interrupted. Without them :meth:`restore` may be called up to the first one.
    """

    def __init__(self, run: Run, weights: bool) -> None:
        self.done = run.done
        self.problems = dict(run.source.state_dict())
        self.skipped = run.guard.skipped
        self.algorithm = copy.deepcopy(run.algorithm.state_dict())
        self.tensors = [_saved(t) for t in _moved(run)] if weights else None
        self.optimizer = _optimizer_state(run.optimizer, run.parameters) if weights else None

    def restore(self, run: Run, keep_problems: bool = False) -> None:
        """Bring ``run`` back; ``keep_problems`` leaves it behind the problems that were taken."""
        run.done, run.guard.skipped = self.done, self.skipped
        run.algorithm.load_state_dict(copy.deepcopy(self.algorithm))
        if not keep_problems:
            run.source.load_state_dict(dict(self.problems))
        run.optimizer.zero_grad(set_to_none=True)
        if self.tensors is not None and self.optimizer is not None:
            with torch.no_grad():
                for tensor, saved in zip(_moved(run), self.tensors, strict=True):
                    local_part(tensor).copy_(saved)
                _put_optimizer_state(run.optimizer, run.parameters, self.optimizer)
            run.generator.publish(run.done)


def _moved(run: Run) -> Iterator[Tensor]:
    """The trained parameters, then those of the models that follow the policy."""
    yield from run.parameters
    for spec in run.algorithm.models:
        if spec.follows != "frozen":
            yield from run.models[spec.name].own_weights()


def _saved(tensor: Tensor) -> Tensor:
    return local_part(tensor.detach()).to("cpu", copy=True)


def _optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> list[dict[str, Any] | None]:
    """Each parameter's state by place; None for one that was never moved."""
    return [
        {k: _saved(v) if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
        if p in optimizer.state
        else None
        for p in parameters
    ]


def _put_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], saved: Sequence[dict[str, Any] | None]
) -> None:
    for parameter, state in zip(parameters, saved, strict=True):
        if state is None:
            optimizer.state.pop(parameter, None)
            continue
        now = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, Tensor):
                local_part(now[key]).copy_(value)
            else:
                now[key] = value
