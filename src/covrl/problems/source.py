"""The order in which a run meets its problems: seeded, endless, resumable."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from covrl.errors import UserError
from covrl.records import Problem


class ProblemSource:
    """Yields problems in a new seeded order each epoch; its whole state is one position.

    Example:
        >>> source = ProblemSource(problems, seed=0)
        >>> batch = source.take(32)
        >>> source.state_dict()   # {"position": 32}
    """

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        """Raises UserError if there are no problems or two share an id."""
        if not problems:
            raise UserError("problems: the training set is empty")
        if len({p.id for p in problems}) < len(problems):
            raise UserError("problems: two problems share an id; ids must be unique")
        self.problems = list(problems)
        self.seed = seed
        self.position = 0
        self._epoch = -1
        self._order: list[int] = []

    def take(self, count: int) -> list[Problem]:
        """The next ``count`` problems; one may come twice only where an epoch ends in between."""
        taken = [self._at(self.position + i) for i in range(count)]
        self.position += count
        return taken

    def _at(self, position: int) -> Problem:
        epoch, place = divmod(position, len(self.problems))
        if epoch != self._epoch:
            self._order = list(range(len(self.problems)))
            random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self.problems[self._order[place]]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def shuffle_hints(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """The control for posterior prompts: each problem's hint is the answer of another problem; the rest is unchanged.

    The other problem comes from a seeded rotation of a seeded order, so it is never the same problem; the answers may
    still be equal by chance.
    """
    order = list(range(len(problems)))
    random.Random(f"hints/{seed}").shuffle(order)
    donor = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    return [replace(p, hint=problems[donor[i]].answer) for i, p in enumerate(problems)]
