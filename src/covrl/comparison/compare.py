"""`covrl compare`: what is asked for, run what is missing of it, write table and page."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from covrl.comparison.cells import Budget, Cell, Exam, Result, found, grid, missing, present_commit, read_results
from covrl.comparison.methods import check_names
from covrl.comparison.page import render
from covrl.comparison.run import run_cells
from covrl.comparison.summary import Line, lines
from covrl.comparison.table import markdown, show
from covrl.errors import UserError

Kind = TypeVar("Kind", int, float)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared; ``folder`` gets the table and the page, ``folder/raw`` the results.

    With ``commit`` only results of that commit count, otherwise the newest of each cell.
    """

    methods: tuple[str, ...]
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    budget: Budget
    exam: Exam
    folder: Path
    commit: str | None = None

    @property
    def raw(self) -> Path:
        """The folder of the results."""
        return self.folder / "raw"

    def cells(self) -> list[Cell]:
        """Every cell that is asked for."""
        return grid(self.methods, self.settings, self.seeds, self.budget, self.exam, self.rates)

    def results(self) -> dict[Cell, Result]:
        """The results that are there.

        Raises:
            UserError: a file among them is no result.
        """
        return found(self.cells(), read_results(self.raw), self.commit)

    def missing(self) -> list[Cell]:
        """The cells that have no result yet."""
        return missing(self.cells(), self.results())


def ask_for(
    algorithms: str,
    settings: str,
    seeds: str,
    rates: str,
    budget: str,
    steps: int,
    tokens: int,
    split: str,
    samples: int,
    problems: int | None,
    folder: Path,
    commit: str | None = None,
) -> Comparison:
    """The comparison of what was typed; lists are separated by commas, the commit ``HEAD`` is the present one.

    Raises:
        UserError: an unknown name, an empty list, or something that is no number.
    """
    methods, chosen = _names("--algorithms", algorithms), _names("--settings", settings)
    numbers = tuple(_number("--seeds", text, int) for text in _names("--seeds", seeds))
    if min(numbers) < 0:
        raise UserError(f"--seeds: {min(numbers)} is negative; seeds are 0, 1, 2, …")
    learning = tuple(_number("--rates", text, float) for text in _names("--rates", rates)) if rates else ()
    if not all(0 < rate < math.inf for rate in learning):
        raise UserError(f"--rates: {rates} holds what is no learning rate; they are greater than 0")
    check_names(methods, chosen)
    return Comparison(
        methods,
        chosen,
        numbers,
        learning,
        _budget(budget, steps, tokens),
        _exam(split, samples, problems),
        folder,
        present_commit() if commit == "HEAD" else commit,
    )


def _budget(kind: str, steps: int, tokens: int) -> Budget:
    match kind:
        case "steps":
            return Budget("steps", steps)
        case "tokens":
            return Budget("tokens", tokens)
    raise UserError(f"--budget: expected steps or tokens, found {kind!r}")


def _exam(split: str, samples: int, problems: int | None) -> Exam:
    match split:
        case "dev" | "test":
            return Exam(split, samples, problems)
    raise UserError(f"--split: expected dev or test, found {split!r}")


def compare(
    asked: Comparison, command: str, say: Callable[[str], None] = lambda _: None, name: str = "compare"
) -> tuple[list[Line], dict[Cell, str]]:
    """Run the missing cells, then write ``NAME.md`` and ``NAME.html``; returns what they show, and what failed.

    Raises:
        UserError: the folder cannot be used, or another comparison is running in it.
    """
    failed = {f.cell: f.reason for f in run_cells(asked.missing(), asked.raw, say)}
    every = lines(asked.cells(), asked.results())
    (asked.folder / f"{name}.md").write_text(markdown(every, failed, command), encoding="utf-8")
    (asked.folder / f"{name}.html").write_text(render(every, failed), encoding="utf-8")
    return every, failed


def compare_and_show(asked: Comparison, name: str = "compare", only_list: bool = False) -> bool:
    """The command: progress on standard error, tables on standard output; False if a cell failed.

    Raises:
        UserError: as :func:`compare`.
    """
    if only_list:
        results = asked.results()
        for cell in asked.cells():
            print(f"{f'done {results[cell].commit}' if cell in results else 'missing':23} {cell.title}")
        return True
    count = len(asked.missing())
    print(f"{count} of {len(asked.cells())} cells are missing", file=sys.stderr, flush=True)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    every, failed = compare(asked, shlex.join(["covrl", *sys.argv[1:]]), say, name)
    show(Console(), every, failed)
    for suffix in ("md", "html"):
        print(asked.folder / f"{name}.{suffix}")
    return not failed


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option}: expected a list such as a,b,c, found {text!r}")
    return names


def _number(option: str, text: str, kind: Callable[[str], Kind]) -> Kind:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{option}: {text!r} is not a number") from None
