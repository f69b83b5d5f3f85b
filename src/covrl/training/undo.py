"""A step is whole or never happened: the state before it, the way back, and where a run may leave a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from covrl.distributed.world import local_part
from covrl.errors import BrokenModelError, NonFiniteError, RunInterruptedError
from covrl.training.boundary import Boundary, StepInProgress, Weights
from covrl.training.memory import portions
from covrl.training.optimizer import moments_there
from covrl.training.run import Run


def boundary_of(run: Run) -> Boundary:
    """The run as it is now, which must be between two steps."""
    memory = json.loads(json.dumps(run.algorithm.state_dict()))  # a copy that does not move with the method
    guards = json.loads(json.dumps(run.guard.state_dict()))
    return Boundary(run.done, dict(run.source.state_dict()), memory, guards, run.best, updates_of(run), portions(run))


def updates_of(run: Run) -> int:
    """Optimizer steps that the parameters have taken."""
    states = run.optimizers["policy"].state.values()
    return max((int(state["step"]) for state in states if "step" in state), default=0)


@contextmanager
def whole_or_undone(run: Run) -> Generator[None]:
    """While entered, a step is in progress; an error takes the run back to where it was, as far as that can be done.

    Weights are copied only where something can fail after the first optimizer step: with several updates a batch of
    rollouts, or with an evaluation that may be interrupted.

    Raises:
        NonFiniteError: in the place of a BrokenModelError, with the step's number.
    """
    number, training = run.done + 1, run.config.training
    several = training.mini_batches * training.epochs > 1
    ends_in_evaluation = run.stopping is not None and run.due(run.config.evaluation.every, number)
    run.in_progress = StepInProgress(boundary_of(run), _weights(run) if several or ends_in_evaluation else None)
    try:
        yield
    except BaseException as error:
        if run.in_progress.can_be_undone:
            take_back(run)
        if isinstance(error, BrokenModelError):
            raise NonFiniteError(f"step {number}: {error}") from error
        raise
    finally:
        run.in_progress = None


def take_back(run: Run, keep_problems: bool = False) -> None:
    """Bring ``run`` back to before the step in progress; ``keep_problems`` leaves it after the problems it took."""
    assert run.in_progress is not None
    before, weights = run.in_progress.before, run.in_progress.weights
    run.done = before.done
    run.guard.load_state_dict(before.guards)
    run.algorithm.load_state_dict(json.loads(json.dumps(before.algorithm)))
    if not keep_problems:
        run.source.load_state_dict(dict(before.problems))
    run.forget_gradient()
    if weights is not None:
        with torch.no_grad(), moments_there(run.optimizers.values()):
            for tensor, saved in zip(_moved(run), weights.tensors, strict=True):
                local_part(tensor).copy_(saved)
            _put_optimizer_states(run, weights.optimizer)
        getattr(run.generator, "publish_later", run.generator.publish)(run.done)  # another rank may not be here


def leave_if_asked(run: Run) -> None:
    """Leave the step in progress if the run was asked to end and the step can be taken back.

    In a pass that other ranks take part in, :func:`between_passes` looks, and all leave together.

    Raises:
        RunInterruptedError: it was asked to.
    """
    if run.world.can_raise_alone and _asked(run):
        leave_step(run)


def between_passes(run: Run) -> Callable[[Exception | None], None]:
    """What to call between the forward and the backward of a pass, with what the forward ran into or None.

    It raises that error on all ranks, or RunInterruptedError if any rank was asked to end.
    """

    def look(error: Exception | None) -> None:
        if run.world.agree(error, _asked(run)):
            leave_step(run)

    return look


def leave_step(run: Run) -> None:
    """Raises RunInterruptedError, naming the step that is left."""
    done = run.in_progress.before.done if run.in_progress else run.done
    raise RunInterruptedError(f"interrupted inside step {done + 1}, of which nothing was kept")


def _asked(run: Run) -> bool:
    undoable = run.in_progress is not None and run.in_progress.can_be_undone
    return undoable and run.stopping is not None and run.stopping()


def _weights(run: Run) -> Weights:
    with moments_there(run.optimizers.values()):
        return Weights([_saved(t) for t in _moved(run)], _optimizer_states(run))


def _moved(run: Run) -> Iterator[Tensor]:
    """The trained parameters, then those of the models that follow the policy."""
    yield from run.parameters
    for spec in run.algorithm.models:
        if spec.follows != "frozen":
            yield from run.models[spec.name].own_weights()


def _saved(tensor: Tensor) -> Tensor:
    return local_part(tensor.detach()).to("cpu", copy=True)


def _optimizer_states(run: Run) -> list[dict[str, Any] | None]:
    """Each parameter's state by place; None for one that was never moved."""
    return [
        {k: _saved(v) if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
        if p in optimizer.state
        else None
        for optimizer, p in _each_parameter(run)
    ]


def _put_optimizer_states(run: Run, saved: Sequence[dict[str, Any] | None]) -> None:
    for (optimizer, parameter), state in zip(_each_parameter(run), saved, strict=True):
        if state is None:
            optimizer.state.pop(parameter, None)
            continue
        now = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, Tensor):
                local_part(now[key]).copy_(value)
            else:
                now[key] = value


def _each_parameter(run: Run) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
    for name, optimizer in run.optimizers.items():
        yield from ((optimizer, parameter) for parameter in run.trained[name])
