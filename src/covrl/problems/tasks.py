"""Embedded tasks by name: their splits, and their checks of traces."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from covrl.errors import UserError
from covrl.problems import animals, countdown, digits
from covrl.problems.embedded import SPLITS, Split, TraceCheck
from covrl.records import SOUND, Problem, Rollout


@dataclass(frozen=True, slots=True)
class Task:
    """An embedded task.

    ``name`` is its name on the command line and in problem sources, ``chance`` the accuracy that is reached without the
    right procedure, ``longer`` a number of problems of a size that is in no split.
    """

    name: str
    of_split: Callable[[Split], list[Problem]]
    longer: Callable[[int], list[Problem]]
    chance: Callable[[], float]
    read_trace: Callable[[str, str], TraceCheck]

    def problems(self, split: str) -> list[Problem]:
        """All problems of a split; ``longer`` is a size that is in none of them.

        Raises:
            UserError: no such split.
        """
        if split == "longer":
            return self.longer(2000)
        for known in SPLITS:
            if split == known:
                return self.of_split(known)
        raise UserError(f"task {self.name} has no split {split!r}; there are {', '.join([*SPLITS, 'longer'])}")

    def label(self, problem: Problem, rollout: Rollout) -> str:
        """``sound`` (the right procedure, every step true and in order), ``false step`` or ``other procedure``."""
        found = self.read_trace(problem.question, rollout.text)
        return SOUND if found.sound else "false step" if found.false_step else "other procedure"


TASKS = {
    "digits": Task("digits", digits.problems, digits.longer, digits.chance, digits.read_trace),
    "animals": Task("animals", animals.problems, animals.longer, animals.chance, animals.read_trace),
    "countdown": Task("countdown", countdown.problems, countdown.longer, countdown.chance, countdown.read_trace),
}


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
