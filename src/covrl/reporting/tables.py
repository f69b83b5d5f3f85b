"""Tables with a title, as Markdown and for a terminal; a run's results, and traces before and after training.

Model text is printed as it is: it never passes through rich's markup, and control characters are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from covrl.records import Verdict
from covrl.reporting.format import number
from covrl.reporting.summary import Attempt, Example, ResultRow
from covrl.reporting.text import one_line, visible

SIDE_BY_SIDE = 100  # columns from which two traces fit next to each other
VERDICTS = {"right": ("right", "bold green"), "wrong": ("wrong", "bold red"), "unknown": ("unknown", "yellow")}


class TitledTable(NamedTuple):
    """A table as text under its title, with a sentence about it; the first column holds names."""

    title: str
    about: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def markdown_table(table: TitledTable) -> str:
    """The table as Markdown, its title as a heading."""
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    lines = [f"| {' | '.join(map(markdown_text, row))} |" for row in (table.head, rule, *table.rows)]
    return "\n".join([f"## {markdown_text(table.title)}", "", markdown_text(table.about), "", *lines])


def markdown_text(text: str) -> str:
    """Text for one line of Markdown, or a cell of its tables."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")


def show_table(console: Console, table: TitledTable) -> None:
    """The table for a terminal."""
    made = Table(box=box.SIMPLE_HEAD, title=Text(visible(table.title), "bold"), title_justify="left")
    made.caption, made.caption_justify = Text(visible(table.about), "dim"), "left"
    for place, name in enumerate(table.head):
        made.add_column(Text(visible(name)), justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    console.print(made)


def comparison_table(rows: Sequence[ResultRow], title: str = "") -> Table:
    """Base against trained, one row a measure, chance beside them if it is known.

    Example:
        >>> Console(stderr=True).print(comparison_table([ResultRow("accuracy", 0.25, 0.83, chance=0.24)]))
    """
    head = Text(visible(title), "bold") if title else None
    table = Table(box=box.SIMPLE_HEAD, title=head, title_justify="left")
    table.add_column("", overflow="fold")
    for name in ("base", "trained", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    chance = any(row.chance is not None for row in rows)
    if chance:
        table.add_column("chance", justify="right", no_wrap=True)
    for row in rows:
        cells: list[RenderableType] = [_label(row), number(row.base, row.unit)]
        cells += [Text(number(row.trained, row.unit), "bold"), _change(row)]
        cells += [Text("" if row.chance is None else number(row.chance, row.unit), "dim")] if chance else []
        table.add_row(*cells)
    return table


def trace_panel(examples: Sequence[Example], max_lines: int = 12) -> TracePanel:
    """Each question with the trace before and after training; longer traces are cut after ``max_lines`` lines.

    Example:
        >>> Console(stderr=True).print(trace_panel(examples[:3]))
    """
    return TracePanel(tuple(examples), max_lines)


@dataclass(frozen=True)
class TracePanel:
    """The result of :func:`trace_panel`: its layout depends on the console that prints it."""

    examples: tuple[Example, ...]
    max_lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= SIDE_BY_SIDE
        for example in self.examples:
            yield Rule(style="dim")
            yield Text.assemble((one_line(example.question, 400), "bold"))
            yield Text.assemble(("answer  ", "dim"), one_line(example.answer, 200))
            before, after = self._one("before", example.before), self._one("after", example.after)
            if wide:
                pair = Table.grid(expand=True, padding=(0, 1))
                pair.add_column(ratio=1)
                pair.add_column(ratio=1)
                pair.add_row(before, after)
                yield pair
            else:
                yield before
                yield after

    def _one(self, when: str, attempt: Attempt) -> Panel:
        lines = visible(attempt.text).split("\n")
        text = Text("\n".join(lines[: self.max_lines]), overflow="fold")
        if len(lines) > self.max_lines:
            text.append(f"\n… {len(lines) - self.max_lines} more lines", "dim")
        head = Text.assemble((when, "dim"), "  ", verdict_text(attempt.verdict))
        return Panel(text, title=head, title_align="left", border_style="dim", box=box.ROUNDED)


def verdict_text(verdict: Verdict | None) -> Text:
    """A verdict as a coloured word."""
    word, style = VERDICTS.get(verdict or "", ("", ""))
    return Text(word, style)


def _label(row: ResultRow) -> Text:
    """The measure's name with its note below it: a column for notes would be too narrow at 80 columns."""
    note = [("\n" + one_line(row.note), "dim")] if row.note else []
    return Text.assemble(one_line(row.label), *note)


def _change(row: ResultRow) -> Text:
    if row.base is None or row.trained is None:
        return Text("")
    change = row.trained - row.base
    shown = f"{number(100 * change, sign=True)} pts" if row.unit == "share" else number(change, sign=True)
    return Text(shown, "green" if row.unit == "share" and change > 0 else "red" if row.unit == "share" else "")
