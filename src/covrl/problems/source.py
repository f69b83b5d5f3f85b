"""The order in which a run meets its problems: seeded, endless, resumable; of one source of data or several."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from covrl.errors import UserError
from covrl.records import Problem


class ProblemSource:
    """Yields problems in a new seeded order each epoch; its whole state is how many were taken.

    With ``weights``, which are by :attr:`Problem.origin`, each source of data has epochs of its own, and the sources
    take turns so that after n problems each has given its share of n, to within a problem. The turns are not drawn:
    every step has the same mixture.

    Example:
        >>> source = ProblemSource(problems, seed=0)
        >>> batch = source.take(32)
        >>> source.state_dict()   # {"position": 32}
        >>> ProblemSource(problems, seed=0, weights={"gsm8k": 3, "svamp": 1})   # 24 and 8 problems of 32
    """

    def __init__(self, problems: Sequence[Problem], seed: int, weights: Mapping[str, float] | None = None) -> None:
        """Raises UserError if there are no problems or two share an id."""
        if not problems:
            raise UserError("problems: the training set is empty")
        if len({p.id for p in problems}) < len(problems):
            raise UserError("problems: two problems share an id; ids must be unique")
        self.problems = list(problems)
        self.seed = seed
        self._weights = dict(weights or {})
        by_origin = {name: [p for p in problems if p.origin == name] for name in self._weights}
        self._parts = {name: _Shuffled(part, f"{seed}/{name}") for name, part in by_origin.items()}
        self._parts = self._parts or {"": _Shuffled(self.problems, f"{seed}")}
        self._taken = dict.fromkeys(self._parts, 0)

    @property
    def position(self) -> int:
        """Problems that were taken."""
        return sum(self._taken.values())

    def take(self, count: int) -> list[Problem]:
        """The next ``count`` problems; one may come twice only where an epoch of its source ends in between."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Problem:
        name = self._due()
        self._taken[name] += 1
        return self._parts[name].at(self._taken[name] - 1)

    def _due(self) -> str:
        """The source that is furthest behind its share; the first of equals."""
        if not self._weights:
            return ""
        total, position = sum(self._weights.values()), self.position + 1
        return max(self._weights, key=lambda name: self._weights[name] / total * position - self._taken[name])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position} | {f"of {name}": taken for name, taken in self._taken.items() if name}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._taken = {name: state[f"of {name}" if name else "position"] for name in self._parts}


class _Shuffled:
    """The problems of one source, in the order of each epoch."""

    def __init__(self, problems: Sequence[Problem], seed: str) -> None:
        self._problems, self._seed = problems, seed
        self._epoch = -1
        self._order: list[int] = []

    def at(self, position: int) -> Problem:
        epoch, place = divmod(position, len(self._problems))
        if epoch != self._epoch:
            self._order = list(range(len(self._problems)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._problems[self._order[place]]


def shuffle_hints(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """The control for posterior prompts: each problem's hint is the answer of another problem; the rest is unchanged.

    The other problem comes from a seeded rotation of a seeded order of the problems of the same origin, so it is never
    the same problem, unless it is the only one; the answers may still be equal by chance.
    """
    donors: dict[int, int] = {}
    for origin in dict.fromkeys(problem.origin for problem in problems):
        order = [i for i, problem in enumerate(problems) if problem.origin == origin]
        random.Random(f"hints/{seed}").shuffle(order)
        donors |= {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    return [replace(p, hint=problems[donors[i]].answer) for i, p in enumerate(problems)]
