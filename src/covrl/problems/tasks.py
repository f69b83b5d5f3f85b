"""Embedded tasks by name: their splits, and what can be told of a trace."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import get_args

from covrl.errors import UserError
from covrl.evaluation.accuracy import SOUND
from covrl.problems import digits
from covrl.records import Problem, Rollout


@dataclass(frozen=True, slots=True)
class DigitsTask:
    """Five digits, eight competing procedures (:mod:`covrl.problems.digits`)."""

    name: str = "digits"

    def problems(self, split: str) -> list[Problem]:
        """All problems of a split; ``longer`` is a size that is in none of them.

        Raises:
            UserError: no such split.
        """
        if split == "longer":
            return digits.longer(2000)
        for known in get_args(digits.Split):
            if split == known:
                return digits.problems(known)
        known = ", ".join([*get_args(digits.Split), "longer"])
        raise UserError(f"problems: task {self.name} has no split {split!r}; there are {known}")

    def chance(self) -> float:
        """Accuracy of the best answer that ignores the question."""
        return digits.chance()

    def label(self, problem: Problem, rollout: Rollout) -> str:
        """``sound`` (the right procedure, every step true and in order), ``false step`` or ``other procedure``."""
        found = digits.read_trace(problem.question, rollout.text)
        return SOUND if found.sound else "false step" if found.false_step else "other procedure"


TASKS = {"digits": DigitsTask()}


def task_of(source: str) -> DigitsTask | None:
    """The embedded task that a problem source such as ``digits:train`` names, or None."""
    return TASKS.get(source.partition(":")[0])


def find_task(name: str) -> DigitsTask:
    """The embedded task of that name.

    Raises:
        UserError: no such task; names the nearest.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        raise UserError(
            f"problems.task: unknown task {name!r}: "
            + (f"did you mean {near[0]}?" if near else f"known: {', '.join(TASKS)}")
        )
    return TASKS[name]
