"""The table of a comparison, as Markdown and for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from covrl.comparison.cells import Cell, Result
from covrl.comparison.methods import BASE
from covrl.comparison.summary import (
    AXES,
    UNITS,
    Axis,
    Figure,
    Line,
    common_tokens,
    lead_at,
    lead_by_problem,
    lead_in,
    measures,
    places,
    remarks,
    sooner,
    verdict,
)
from covrl.comparison.time_to_accuracy import (
    came,
    pairs_at_equal_rates,
    sooner_at_equal_rates,
    times_as_long,
    times_at_equal_rates,
)
from covrl.reporting.format import ABSENT, duration
from covrl.reporting.tables import TitledTable, markdown_table, markdown_text
from covrl.reporting.text import visible

WIDE = 150  # width from which a terminal shows the whole table
PHASES = ("generate", "score", "train")
LEAST_MISSED = ("trace", "pass@", "sound", "log p")
"""Prefixes of the columns that a narrow terminal omits if they do not fit, in this order."""

PAIRED = ("greedy", "avg@n", "log_prob", "trace_tokens")
"""Measures that are known for each problem."""

LEVEL = 0.9
"""Held-out accuracy at which a method counts as having learnt the task, to say how soon."""
LEVEL_TEXT = f"{100 * LEVEL:.0f} %"
ABOUT = (
    "Shares in %, under the prior prompt. In brackets 95 % intervals: Student's over seeds, or, marked †, a bootstrap "
    "over problems where there is one run. Then every seed."
)


def grids(every: Sequence[Line]) -> dict[str, list[TitledTable]]:
    """The tables of each setting: what was reached, the first method against each other one, and the cost."""
    found: dict[str, list[TitledTable]] = {}
    told: set[str] = set()
    for name, here in places(every).items():
        first = here[0].setting not in told  # the cost of training does not depend on what was measured
        told.add(here[0].setting)
        found[name] = [_reached(name, here), *_against(name, here, first), *([_cost(name, here)] if first else [])]
    return found


def _learnt(here: Sequence[Line]) -> bool:
    """Whether "learnt" can be defined by a level: a task whose chance is known can be learnt fully, others may be too
    hard."""
    if any(r.figures["chance"] is not None for line in here for r in line.results):
        return True
    return any(at is not None for line in here for axis in AXES for at in line.reached(axis, LEVEL))


def _against(setting: str, here: Sequence[Line], soon: bool = True) -> list[TitledTable]:
    """The first method's lead over each other one; where it has several rates, how soon it learns at each of them."""
    trained = [line for line in here if line.method != BASE]
    first = [line for line in trained if line.method == trained[0].method]
    if len(first) == len(trained):
        return []
    soon, paired = soon and _learnt(here), _paired(setting, here, trained)
    if len(first) > 1:
        return [*paired, *([_at_equal_rates(setting, trained)] if soon else [])]
    shown = measures([r for line in here for r in line.results])
    head = ["against", "rate", "seeds", *shown.values(), *(f"at equal {name}" for name in AXES.values()), "verdict"]
    rows = []
    for other in trained[1:]:
        at = [lead_at(first[0], other, axis) for axis in AXES]
        figures = [*(lead_in(first[0], other, measure) for measure in shown), *at]
        both = {r.cell.seed for r in first[0].results} & {r.cell.seed for r in other.results}
        units = [*(UNITS.get(measure, "share") for measure in shown), "share", "share"]
        texts = map(figure_text, figures, units)
        rows.append([other.method, other.rate_text, str(len(both)), *texts, verdict(at)])
    about = (
        f"Lead of {first[0].method} in percentage points by seed, with Student's 95 % intervals. At equal tokens: "
        "held-out accuracy after the most tokens that all trainings of the two reached. The verdict is ahead "
        "or behind only where the intervals of both axes say so."
    )
    against = TitledTable(f"{setting}: {first[0].method} against the others", about, head, rows)
    return [against, *paired, *([_how_soon(setting, first[0], trained[1:])] if soon else [])]


