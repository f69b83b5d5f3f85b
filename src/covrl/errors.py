"""What can go wrong in a way that a person has to be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

    from covrl.records import OffendingRollout


class UserError(Exception):
    """Input that cannot be used: the message is one line that says what is wrong, where, and what would be right.

    The command line prints it without a traceback and exits with 2; a notebook shows the line alone, too.
    """

    def _render_traceback_(self) -> list[str]:  # what IPython asks for
        return _one_line_of(self)


class BrokenModelError(UserError):
    """A model's logits or scores are NaN or infinite on what it was given, so that nothing can be made of them.

    The message names the model, where it was seen, and what to do. In a step of training it is told as
    :class:`NonFiniteError`.
    """


class RunBusyError(UserError):
    """Another process is training in the run's folder; nothing of it may be touched."""


class TrainingStoppedError(Exception):
    """Training was ended because going on makes no sense; the message says why and what to change."""

    def _render_traceback_(self) -> list[str]:
        return _one_line_of(self)


class RunInterruptedError(TrainingStoppedError):
    """The user ended the run; the message says where what was done is."""


class NonFiniteError(TrainingStoppedError):
    """A score, reward, loss or gradient is NaN or infinite; the step was not taken.

    The message names stream, problem and trace; ``culprits`` are the traces to be kept for reproduction.
    """

    def __init__(self, message: str, culprits: Sequence[OffendingRollout] = ()) -> None:
        super().__init__(message)
        self.culprits = tuple(culprits)


class OutOfMemoryError(TrainingStoppedError):
    """A pass ran out of memory, with smaller parts too; the message has the arithmetic and what to change."""


class EngineError(TrainingStoppedError):
    """The engine that samples does not answer, or answers what cannot be used; names it and, of a server, its address.

    Training ends with it; the run can be resumed when the engine is back.
    """


def _one_line_of(error: Exception) -> list[str]:
    return [f"{type(error).__name__}: {error}"]


def first_fault(error: ValidationError) -> str:
    """Where the first fault is and what would be right: ``groups.0.problem.id: Input should be a valid string``."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
