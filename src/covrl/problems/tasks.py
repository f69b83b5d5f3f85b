"""Embedded tasks by name: their splits, and their checks of traces."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Protocol, get_args

from covrl.errors import UserError
from covrl.problems import animals, digits
from covrl.records import SOUND, Problem, Rollout


class Task(Protocol):
    """An embedded task."""

    @property
    def name(self) -> str:
        """Its name on the command line and in problem sources."""
        ...

    def problems(self, split: str) -> list[Problem]:
        """All problems of a split; ``longer`` is a size that is in none of them.

        Raises:
            UserError: no such split.
        """
        ...

    def chance(self) -> float:
        """The accuracy that is reached without the right procedure."""
        ...

    def label(self, problem: Problem, rollout: Rollout) -> str:
        """``sound`` (the right procedure, every step true and in order), ``false step`` or ``other procedure``."""
        ...


@dataclass(frozen=True, slots=True)
class DigitsTask:
    """Five digits, eight competing procedures (:mod:`covrl.problems.digits`)."""

    name: str = "digits"

    def problems(self, split: str) -> list[Problem]:
        if split == "longer":
            return digits.longer(2000)
        for known in get_args(digits.Split):
            if split == known:
                return digits.problems(known)
        raise _no_split(self, split)

    def chance(self) -> float:
        return digits.chance()

    def label(self, problem: Problem, rollout: Rollout) -> str:
        return _label(digits.read_trace(problem.question, rollout.text))


@dataclass(frozen=True, slots=True)
class AnimalsTask:
    """Five animals, eight competing procedures, answers in words (:mod:`covrl.problems.animals`)."""

    name: str = "animals"

    def problems(self, split: str) -> list[Problem]:
        if split == "longer":
            return animals.longer(2000)
        for known in get_args(animals.Split):
            if split == known:
                return animals.problems(known)
        raise _no_split(self, split)

    def chance(self) -> float:
        return animals.chance()

    def label(self, problem: Problem, rollout: Rollout) -> str:
        return _label(animals.read_trace(problem.question, rollout.text))


def _no_split(task: Task, split: str) -> UserError:
    known = ", ".join([*get_args(digits.Split), "longer"])
    return UserError(f"task {task.name} has no split {split!r}; there are {known}")


def _label(found: digits.TraceCheck | animals.TraceCheck) -> str:
    return SOUND if found.sound else "false step" if found.false_step else "other procedure"


TASKS: dict[str, Task] = {task.name: task for task in (DigitsTask(), AnimalsTask())}


def task_of(source: str) -> Task | None:
    """The embedded task that a problem source such as ``digits:train`` names, or None."""
    return TASKS.get(source.partition(":")[0])


def find_task(name: str, where: str = "--task: ") -> Task:
    """The embedded task of that name; an error begins with ``where``, the place in which the name was given.

    Raises:
        UserError: no such task; names the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(TASKS)}"
        raise UserError(f"{where}unknown task {name!r}: {hint}")
    return TASKS[name]