def _paired(setting: str, here: Sequence[Line], trained: Sequence[Line]) -> list[TitledTable]:
    """The first method's lead over each other one at the same rate, problem by problem; none if per-problem results
    were not kept."""
    first = [line for line in trained if line.method == trained[0].method]
    at = {line.rate: line for line in first}
    shown = {k: v for k, v in measures([r for line in here for r in line.results]).items() if k in PAIRED}
    rows = []
    for other in trained[len(first) :] if len(first) == 1 else [line for line in trained if line not in first]:
        mine = first[0] if len(first) == 1 else at.get(other.rate)
        if mine is None:
            continue
        figures = [lead_by_problem(mine, other, measure) for measure in shown]
        if any(figures):
            units = [UNITS.get(measure, "share") for measure in shown]
            rows.append([other.method, other.rate_text, *map(figure_text, figures, units)])
    about = (
        f"Lead of {first[0].method} on the same problems: each problem's figure is the mean over the seeds that both "
        "have, and the 95 % interval is a bootstrap over problems. It says how far other problems would move the lead, "
        "and nothing of other seeds."
    )
    title = f"{setting}: {first[0].method} against the others, problem by problem"
    return [TitledTable(title, about, ["against", "rate", *shown.values()], rows)] if rows else []


def _how_soon(setting: str, first: Line, others: Sequence[Line]) -> TitledTable:
    """How many times the tokens of the first method the others needed until they had learnt the task."""
    head = ["against", "rate", *(f"{name}, times" for name in AXES.values()), f"{first.method} learns"]
    rows = []
    for other in others:
        times = [times_as_long(first, other, axis, LEVEL) for axis in AXES]
        rows.append([other.method, other.rate_text, *map(times_text, times), sooner(times)])
    about = (
        f"How many times the tokens of {first.method} the other one needed until held-out accuracy first was "
        f"{LEVEL_TEXT}: geometric mean over seeds, with Student's 95 % interval of the logs; – where a seed never came "
        "there, or the two cannot be told apart in one, as accuracy is known at evaluations only. Sooner or later only "
        "where both intervals say so."
    )
    return TitledTable(f"{setting}: how soon {first.method} learns", about, head, rows)


def _at_equal_rates(setting: str, trained: Sequence[Line]) -> TitledTable:
    """How many times the tokens of the first method the others needed, at the rates that both were trained with."""
    (first, mine), *others = _by_method(trained).items()
    counted = f"came there: both, {first} alone, other alone"
    head = ["against", "rates", counted, *(f"{axis}, times" for axis in AXES.values())]
    rows = []
    for method, lines in others:
        pairs = [pairs_at_equal_rates(mine, lines, axis, LEVEL) for axis in AXES]
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(pair.rate for pair in pairs[0]))
        times = [times_text(times_at_equal_rates(found)) for found in pairs]
        counts = ", ".join(map(str, came(pairs[0])))
        rows.append([method, rates or ABSENT, counts, *times, sooner_at_equal_rates(pairs)])
    about = (
        f"A larger rate often learns sooner, and rates are tuned for where a training ends. So this holds {first} "
        "against each other method at every rate that both were trained with: how many times the tokens the other "
        f"needed until held-out accuracy first was {LEVEL_TEXT}, geometric mean over rates with Student's 95 % "
        "interval of the logs, then every rate, the mean of its seeds. It is of the trainings in which both came there "
        "(1 where they cannot be told apart, as accuracy is known at evaluations only). Sooner or later only where "
        "both intervals say so and none of those in which one came there alone says otherwise."
    )
    return TitledTable(f"{setting}: how soon {first} learns at equal rates", about, [*head, f"{first} learns"], rows)


