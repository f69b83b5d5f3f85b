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

import covrl
from covrl.comparison.methods import BASE, default_rate, recipe_config, settings_of
from covrl.config import RunConfig
from covrl.errors import UserError
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

    def record(self) -> dict[str, Any]:
        """The cell as its JSON has it."""
        return asdict(self)

    @staticmethod
    def read(record: Mapping[str, Any]) -> Cell:
        """The cell of a record; raises KeyError or TypeError if the record is no cell."""
        plain = {name: record[name] for name in ("method", "setting", "rate", "seed")}
        return Cell(**plain, budget=Budget(**record["budget"]), exam=Exam(**record["exam"]))


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

    @property
    def outdated(self) -> bool:
        """Whether it is to be run again: a reported training whose costs are not those of the present code.

        Results on dev stay valid, because rates are chosen only by accuracy; so does the base, which costs nothing.
        A training on somebody's own problems stays too: its folder has what it cost then.
        """
        kept = self.cell.exam.split != "test" or self.cell.method == BASE or self.figures.get("own", False)
        return not kept and not self.counted


def grid(
    methods: Sequence[str],
    settings: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    exam: Exam,
    rates: Sequence[float] = (),
) -> list[Cell]:
    """All cells of a comparison: the base once per setting, then seed by seed, so that every method has its first seed
    soon.

    Without ``rates`` each method has its own.
    """
    bases = [Cell(BASE, setting, 0.0, 0, Budget("steps", 0), exam) for setting in settings]
    return bases + [
        Cell(method, setting, rate, seed, budget, exam)
        for seed in seeds
        for setting in settings
        for method in methods
        if method != BASE
        for rate in rates or [default_rate(method, setting)]
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
        return Result(Cell.read(record["cell"]), record["commit"], record)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the result of a comparison: {type(error).__name__}: {error}") from None


def write_result(folder: Path, cell: Cell, commit: str, figures: Mapping[str, Any]) -> Path:
    """Write a result's file; it is complete or not there at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / cell.file(commit)
    text = json.dumps(
        {"cell": cell.record(), "commit": commit, "counting": COUNTING, **figures}, indent=1, allow_nan=False
    )
    write_file(target, text + "\n")
    return target


def found(cells: Iterable[Cell], results: Iterable[Result], commit: str | None = None) -> dict[Cell, Result]:
    """The result of each cell that has one; of several the newest; outdated ones do not count.

    With a ``commit`` only its results count, outdated or not.
    """
    wanted = set(cells)
    chosen: dict[Cell, Result] = {}
    for result in sorted(results, key=lambda r: str(r.figures.get("finished", ""))):
        if result.cell in wanted and (not result.outdated if commit is None else result.commit == commit):
            chosen[result.cell] = result
    return chosen


def missing(cells: Iterable[Cell], results: Mapping[Cell, Result]) -> list[Cell]:
    """The cells without a result, in order, each once."""
    return [cell for cell in dict.fromkeys(cells) if cell not in results]


def present_commit() -> str:
    """The last commit that changed the code that runs: ten digits, ``-dirty`` where the package's files differ from it.

    Commits of results and docs do not change it, and neither do the tuned rates, which a tuning writes into the
    package while cells are running: a cell holds its own. Outside a checkout it is the package's version.
    """
    folder = Path(covrl.__file__).parent
    code = (".", ":(exclude)comparison/rates.toml")
    last = _git(folder, "log", "-1", "--abbrev=10", "--format=%h", "--", *code)
    # A package that is installed inside another project's checkout is not of that project's commit.
    if not last or not _git(folder, "ls-files", "__init__.py"):
        return f"v{covrl.__version__}"
    return f"{last}-dirty" if _git(folder, "status", "--porcelain", "--", *code) else last


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cell_config(cell: Cell) -> RunConfig:
    """The settings of a cell's run on one of our tasks: its file, the method's settings, then what the cell says."""
    own = training_settings(cell)
    if cell.method == BASE:
        return recipe_config(own, cell.setting)
    return recipe_config((*settings_of(cell.method), *own), cell.setting)


def training_settings(cell: Cell) -> tuple[str, ...]:
    """What a cell says of its run, whatever is trained."""
    first = cell.budget.amount if cell.budget.kind == "steps" else 1  # a budget of tokens is planned anew each step
    seeded = (f"training.seed={cell.seed}", f"training.steps={max(first, 1)}")
    return seeded if cell.method == BASE else (*seeded, f"training.learning_rate={cell.rate!r}")
