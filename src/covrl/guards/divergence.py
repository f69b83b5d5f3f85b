"""When a run has left the road: conditions on the mean of a metric over the last steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from covrl.config.conditions import Condition
from covrl.errors import UserError


class Divergence:
    """Watches the metrics of each step; its memory is the last ``window`` values of the metrics that it watches."""

    def __init__(self, conditions: Sequence[Condition], window: int) -> None:
        self.conditions = tuple(conditions)
        self.window = window
        self.recent: dict[str, deque[float]] = {c.metric: deque(maxlen=window) for c in self.conditions}

    def check(self, metrics: Mapping[str, float], later: Callable[[str], bool] = lambda _: False) -> str | None:
        """What is wrong after one more step, in a sentence; None while no condition holds over a whole window.

        A value that is not finite is left out of the window: a mean of NaN would never compare. ``later`` says which
        metrics a step may lack, though the run reports them (:func:`covrl.training.metrics.comes_later`).

        Raises:
            UserError: no metric has a condition's name, on a step that was trained on, so it could never hold.
        """
        whole = metrics.get("groups/kept", 1.0) > 0 and metrics.get("tokens/trained", 1.0) > 0
        for name, values in self.recent.items():
            if whole and name not in metrics and not values and not later(name):
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
