"""`covrl compare`: read the command, run the missing cells, write table and page."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from covrl.checkpoints.checkpoint import checkpoints, step_of
from covrl.comparison.cells import Budget, Cell, Exam, Result, found, grid, missing, present_commit, read_results
from covrl.comparison.own import Own, keep, load_own, run_folder
from covrl.comparison.page import render
from covrl.comparison.run import TWO, Share, cores, divide, run_cells
from covrl.comparison.summary import Line, lines
from covrl.comparison.table import markdown, show
from covrl.errors import RunInterruptedError, UserError
from covrl.models.model import resolve_device
from covrl.reporting.text import visible

Kind = TypeVar("Kind", int, float)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared; ``folder`` gets the table and the page, ``folder/raw`` the results.

    With ``commit`` only results of that commit count, otherwise the newest of each cell. Models are measured on each
    of the ``exams``.
    """

    own: Own
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    budget: Budget
    exams: tuple[Exam, ...]
    folder: Path
    commit: str | None = None

    @property
    def raw(self) -> Path:
        """The folder of the results."""
        return self.folder / "raw"

    def cells(self) -> list[Cell]:
        """Every cell of the comparison."""
        cells = grid(self.methods, (self.own.name,), self.seeds, self.budget, self.exams[0], self.rates)
        return [replace(cell, exam=exam) for cell in cells for exam in self.exams]

    def results(self) -> dict[Cell, Result]:
        """The existing results.

        Raises:
            UserError: a file among them is no result.
        """
        return found(self.cells(), read_results(self.raw), self.commit)

    def missing(self) -> list[Cell]:
        """The cells that have no result yet."""
        return missing(self.cells(), self.results())


def ask_for(
    config: Path,
    assignments: Sequence[str],
    algorithms: str,
    seeds: str,
    rates: str,
    budget: str,
    steps: int | None,
    tokens: int,
    split: str | None,
    samples: int,
    problems: int | None,
    folder: Path,
    commit: str | None = None,
) -> Comparison:
    """The comparison that the command line describes, on the model and the problems of a settings file.

    Lists are separated by commas, the commit ``HEAD`` is the present one.

    Raises:
        UserError: an unknown name, an empty list, something that is no number, or as :func:`load_own`.
    """
    methods, numbers, learning = _names("--algorithms", algorithms), _seeds(seeds), _rates(rates)
    own, prompts = load_own(config, assignments, methods, folder)
    training = own.config.training
    if not learning:
        learning = (training.learning_rate,)
        own.notes.append(f"Every method has the learning rate of the file, {learning[0]:g}: none was tuned.")
    exams, spent = own.exams(split, samples, problems), _budget(budget, steps or training.steps, tokens)
    counted = present_commit() if commit == "HEAD" else commit
    asked = Comparison(own, methods, numbers, learning, spent, exams, folder, counted)
    own.check_methods(asked.cells(), prompts)
    return asked


def _seeds(text: str) -> tuple[int, ...]:
    numbers = tuple(_number("--seeds", part, int) for part in _names("--seeds", text))
    if min(numbers) < 0:
        raise UserError(f"--seeds: {min(numbers)} is negative; seeds are 0, 1, 2, …")
    return numbers


def _rates(text: str) -> tuple[float, ...]:
    learning = tuple(_number("--rates", part, float) for part in _names("--rates", text)) if text else ()
    if not all(0 < rate < math.inf for rate in learning):
        raise UserError(f"--rates: {text} holds what is no learning rate; they are greater than 0")
    return learning


def _budget(kind: str, steps: int, tokens: int) -> Budget:
    match kind:
        case "steps":
            return Budget("steps", steps)
        case "tokens":
            return Budget("tokens", tokens)
    raise UserError(f"--budget: expected steps or tokens, found {kind!r}")


def compare(
    asked: Comparison,
    command: str,
    say: Callable[[str], None] = lambda _: None,
    name: str = "compare",
    share: Share = TWO,
) -> tuple[list[Line], dict[Cell, str]]:
    """Run the missing cells, then write ``NAME.md`` and ``NAME.html``; returns what they show, and what failed.

    Raises:
        UserError: the folder cannot be used, or another comparison is running in it.
    """
    keep(asked.own, asked.folder)
    orders = asked.own.orders(asked.missing(), asked.raw, share.threads)
    failed = {f.cell: f.reason for f in run_cells(orders, asked.raw, say, share=share)}
    every = lines(asked.cells(), asked.results())
    (asked.folder / f"{name}.md").write_text(markdown(every, failed, command, notes=asked.own.notes), encoding="utf-8")
    (asked.folder / f"{name}.html").write_text(render(every, failed, asked.own.notes), encoding="utf-8")
    return every, failed


def compare_and_show(
    asked: Comparison,
    name: str = "compare",
    only_list: bool = False,
    jobs: int | None = None,
    threads: int | None = None,
) -> bool:
    """The command: progress on standard error, tables on standard output; False if a cell failed.

    Raises:
        UserError: as :func:`compare`.
        RunInterruptedError: it was stopped with Ctrl-C or SIGTERM.
    """
    if only_list:
        for state, title in states(asked):
            print(f"{state:23} {title}")
        return True
    say: Callable[[str], None] = lambda text: print(visible(text), file=sys.stderr, flush=True)  # noqa: E731
    every, left = ({cell.training: cell for cell in cells} for cells in (asked.cells(), asked.missing()))
    say(f"{len(left)} of {len(every)} cells are missing")
    for note in asked.own.notes:
        say(note)
    accelerator = resolve_device(asked.own.config.model.device).type != "cpu"
    share = divide(jobs, threads, cores(), len(every), accelerator)
    if left:
        say(f"{share.jobs} at a time, {share.threads} thread{'s' if share.threads > 1 else ''} each")
    try:
        found_lines, failed = compare(asked, shlex.join(["covrl", *sys.argv[1:]]), say, name, share)
    except KeyboardInterrupt:
        raise RunInterruptedError("interrupted; the same command goes on where this was") from None
    show(Console(), found_lines, failed, asked.own.notes)
    for suffix in ("md", "html"):
        print(asked.folder / f"{name}.{suffix}")
    return not failed


def states(asked: Comparison) -> list[tuple[str, str]]:
    """The state (done, partly done, or missing) and the title of every cell."""
    results, found_states = asked.results(), {}
    for cell in asked.cells():
        commit = results[cell].commit if cell in results else None
        found_states.setdefault(cell.training, []).append((cell, commit))
    said = []
    for members in found_states.values():
        cell, commit = members[0]
        if all(known for _, known in members):
            said.append((f"done {commit}", cell.title))
        else:
            said.append((_progress(asked, cell), cell.title))
    return said


def _progress(asked: Comparison, cell: Cell) -> str:
    """The progress of a cell that is not finished."""
    folder = run_folder(asked.raw, cell)
    if not (folder / "config.toml").exists():
        return "missing"
    there = checkpoints(folder / "checkpoints")
    step = step_of(there[-1]) if there else 0
    of = f" of {cell.budget.amount}" if cell.budget.kind == "steps" else ""
    return f"partly (step {step}{of})"


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
