"""Everything the HTML report shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from covrl.records import StepReport, Verdict
from covrl.reporting.text import warning_key


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One measure before and after training.

    Example:
        >>> ResultRow("held-out accuracy", base=0.251, trained=0.834, chance=0.238, count=500)

    ``unit`` is ``share`` (a number from 0 to 1, shown in per cent), ``nats``, ``tokens``, ``seconds`` or empty.
    ``count`` is the number of problems of a share; with it the report draws a 95 % interval.
    """

    label: str
    base: float | None
    trained: float | None
    chance: float | None = None
    note: str = ""
    unit: str = "share"
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a model wrote for one question, and how it was judged."""

    text: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One question answered before and after training."""

    question: str
    answer: str
    before: Attempt
    after: Attempt


@dataclass(frozen=True, slots=True)
class Note:
    """A remark or warning; ``step`` is ``None`` when it is about the whole run."""

    text: str
    step: int | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run, as the report shows it.

    Example:
        >>> RunSummary(title="sort", headline="Accuracy rose from 25 % to 83 %.", steps=steps)

    Warnings inside ``steps`` are shown as well; ``notes`` are for the run as a whole. ``chance`` is the
    accuracy of a guess, drawn as a dashed line; left out, the first share in ``results`` that has one gives it.
    """

    title: str
    subtitle: str = ""
    headline: str = ""
    config: Mapping[str, object] = field(default_factory=dict)
    steps: Sequence[StepReport] = ()
    results: Sequence[ResultRow] = ()
    examples: Sequence[Example] = ()
    notes: Sequence[Note] = ()
    chance: float | None = None

    def chance_line(self) -> float | None:
        """The chance level for the accuracy chart, where one is known."""
        if self.chance is not None:
            return self.chance
        return next((row.chance for row in self.results if row.chance is not None and row.unit == "share"), None)


@dataclass(frozen=True, slots=True)
class Remark:
    """A warning with the number of times that it occurred, and its first and last step."""

    text: str
    first: int | None
    last: int | None
    times: int


def remarks(summary: RunSummary) -> list[Remark]:
    """The run's notes and warnings, each once: warnings that differ only in their numbers count as one."""
    every = [*summary.notes, *(Note(text, report.step) for report in summary.steps for text in report.warnings)]
    found: dict[str, list[Note]] = {}
    for note in every:
        found.setdefault(warning_key(note.text), []).append(note)
    return [Remark(notes[0].text, notes[0].step, notes[-1].step, len(notes)) for notes in found.values()]
