"""When a run has left the road: conditions on the mean of a metric over the last steps."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from covrl.errors import UserError

_FORM = re.compile(r"\s*([\w.-]+(?:/[\w.-]+)+)\s*([<>])\s*(\S+)\s*")


class Condition(NamedTuple):
    """One entry of ``guards.stop_when``.

    Example:
        >>> parse_condition("kl/nats_per_token > 2")
        Condition(metric='kl/nats_per_token', above=True, limit=2.0)
    """

    metric: str
    above: bool
    limit: float

    def holds(self, value: float) -> bool:
        return value > self.limit if self.above else value < self.limit


def parse_condition(text: str) -> Condition:
    """``METRIC > NUMBER`` or ``METRIC < NUMBER``; a metric is named ``family/name``.

    Raises:
        ValueError: anything else.
    """
    found = _FORM.fullmatch(text)
    try:
        limit = float(found[3]) if found else math.nan
    except ValueError:
        limit = math.nan
    if found is None or not math.isfinite(limit):
        raise ValueError(f"{text!r} is not a condition such as 'kl/nats_per_token > 2' or 'entropy/prior < 0.01'")
    return Condition(found[1], found[2] == ">", limit)


class Divergence:
    """Watches the metrics of each step; its memory is the last ``window`` values of the metrics that it watches."""

    def __init__(self, conditions: Sequence[Condition], window: int) -> None:
        self.conditions = tuple(conditions)
        self.window = window
        self.recent: dict[str, deque[float]] = {c.metric: deque(maxlen=window) for c in self.conditions}

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong after one more step, in a sentence; None while no condition holds over a whole window.

        A value that is not finite is left out of the window: a mean of NaN would never compare.

        Raises:
            UserError: the first step that is looked at has no metric of a condition's name, so it could never hold.
        """
        for name, values in self.recent.items():
            if name not in metrics and not values:
                near = ", ".join(sorted(m for m in metrics if m.partition("/")[0] == name.partition("/")[0]))
                hint = f"of its family there is {near}" if near else "metrics.jsonl has the names that there are"
                raise UserError(f"guards.stop_when: this run reports no metric {name}; {hint}")
            if math.isfinite(metrics.get(name, math.nan)):
                values.append(metrics[name])
        for condition in self.conditions:
            values = self.recent[condition.metric]
            mean = sum(values) / self.window
            if len(values) == self.window and condition.holds(mean):
                side = "above" if condition.above else "below"
                return (
                    f"diverged: the mean of {condition.metric} over the last {self.window} steps is {mean:.4g}, "
                    f"{side} the {condition.limit:g} of guards.stop_when; lower training.learning_rate, or move the "
                    "threshold if this is as it should be"
                )
        return None

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.recent.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take up what :meth:`state_dict` gave; a metric that is no longer watched is dropped."""
        for name, values in self.recent.items():
            values.clear()
            values.extend(state.get(name, ()))
