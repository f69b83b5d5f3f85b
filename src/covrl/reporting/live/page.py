"""The live page of one run, or of two side by side: what the report shows, and a form that asks for traces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from covrl.reporting.charts import figure_of_two
from covrl.reporting.html import figures, flat, menu_of, numbers, per_point, results, run_parts, sections, warnings
from covrl.reporting.live.run import LiveRun
from covrl.reporting.pages import page
from covrl.reporting.summary import ResultRow, RunSummary

LETTERS = ("A", "B")
SETTINGS_OF_TWO = "The settings that differ: A, then B"


def live_page(runs: Sequence[LiveRun]) -> str:
    """The page as text; its script asks the server for the rest."""
    summaries = [run.summary() for run in runs]
    names = run_names([run.folder for run in runs])
    two = len(runs) == 2
    parts = _parts_of_two(*summaries) if two else run_parts(summaries[0])
    return page(
        "live.html",
        f"covrl: {' and '.join(names)}",
        "; ".join(lettered(s.subtitle, place, two) for place, s in enumerate(summaries)),
        menu=menu_of({**parts, "traces": [True]}),
        scripts=("charts.js", "live.js"),
        styles=("chart.css", "page.css", "live.css"),
        live=True,
        per_point=max(per_point(summary.steps) for summary in summaries),
        left=0,
        parts={**parts, "examples": ()},
        version=version_of(run.version for run in runs),
        names=list(zip(LETTERS, names, strict=False)) if two else [],
        about_settings=SETTINGS_OF_TWO if two else "Every setting of this run",
    )


def run_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the folders' paths, as long as it takes to tell them apart."""
    longest = max(len(folder.parts) for folder in folders)
    for size in range(1, longest + 1):
        names = [str(Path(*folder.parts[-size:])) for folder in folders]
        if len(set(names)) == len(folders):
            break
    return names


def version_of(numbers: Iterable[int]) -> str:
    """One text for the versions of all runs, which changes with any of them."""
    return "/".join(map(str, numbers))


def lettered(text: str, place: int, two: bool) -> str:
    """A text about one of two runs, with its letter; of a single run as it is."""
    return f"{LETTERS[place]}: {text}" if two else text


def _parts_of_two(first: RunSummary, second: RunSummary) -> dict[str, Sequence[Any]]:
    chance = first.chance_line() if first.chance_line() is not None else second.chance_line()
    every = [*first.steps, *second.steps]
    drawn = figures(every, lambda spec: figure_of_two(spec, first.steps, second.steps, chance))
    both = list(zip(LETTERS, (first, second), strict=True))
    return {
        "result": results(_results_of_two(first.results, second.results)),
        "curves": sections({}, drawn),
        "warnings": [(f"{letter}: {when}", text) for letter, each in both for when, text in warnings(each)],
        "numbers": sorted((f"{row[0]}, {letter}", *row[1:]) for letter, each in both for row in numbers(each.steps)),
        "config": list(_differences(first.config, second.config)),
    }


def _results_of_two(first: Sequence[ResultRow], second: Sequence[ResultRow]) -> Iterator[ResultRow]:
    """The rows of both, those of the same measure one below the other."""
    tables = [{row.label: row for row in rows} for rows in (first, second)]
    for label in dict.fromkeys([*tables[0], *tables[1]]):
        for letter, table in zip(LETTERS, tables, strict=True):
            if label in table:
                yield replace(table[label], label=f"{label}, {letter}")


def _differences(first: Mapping[str, object], second: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    one, two = dict(flat(first)), dict(flat(second))
    for key in dict.fromkeys([*one, *two]):
        if one.get(key) != two.get(key):
            yield key, one.get(key, "–"), two.get(key, "–")