def _by_method(every: Sequence[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in every:
        found.setdefault(line.method, []).append(line)
    return found


def _reached(setting: str, here: Sequence[Line]) -> TitledTable:
    results = [r for line in here for r in line.results]
    shown = measures(results)
    equal = {axis: tokens for axis in AXES if (tokens := common_tokens(here, axis))}
    about = f"{results[0].figures.get('about', here[0].setting) if results else here[0].setting}."
    about += "" if _chance(results) == ABSENT else f" Chance: {_chance(results)}."
    if results:
        exam, split = results[0].figures["exam"], results[0].cell.exam.split.replace("_", "-")
        about += f" {exam['problems']:,} {split} problems{_named(results[0])}."
    if equal:
        after = " and ".join(f"{count_text(tokens)} {AXES[axis]}" for axis, tokens in equal.items())
        about += f" The last columns: held-out accuracy after {after}, which all trainings reached."
    head = ["method", "rate", "seeds", *shown.values(), *(f"at {count_text(t)} {AXES[a]}" for a, t in equal.items())]
    # Chance is not defined for pass@k, and a guess has no trace that could be sound.
    guess = [_chance(results) if name in ("greedy", "avg@n") else "" for name in shown]
    chance = ["chance", "", "", *guess, *([_chance(results)] * len(equal))]
    rows = [chance] if _chance(results) != ABSENT else []
    for line in here:
        figures = [line.figure(measure) for measure in shown]
        figures += [line.at(axis, tokens) for axis, tokens in equal.items()]
        units = [*(UNITS.get(measure, "share") for measure in shown), *("share" for _ in equal)]
        rows.append([*_names(line), *map(figure_text, figures, units)])
    title = "accuracy" if not results or "greedy" in shown else "likelihood"
    return TitledTable(f"{setting}: {title}", about, head, rows)


def _named(result: Result) -> str:
    """The source of the problems, and that the model of the last step was measured, not the best by evaluation."""
    source = result.figures.get("source")
    return f" of {source}, measured after the last step" if source else ""


def _cost(setting: str, here: Sequence[Line]) -> TitledTable:
    counts = ("generated", "scored", "trained")
    learnt = _learnt(here)
    firsts = [f"{name} to {LEVEL_TEXT}" for name in AXES.values()] if learnt else []
    head = ["method", "rate", "steps", "updates", *counts, *(f"{phase} time" for phase in PHASES), *firsts]
    rows = []
    for line in here:
        if line.method == BASE:
            continue
        steps = [r.figures["steps"] for r in line.results]
        tokens = [line.cost("tokens", name) for name in counts]
        seconds = [line.cost("seconds", phase) for phase in PHASES]
        whole = sum(s for s in seconds if s is not None)
        times = [ABSENT if s is None else f"{duration(s)} ({s / whole:.0%})" if whole else "0s" for s in seconds]
        ends = sorted({min(steps), max(steps)}) if steps else []
        taken = [r.figures["updates"] for r in line.results if "updates" in r.figures]  # older results have none
        updates = sorted({min(taken), max(taken)}) if taken else []
        shown = ["–".join(map(str, numbers)) or ABSENT for numbers in (ends, updates)]
        soon = [reach_text(line, a) for a in AXES] if learnt else []
        rows.append([*_names(line)[:2], *shown, *map(count_text, tokens), *times, *soon])
    about = (
        "Tokens and time of one training, mean over seeds. Steps: batches of rollouts; updates: optimizer steps on "
        "them. Generated: sampled; scored: gone forward without gradient; "
        "trained: gone forward and backward. CPU time by phase, of all threads together; on an accelerator time on the "
        "wall."
    )
    about += (
        f" The last columns: tokens until held-out accuracy first was {LEVEL_TEXT}, on the straight line "
        "between evaluations, mean and range of the seeds that came there."
    ) * learnt
    return TitledTable(f"{setting}: cost", about, head, rows)


def _names(line: Line) -> list[str]:
    whole = len(line.results) + len(line.missing)
    return [line.method, "" if line.method == BASE else line.rate_text, f"{len(line.results)}/{whole}"]


def _chance(results: Sequence[Result]) -> str:
    chances = {chance for r in results if (chance := r.figures["chance"]) is not None}
    return percent(min(chances)) if chances else ABSENT


def figure_text(figure: Figure | None, unit: str = "share") -> str:
    """A figure with its interval and, on a second line, every seed: ``83.1 [80.2, 86.0]``, ``82.0, 84.2``."""
    if figure is None:
        return ABSENT
    said = [value_text(value, unit) for value in (figure.mean, *(figure.interval or ()), *figure.points)]
    text, points = said[0], said[-len(figure.points) :]
    if figure.interval:
        text += f" [{said[1]}, {said[2]}]{'' if figure.over == 'seeds' else ' †'}"
    return text + (f"\n{', '.join(points)}" if len(points) > 1 else "")


def value_text(value: float, unit: str) -> str:
    """A value in its column: a share in per cent, nats with two digits, tokens with one."""
    return percent(value) if unit == "share" else f"{value:.{2 if unit == 'nats' else 1}f}"


def reach_text(line: Line, axis: Axis) -> str:
    """Mean and range over seeds of the tokens to ``LEVEL``: ``24.1 k (20 k–31 k)``, and how many seeds reached it."""
    every = line.reached(axis, LEVEL)
    there = [tokens for tokens in every if tokens is not None]
    if not there:
        return "never" if every else ABSENT
    low, high = count_text(min(there)), count_text(max(there))
    text = count_text(fmean(there)) + (f" ({low}–{high})" if low != high else "")
    return text if len(there) == len(every) else f"{text}, {len(there)} of {len(every)} seeds"


def times_text(figure: Figure | None) -> str:
    """A ratio with its interval and every seed: ``1.19 [1.1, 1.29]``, ``1.2, 1.18``."""
    if figure is None:
        return ABSENT
    ends = f" [{figure.interval.low:.3g}, {figure.interval.high:.3g}]" if figure.interval else ""
    seeds = ", ".join(f"{point:.3g}" for point in figure.points)
    return f"{figure.mean:.3g}{ends}" + (f"\n{seeds}" if len(figure.points) > 1 else "")


def percent(share: float) -> str:
    """A share in per cent with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def count_text(tokens: float | None) -> str:
    """A number of tokens with three digits, such as ``1.41 M``."""
    if tokens is None:
        return ABSENT
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {letter}"
    return f"{tokens:.0f}"


def markdown(
    every: Sequence[Line],
    failures: Mapping[Cell, str],
    command: str,
    more: Sequence[TitledTable] = (),
    notes: Sequence[str] = (),
    title: str = "Comparison",
) -> str:
    """The whole comparison as Markdown; ``command`` is what made it.

    ``more`` tables follow those of the settings, ``notes`` come before the other remarks.
    """
    parts = [f"Made by `{command}`.", ABOUT]
    for grid in (*(grid for tables in grids(every).values() for grid in tables), *more):
        heading, rows = grid.title[:1].upper() + grid.title[1:], [[*map(_in_line, row)] for row in grid.rows]
        parts.append(markdown_table(grid._replace(title=heading, rows=rows)))
    said = [*notes, *remarks(every, failures)]
    parts += ["## Remarks", "\n".join(f"- {markdown_text(text)}" for text in said)] if said else []
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def _in_line(figure: str) -> str:
    """A figure with its seeds behind a colon instead of below it."""
    return figure.replace("\n", ": ")


def show(console: Console, every: Sequence[Line], failures: Mapping[Cell, str], notes: Sequence[str] = ()) -> None:
    """The same for a terminal; a narrow one shows fewer columns, because broken figures are hard to read."""
    wide = console.width >= WIDE
    for grid in (grid for tables in grids(every).values() for grid in tables):
        whole = wide and _width(grid.head, grid.rows) <= console.width
        head, rows = (grid.head, grid.rows) if whole else _narrow(grid, console.width)
        table = Table(box=box.SIMPLE_HEAD, title=Text(grid.title, "bold"), title_justify="left", padding=(0, 1, 0, 0))
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
        for row in rows:
            style = "dim" if row[0] in ("chance", BASE) else ""
            table.add_row(*(Text(visible(cell), style) for cell in row))
        console.print(table)
        console.print(Text(grid.about if whole else grid.about.partition(" The last columns")[0], "dim"))
    console.print(Text(ABOUT if wide else ABOUT.replace("Then every seed.", "The files show every seed."), "dim"))
    for text in (*notes, *remarks(every, failures)):
        console.print(Text(visible(text), "yellow" if text.startswith(("Missing", "Failed", "Stopped")) else "dim"))


def _narrow(grid: TitledTable, width: int) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows for a narrow terminal: fewer and lower columns, and the rate below a method that has several."""
    kept = [i for i, name in enumerate(grid.head) if not _beside(name)]
    found = _lowered(grid, kept)
    for name in LEAST_MISSED:
        if _width(*found) <= width:
            break
        kept = [i for i in kept if not grid.head[i].startswith(name)]
        found = _lowered(grid, kept)
    return found


def _lowered(grid: TitledTable, kept: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    methods = [row[0] for row in grid.rows]
    rates = grid.head.index("rate") if "rate" in grid.head and len(set(methods)) < len(methods) else None
    rows = []
    for row in grid.rows:
        name = f"{row[0]}\n{row[rates]}" if rates is not None and row[rates] else row[0]
        rows.append([name, *(_short(row[i]) for i in kept[1:])])
    return ["\n".join(textwrap.wrap(grid.head[i], 16)) for i in kept], rows


def _width(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal that a table takes, with two between its own and at its ends."""
    every = (head, *rows)
    return 2 + sum(
        2 + max(len(line) for row in every for line in (row[i] or " ").split("\n")) for i in range(len(head))
    )


def _short(text: str) -> str:
    """A figure with its interval below it, without the seeds."""
    return text.partition("\n")[0].replace(" [", "\n[")


def _beside(column: str) -> bool:
    """Whether a narrow terminal may omit the column; the files have it."""
    return (
        column in ("rate", "rates", "scored", "updates")
        or column.startswith("at ")
        or column.endswith(f" to {LEVEL_TEXT}")
    )
