"""Our own small tasks, which benchmarks/comparison.py compares methods on: files of settings, cells, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from covrl.comparison.cells import Cell, Result, read_results, training_settings
from covrl.comparison.methods import BASE, VARIANTS, settings_of
from covrl.comparison.worker import Order
from covrl.config import RunConfig, check, override, read_toml

TASKS = Path(__file__).with_name("tasks")


class Setting(NamedTuple):
    """A base and problems that all methods start from, as a file of settings, and what a table says of it."""

    file: Path
    about: str


SETTINGS = {
    "rare": Setting(TASKS / "rare.toml", "The right procedure in about 0.5 % of the base's traces"),
    "common": Setting(TASKS / "common.toml", "The right procedure in about 20 % of the base's traces"),
    "animals": Setting(TASKS / "animals.toml", "Answers in words, in five phrasings"),
    "countdown": Setting(TASKS / "countdown.toml", "Three numbers combined into a fourth; traces of different lengths"),
}

ONE_RESPONSE = ("training.problems_per_step=256", "training.rollouts_per_problem=1")
"""For methods with another baseline than a group's; as many responses a step as in the files."""

SHORTER = ("algorithm.name=train_long_think_short", "algorithm.change_every=12")

OWN_VARIANTS: dict[str, tuple[str, ...]] = {
    "a_star_po": ("algorithm.name=a_star_po", *ONE_RESPONSE, "training.mini_batches=2"),
    "rlsp": ("algorithm.name=rlsp", *ONE_RESPONSE, "training.mini_batches=4", "algorithm.exploration=10"),
    "recap-right-and-form": (
        *("algorithm.name=recap", "reward.right.function=own_rewards:right"),
        "reward.form.function=own_rewards:form",
    ),
    # the words of an instruction are those that the tasks' tokenizers know
    "train_long_think_short-digits": (
        *SHORTER,
        *("algorithm.start=20", "algorithm.end=15", 'algorithm.instruction=" ends {budget}"'),
    ),
    "train_long_think_short-countdown": (
        *SHORTER,
        *("algorithm.start=40", "algorithm.end=20", 'algorithm.instruction=";{budget}"'),
    ),
}
"""Settings by name of methods that need others than a task's file has, and that fit these tasks alone."""


def recipe_config(settings: Sequence[str], setting: str = "rare") -> RunConfig:
    """The file of one of our tasks with settings applied; raises UserError like every config."""
    return check(RunConfig, override(read_toml(SETTINGS[setting].file), settings))


def cell_config(cell: Cell) -> RunConfig:
    """The settings of a cell's run: its task's file, the method's settings, then what the cell says."""
    method = () if cell.method == BASE else OWN_VARIANTS.get(cell.method) or settings_of(cell.method)
    return recipe_config((*method, *training_settings(cell)), cell.setting)


def orders(cells: Sequence[Cell], out: Path) -> list[Order]:
    """What the workers have to do for ``cells``, each in a temporary folder and with one thread: the task is small."""
    return [Order((cell,), cell_config(cell), out) for cell in cells]


def results(folder: Path) -> list[Result]:
    """The results of a folder that count, each with the task's description."""
    return [_described(result) for result in read_results(folder) if not outdated(result)]


def outdated(result: Result) -> bool:
    """Whether a cell is to be run again: a reported training whose costs are not those of the present code.

    Results on dev stay valid, because rates are chosen only by accuracy; so does the base, which costs nothing.
    """
    return result.cell.exam.split == "test" and result.cell.method != BASE and not result.counted


def _described(result: Result) -> Result:
    cell, figures = result.cell, dict(result.figures)
    figures["about"] = SETTINGS[cell.setting].about
    figures.setdefault("updates", figures["steps"] * updates_a_step(cell.method))  # older results do not have them
    return replace(result, figures=figures)


@cache
def updates_a_step(method: str) -> int:
    """Optimizer steps that a method takes on each batch of rollouts; by default that of the recipe."""
    training = recipe_config(VARIANTS.get(method, ())).training
    return min(training.mini_batches, training.problems_per_step) * training.epochs
