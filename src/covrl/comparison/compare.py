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

from covrl.comparison.cells import Budget, Cell, Exam, Result, found, grid, missing, present_commit, read_results
from covrl.comparison.methods import check_names
from covrl.comparison.own import Own, keep, load_own
from covrl.comparison.page import render
from covrl.comparison.run import TWO, Share, cores, divide, run_cells, run_folder
from covrl.comparison.summary import Line, lines
from covrl.comparison.table import markdown, show
from covrl.errors import RunInterruptedError, UserError
from covrl.models.model import resolve_device
from covrl.reporting.text import visible
from covrl.training.checkpoint import checkpoints, step_of

Kind = TypeVar("Kind", int, float)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared; ``folder`` gets the table and the page, ``folder/raw`` the results.

    With ``commit`` only results of that commit count, otherwise the newest of each cell. ``own`` is a file of settings
    instead of our tasks; it may name two sources of problems to be measured on, and ``also`` is the second.
    """

    methods: tuple[str, ...]
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    budget: Budget
    exam: Exam
    folder: Path
    commit: str | None = None
    own: Own | None = None
    also: tuple[Exam, ...] = ()

    @property
    def raw(self) -> Path:
        """The folder of the results."""
        return self.folder / "raw"

    def cells(self) -> list[Cell]:
        """Every cell of the comparison."""
        cells = grid(self.methods, self.settings, self.seeds, self.budget, self.exam, self.rates)
        return [replace(cell, exam=exam) for cell in cells for exam in (self.exam, *self.also)]

    def results(self) -> dict[Cell, Result]:
        """The existing results.

        Raises:
            UserError: a file among them is no result.
        """
        return found(self.cells(), read_results(self.raw), self.commit)

    def missing(self) -> list[Cell]:
        """The cells that have no result yet."""
        return missing(self.cells(), self.results())

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the reader on how the user's own file was used."""
        return tuple(self.own.notes) if self.own else ()


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
    """The comparison that the command line describes; lists are separated by commas, the commit ``HEAD`` is the present
    one.

    Raises:
        UserError: an unknown name, an empty list, or something that is no number.
    """
    methods, chosen = _names("--algorithms", algorithms), _names("--settings", settings)
    numbers, learning = _seeds(seeds), _rates(rates)
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


def ask_for_own(
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

    Raises:
        UserError: as :func:`ask_for` and :func:`load_own`.
    """
    methods, numbers, learning = _names("--algorithms", algorithms), _seeds(seeds), _rates(rates)
    own, prompts = load_own(config, assignments, methods, folder)
    training = own.config.training
    if not learning:
        learning = (training.learning_rate,)
        own.notes.append(f"Every method has the learning rate of the file, {learning[0]:g}: none was tuned.")
    exam, *also = own.exams(split, samples, problems)
    spent = _budget(budget, steps or training.steps, tokens)
    asked = Comparison(
        methods,
        (own.name,),
        numbers,
        learning,
        spent,
        exam,
        folder,
        present_commit() if commit == "HEAD" else commit,
        own,
        tuple(also),
    )
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


def _exam(split: str, samples: int, problems: int | None) -> Exam:
    match split:
        case "dev" | "test":
            return Exam(split, samples, problems)
    raise UserError(f"--split: expected dev or test, found {split!r}")


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
    if asked.own:
        keep(asked.own, asked.folder)
    failed = {f.cell: f.reason for f in run_cells(asked.missing(), asked.raw, say, share=share, own=asked.own)}
    every = lines(asked.cells(), asked.results())
    (asked.folder / f"{name}.md").write_text(markdown(every, failed, command, notes=asked.notes), encoding="utf-8")
    (asked.folder / f"{name}.html").write_text(render(every, failed, asked.notes), encoding="utf-8")
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
    for note in asked.notes:
        say(note)
    share = _share(asked, jobs, threads, len(every))
    if left:
        say(f"{share.jobs} at a time, {share.threads} thread{'s' if share.threads > 1 else ''} each")
    try:
        found_lines, failed = compare(asked, shlex.join(["covrl", *sys.argv[1:]]), say, name, share)
    except KeyboardInterrupt:
        raise RunInterruptedError("interrupted; the same command goes on where this was") from None
    show(Console(), found_lines, failed, asked.notes)
    for suffix in ("md", "html"):
        print(asked.folder / f"{name}.{suffix}")
    return not failed


def _share(asked: Comparison, jobs: int | None, threads: int | None, most: int) -> Share:
    """How the machine is divided; our own tasks are too small for a second thread."""
    if asked.own is None:
        return divide(jobs, threads or 1, cores(), most)
    accelerator = resolve_device(asked.own.config.model.device).type != "cpu"
    return divide(jobs, threads, cores(), most, accelerator)


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
    if asked.own is None or not (folder / "config.toml").exists():
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
