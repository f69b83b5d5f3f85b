"""A cell of a comparison: one training and its evaluation. Its result is one small JSON file.

    docs/results/raw/covrl__rare__lr0.00015__100steps__test-n8__seed0__48e46e0d11.json

The name holds everything that identifies the result, the commit of the code included, so a comparison knows from the
folder alone what is there and what is missing.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

import covrl
from covrl.comparison.methods import BASE
from covrl.errors import UserError, first_fault
from covrl.files import write_file

SAMPLES = 8

COUNTING = 3
"""The version of how a training works and how its tokens and seconds are counted; every result records it.

1, or none: every trace was scored before training. 2: methods of the GRPO family score in the training pass.
3: as 2, with CPU seconds instead of wall seconds.
Raise it with each change of what a method costs, so that costs before and after are not compared."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a cell trains: a number of steps, or of generated tokens (then the steps follow from it)."""

    kind: Literal["steps", "tokens"]
    amount: int

    def __str__(self) -> str:
        return f"{self.amount}{self.kind}"


@dataclass(frozen=True, slots=True)
class Exam:
    """What a trained model is measured on: a split, with one greedy and ``samples`` sampled traces per problem.

    ``test`` is the settings' ``problems.test``, and ``dev`` (of our tasks) or ``held_out`` their ``problems.held_out``.
    ``problems`` keeps only the first so many, ``None`` all.
    """

    split: Literal["dev", "held_out", "test"]
    samples: int = SAMPLES
    problems: int | None = None

    def __str__(self) -> str:
        first = "" if self.problems is None else f"-first{self.problems}"
        return f"{self.split}{first}-n{self.samples}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One training and its evaluation; ``rate`` is the learning rate.

    Example:
        >>> Cell("covrl", "rare", 1.5e-4, 0, Budget("steps", 100), Exam("test"))
    """

    method: str
    setting: str
    rate: float
    seed: int
    budget: Budget
    exam: Exam

    def __str__(self) -> str:
        return f"{self._method}__{self.setting}__lr{self.rate!r}__{self.budget}__{self.exam}__seed{self.seed}"

    @property
    def training(self) -> str:
        """The training, independent of what its model is measured on: the name of its folder."""
        return f"{self._method}__{self.setting}__lr{self.rate!r}__{self.budget}__seed{self.seed}"

    @property
    def _method(self) -> str:
        return self.method.replace(":", "--")  # module:class

    @property
    def title(self) -> str:
        """The cell as text for people."""
        if self.method == BASE:
            return f"{BASE}, {self.setting}"
        return f"{self.method}, {self.setting}, rate {self.rate:g}, seed {self.seed}"

    def file(self, commit: str) -> str:
        """The name of the result's file."""
        return f"{self}__{commit}.json"


_CELL = TypeAdapter(Cell)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a cell: its figures, and the commit of the code that made them."""

    cell: Cell
    commit: str
    figures: Mapping[str, Any]

    @property
    def counted(self) -> bool:
        """Whether its tokens and seconds may be compared with those of the present code."""
        return self.figures.get("counting", 1) == COUNTING


def grid(
    methods: Sequence[str],
    settings: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    exam: Exam,
    rates: Sequence[float],
) -> list[Cell]:
    """All cells of a comparison: the base once per setting, then seed by seed, so that every method has its first seed
    soon.
    """
    bases = [Cell(BASE, setting, 0.0, 0, Budget("steps", 0), exam) for setting in settings]
    return bases + [
        Cell(method, setting, rate, seed, budget, exam)
        for seed in seeds
        for setting in settings
        for method in methods
        if method != BASE
        for rate in rates
    ]


def read_results(folder: Path) -> list[Result]:
    """All results of a folder; none where there is no folder.

    Raises:
        UserError: a file there is not the result of a cell.
    """
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> Result:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Result(_CELL.validate_python(record["cell"]), record["commit"], record)
    except (ValueError, KeyError, TypeError) as error:
        what = first_fault(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not the result of a comparison: {what}") from None


def write_result(folder: Path, cell: Cell, commit: str, figures: Mapping[str, Any]) -> Path:
    """Write a result's file; it is complete or not there at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / cell.file(commit)
    record = {"cell": asdict(cell), "commit": commit, "counting": COUNTING, **figures}
    write_file(target, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return target


def found(cells: Iterable[Cell], results: Iterable[Result], commit: str | None = None) -> dict[Cell, Result]:
    """The result of each cell that has one; of several the newest. With a ``commit`` only its results count."""
    wanted = set(cells)
    chosen: dict[Cell, Result] = {}
    for result in sorted(results, key=lambda r: str(r.figures.get("finished", ""))):
        if result.cell in wanted and commit in (None, result.commit):
            chosen[result.cell] = result
    return chosen


def missing(cells: Iterable[Cell], results: Mapping[Cell, Result]) -> list[Cell]:
    """The cells without a result, in order, each once."""
    return [cell for cell in dict.fromkeys(cells) if cell not in results]


def present_commit() -> str:
    """The last commit that changed the code that runs: ten digits, ``-dirty`` where the package's files differ from it.

    Commits of results and docs do not change it. Outside a checkout it is the package's version.
    """
    folder = Path(covrl.__file__).parent
    last = _git(folder, "log", "-1", "--abbrev=10", "--format=%h", "--", ".")
    # A package that is installed inside another project's checkout is not of that project's commit.
    if not last or not _git(folder, "ls-files", "__init__.py"):
        return f"v{covrl.__version__}"
    return f"{last}-dirty" if _git(folder, "status", "--porcelain", "--", ".") else last


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def training_settings(cell: Cell) -> tuple[str, ...]:
    """What a cell says of its run, whatever is trained."""
    first = cell.budget.amount if cell.budget.kind == "steps" else 1  # a budget of tokens is planned anew each step
    seeded = (f"training.seed={cell.seed}", f"training.steps={max(first, 1)}")
    return seeded if cell.method == BASE else (*seeded, f"training.learning_rate={cell.rate!r}")
