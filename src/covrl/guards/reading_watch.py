"""Whether the answer still depends on the trace, from the metrics of a run's steps.

The likelihood can rise in two ways: traces come to lead to the answer, or the answer becomes likely after any trace. In
the second case the answer's distribution becomes flat: information falls (:mod:`covrl.evaluation.information`) and
entropy rises. In the first case information may fall just as far, because all traces come to agree, but entropy does
not rise. So a fall causes a warning only if the entropy rose by at least a quarter of it.

The thresholds are ours. They are set by one run that hedged on a real model (information 1.08 to 0.016, entropy 0.03 to
1.78 nats) and by healthy runs of the digits task (0.95 to 0.2 in 40 steps, entropy 0.13 to 0.11).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

PAGE = "docs/evaluation.md#does-the-answer-read-the-trace"
"""Where these warnings are explained."""

WINDOW = 3
"""Number of steps in a mean: the first steps are compared with the last ones."""

UNREAD = 0.2
"""Information, as a share of its start, at which traces count as unread."""

VANISHED = 0.5
"""Information and trace length, as shares of their starts, at which thoughts count as vanishing."""

TAKEN = 0.25
"""Rise of the entropy, as a share of the information's fall, from which the answer counts as hedging."""

LEAST_NATS = 0.05
"""Information at the start below which there is too little to lose."""


class Seen(NamedTuple):
    """One step: information and entropy of the answer's first token (nats), mean reward, mean trace length (tokens)."""

    information: float
    entropy: float
    reward: float
    length: float


class ReadingWatch:
    """Sees each step's metrics; its few numbers of state go into checkpoints."""

    def __init__(self) -> None:
        self.first: list[Seen] = []
        self.last: deque[Seen] = deque(maxlen=WINDOW)

    def step(self, metrics: Mapping[str, float]) -> list[str]:
        """Take one step and return the warnings that are due. A step without these metrics is not counted."""
        if "answer/information" not in metrics:
            return []
        reward, length = (_of_traces(metrics, name) for name in ("reward", "length"))
        seen = Seen(metrics["answer/information"], metrics["answer/entropy"], reward, length)
        if not all(map(math.isfinite, seen)):
            return []
        if len(self.first) < WINDOW:
            self.first.append(seen)
            return []
        self.last.append(seen)
        return reading_warnings(_mean(self.first), _mean(self.last)) if len(self.last) == WINDOW else []

    def state_dict(self) -> dict[str, Any]:
        return {"first": [list(seen) for seen in self.first], "last": [list(seen) for seen in self.last]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; of a checkpoint from before the watch, nothing."""
        self.first = [Seen(*seen) for seen in state.get("first", ())]
        self.last = deque((Seen(*seen) for seen in state.get("last", ())), maxlen=WINDOW)


def reading_warnings(start: Seen, now: Seen) -> list[str]:
    """What is wrong with the answer's dependence on the trace, one sentence each."""
    fall = start.information - now.information
    if start.information < LEAST_NATS or now.entropy - start.entropy < TAKEN * fall or fall <= 0:
        return []
    nats = (
        f"the information that the answer takes from its trace fell from {start.information:.2f} to "
        f"{now.information:.2f} nats and its entropy rose from {start.entropy:.2f} to {now.entropy:.2f}"
    )
    found = []
    if now.information <= UNREAD * start.information and now.reward > start.reward:
        found.append(
            f"unread traces: {nats}, while the reward rose from {start.reward:.3g} to {now.reward:.3g}; the answer "
            "becomes likely after any trace instead of after good ones; lower the learning rate, and train the answer "
            f"only where it reads its trace (covrl, jepo: algorithm.nll = 'read'; {PAGE})"
        )
    if now.information <= VANISHED * start.information and now.length <= VANISHED * start.length:
        found.append(
            f"vanishing thoughts: traces went from {start.length:.0f} to {now.length:.0f} tokens, and {nats}; "
            "thinking is being left out; lower the learning rate, hold the policy closer to its base, or take problems "
            f"that need the thought ({PAGE})"
        )
    return found


def _of_traces(metrics: Mapping[str, float], family: str) -> float:
    return metrics.get(f"{family}/prior", metrics.get(f"{family}/posterior", math.nan))


def _mean(steps: list[Seen] | deque[Seen]) -> Seen:
    return Seen(*(fmean(column) for column in zip(*steps, strict=True)))
