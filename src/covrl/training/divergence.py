"""When a run has left the road: conditions on the mean of a metric over the last steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from covrl.conditions import Condition
from covrl.errors import UserError
from covrl.evaluation.information import first_reading

if TYPE_CHECKING:
    from covrl.training.loop import Run

_LABELLED = ("nll/selected_unsound_share", "leak/unsound_ends_in_hint_share")
_EVALUATED = ("eval/log_prob", "eval/log_prob_closed", "eval/closed_share")
_READ = ("eval/answer_information", "eval/answer_entropy", "eval/thought_gain", "eval/thought_read")
_GRADED = ("eval/accuracy", "eval/sampled", "eval/unknown_share")
_WATCHED = ("watch/parted", "watch/reward_rise", "watch/accuracy_gain", "watch/accuracy_gain_at_most")


def comes_later(run: Run, name: str) -> bool:
    """Whether a step that is trained on may lack a metric that this run reports.

    It was not due then, or nothing was drawn that it is made of.
    """
    config, family = run.config, name.partition("/")[0]
    if family in ("eval", "watch"):
        if not (config.evaluation.every and run.evaluator and run.held_out):
            return False
        if name in _READ:
            return _reads_answers(run) and ("thought" not in name or bool(config.report.thoughts_every))
        graded = run.evaluator.grade is not None
        return name in _EVALUATED or (graded and name in (*_GRADED, *_WATCHED, *["eval/sound"] * bool(run.label)))
    if name in ("answer/information", "answer/entropy"):
        return _reads_answers(run)
    if name in ("thought/gain", "thought/read"):
        return bool(config.report.thoughts_every) and _reads_answers(run)
    if family == "grad_norm":
        names = {f"grad_norm/{stream.name}" for stream in run.algorithm.streams}
        return bool(config.training.stream_norms_every) and name in names
    if family == "label" or name in _LABELLED:
        return run.label is not None
    if name == "guard/publish_gap":
        return bool(config.guards.publish_check_every)
    return name == "kl/capped_share" and bool(run.algorithm.models)


def _reads_answers(run: Run) -> bool:
    return bool(first_reading(run.algorithm.contexts, run.algorithm.scoring))


class Divergence:
    """Watches the metrics of each step; its memory is the last ``window`` values of the metrics that it watches."""

    def __init__(self, conditions: Sequence[Condition], window: int) -> None:
        self.conditions = tuple(conditions)
        self.window = window
        self.recent: dict[str, deque[float]] = {c.metric: deque(maxlen=window) for c in self.conditions}

    def check(self, metrics: Mapping[str, float], later: Callable[[str], bool] = lambda _: False) -> str | None:
        """What is wrong after one more step, in a sentence; None while no condition holds over a whole window.

        A value that is not finite is left out of the window: a mean of NaN would never compare. ``later`` says of
        which metrics a step may have none, though the run reports them (see :func:`comes_later`).

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
