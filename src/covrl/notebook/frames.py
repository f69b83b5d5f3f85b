"""The lines of a run's files as pandas frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from covrl.errors import UserError
from covrl.extras import install_command
from covrl.records import StepReport

if TYPE_CHECKING:
    from pandas import DataFrame

TRACE = (
    "step", "problem", "question", "answer", "rollout", "source", "text", "reward", "advantage", "kl", "verdict",
    "finish", "parent",
)  # fmt: skip
"""The columns that every frame of traces has."""


def metrics_frame(steps: Sequence[StepReport]) -> DataFrame:
    """One row a step, the step as index, and one column a metric; NaN where a step has none or it is not finite.

    The columns are in the order in which the run first reported them.
    """
    pandas = _pandas()
    names = list(dict.fromkeys(name for report in steps for name in report.metrics))
    index = pandas.Index([report.step for report in steps], name="step", dtype="int64")
    columns = {name: [report.metrics.get(name) for report in steps] for name in names}
    return pandas.DataFrame(columns, index=index, dtype="float64")


def traces_frame(steps: Sequence[StepReport]) -> DataFrame:
    """One row a trace: the columns :data:`TRACE`, and ``reward/NAME`` for each of the user's reward functions."""
    pandas = _pandas()
    rows = list(_traces(steps))
    named = dict.fromkeys(name for row in rows for name in row)
    kinds = {"rollout": "Int64", "parent": "Int64", "reward": "float64", "advantage": "float64", "kl": "float64"}
    frame = pandas.DataFrame(rows, columns=[*TRACE, *(name for name in named if name not in TRACE)])
    return frame.astype(kinds)


def _traces(steps: Sequence[StepReport]) -> Iterator[dict[str, object]]:
    for report in steps:
        for group in report.groups:
            for trace in group.traces:
                whose = (report.step, group.problem.id, group.problem.question, group.problem.answer)
                said = (trace.index, trace.source, trace.text, trace.reward, trace.advantage, trace.kl, trace.correct)
                row = dict(zip(TRACE, (*whose, *said, trace.finish, trace.parent), strict=True))
                yield row | {f"reward/{name}": value for name, value in trace.rewards.items()}


def _pandas() -> ModuleType:
    try:
        import pandas
    except ImportError:
        raise UserError(f"frames of a run need the package pandas: {install_command('notebook')}") from None
    return pandas
