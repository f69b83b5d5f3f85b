"""A comparison on the user's own model and problems: its settings file, and whether that has changed.

``compare.json`` beside the table holds the settings and what they name (weights, problems), so that results of two
different files are never in one table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.assembly import build_algorithm, problems_of, training_problems
from covrl.checkpoints.resuming import flat, why_it_may_change
from covrl.comparison.cells import Cell, Exam, training_settings
from covrl.comparison.methods import BASE, VARIANTS, check_variant
from covrl.comparison.worker import Order
from covrl.config import AlgorithmTable, RunConfig, check, config_from, override, read_settings
from covrl.errors import UserError
from covrl.evaluation.exam import digest
from covrl.evaluation.store import Fingerprints
from covrl.files import made, write_file
from covrl.models.model import without_weights
from covrl.prompts import Prompts, dated
from covrl.records import Problem

FILE = "compare.json"

FREE = ("training.seed", "training.learning_rate", "algorithm.name", "problems.test")
"""Settings that a cell determines, or that no training uses, so that the file may change them."""

WATCHED = ("evaluation.every",)
"""Settings that a resumed run may change, but that must be equal for all curves of a table."""


@dataclass(frozen=True, slots=True)
class Own:
    """Settings that all methods of a comparison share; ``table`` holds what was set, ``config`` all of it.

    ``facts`` are what :data:`FILE` keeps.
    """

    name: str
    table: Mapping[str, Any]
    config: RunConfig
    facts: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)

    def exams(self, split: str | None, samples: int, problems: int | None) -> tuple[Exam, ...]:
        """What models are measured on: the file's test problems, if it has any, and its held-out ones.

        Raises:
            UserError: a split that the file does not have.
        """
        there = [Exam("test", samples, problems)] if self.config.problems.test else []
        there.append(Exam("held_out", samples, problems))
        chosen = tuple(exam for exam in there if split in (None, exam.split))
        if not chosen:
            hint = "set problems.test" if split == "test" else "expected held_out or test"
            raise UserError(f"--split: there is no {split!r} in the settings of {self.name}: {hint}")
        return chosen

    def cell_config(self, cell: Cell) -> RunConfig:
        """The settings of a cell's run: the file's, then the method's name and the settings of the cell.

        Raises:
            UserError: a setting of [algorithm] is wrong for the method.
        """
        table = {**self.table, "algorithm": self._algorithm(cell.method)[0]}
        variant = VARIANTS[cell.method] if _is_variant(cell.method) else ()
        return check(RunConfig, override(table, [*variant, *training_settings(cell)]))

    def orders(self, cells: Sequence[Cell], out: Path, threads: int) -> list[Order]:
        """What the workers have to do for ``cells``: those that differ only in what is measured share one run.

        A run is in the folder of :func:`run_folder`, where it continues from its checkpoint.
        """
        about = f"From {self.config.model.path}, trained on {self.config.problems.train_names}"
        found = []
        for _, group in groupby(cells, key=lambda cell: cell.training):
            each = tuple(group)
            folder = None if each[0].method == BASE else run_folder(out, each[0])
            found.append(Order(each, self.cell_config(each[0]), out, folder, threads, about))
        return found

    def _algorithm(self, method: str) -> tuple[dict[str, Any], list[str]]:
        """``[algorithm]`` for a method, and the file's settings there that the method does not have.

        Another method takes none of the defaults of the file's method, all of which a run's config.toml has.
        """
        given = self.config.algorithm
        name = _method_of(method, given.name)
        if name == given.name:
            return {"name": name, **given.settings}, []
        known, chosen = find_algorithm(name).Config, _chosen(given)
        kept = {key: value for key, value in chosen.items() if key in known.model_fields}
        wrong = _refused(known, kept)
        kept = {key: value for key, value in kept.items() if key not in wrong}
        return {"name": name, **kept}, [key for key in chosen if key not in kept]

    def check_methods(self, cells: Sequence[Cell], prompts: Prompts) -> None:
        """Check that every method can train with these settings; settings left out for it go to the notes.

        Raises:
            UserError: names the first method that cannot, and why.
        """
        for cell in {cell.method: cell for cell in cells if cell.method != BASE}.values():
            try:
                config = self.cell_config(cell)
                build_algorithm(config, prompts, None, rewarded=config.rewarded)
            except UserError as error:
                raise UserError(f"--algorithms {cell.method}: {error}") from None
            if left := self._algorithm(cell.method)[1]:
                named = ", ".join(f"algorithm.{key}" for key in left)
                self.notes.append(f"{cell.method} is trained without {named}: the file's, which it does not know.")


def run_folder(out: Path, cell: Cell) -> Path:
    """The folder of a cell's run; ``out`` is that of the results."""
    return out.parent / "cells" / cell.training


def _is_variant(method: str) -> bool:
    """Whether a name means a variant with settings of its own; a method's name means the settings of the file."""
    return method in VARIANTS and method not in ALGORITHMS


def _method_of(method: str, given: str) -> str:
    """The method of a name, which may be that of a variant."""
    if method == BASE or not _is_variant(method):
        return given if method == BASE else method
    return override({}, VARIANTS[method])["algorithm"]["name"]


def _chosen(table: AlgorithmTable) -> dict[str, Any]:
    """The settings of a method's table that are not at the method's defaults."""
    fields = find_algorithm(table.name).Config.model_fields if table.settings else {}
    return {k: v for k, v in table.settings.items() if k not in fields or v != fields[k].default}


def _refused(known: Any, table: Mapping[str, Any]) -> set[str]:
    """The settings whose values a method does not accept."""
    try:
        known.model_validate(dict(table))
    except ValidationError as error:
        return {str(e["loc"][0]) for e in error.errors() if e["loc"]}
    return set()


def load_own(file: Path, assignments: Sequence[str], methods: Sequence[str], folder: Path) -> tuple[Own, Prompts]:
    """The settings of a file and what they name, and the prompts for :meth:`Own.check_methods`.

    Raises:
        UserError: a setting, the model or a source of problems cannot be used, a method is unknown, or ``folder`` has
            results of other settings.
    """
    config = config_from(file, assignments)
    if not config.problems.held_out:
        raise UserError(
            f"{file}: problems.held_out is not set: methods are compared on problems that none was trained on"
        )
    for name in methods:
        check_variant(name)
        if name != BASE:
            find_algorithm(_method_of(name, config.algorithm.name))
    before = _known(folder / FILE)
    problems = config.problems
    sources = {"held_out": problems.held_out, "test": problems.test}
    data = {"train": training_problems(problems)}
    data |= {key: problems_of(source, problems) for key, source in sources.items() if source}
    if config.training.problems_per_step > len(data["train"]):
        raise UserError(
            f"training.problems_per_step = {config.training.problems_per_step}, but there are only "
            f"{len(data['train'])} problems; lower it"
        )
    model = without_weights(config.model)
    begun = date.fromisoformat(before["date"]) if before else date.today()
    prompts = dated(config.prompts, model.tokenizer, begun)  # cells that start on another day use the same date
    table = override(read_settings(file), assignments)
    if prompts.date:
        table = override(table, [f'prompts.date="{prompts.date}"'])
    config = config.model_copy(update={"prompts": prompts})
    facts = {
        "covrl_compare": 1,
        "name": _slug(file.stem),
        "date": begun.isoformat(),
        "config": config.model_dump(mode="json"),
        "weights": Fingerprints(Path()).of_model(model),  # keeps no file
        "problems": {**(before or {}).get("problems", {}), **{key: _hash(rows) for key, rows in data.items()}},
    }
    if before:
        _check_same(folder, before, facts)
    own = Own(_slug(file.stem), table, config, facts)
    if config.evaluation.verifier == "none":
        own.notes.append("No accuracy: evaluation.verifier is none, so log p(y|x,z) alone says how training went.")
    return own, Prompts(model.tokenizer, prompts)


def keep(own: Own, folder: Path) -> None:
    """Write :data:`FILE`, by which the next call checks that it compares the same.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        write_file(made(folder) / FILE, json.dumps(own.facts, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None


def _known(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["covrl_compare"] == 1 and {"date", "config", "weights", "problems"} <= found.keys():
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path}: not a file of `covrl compare`; move it away or choose another --out")


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to mix results of two different files in one table.

    Raises:
        UserError: names the first setting that differs.
    """
    old, new = (flat(facts["config"]) for facts in (before, now))
    younger = flat(RunConfig.model_validate({"model": {"path": "-"}}).model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        was = old.get(key, younger.get(key))  # a setting that an older version did not have
        if was != new.get(key) and not _may_change(key):
            raise UserError(
                f"{folder}: compared with {key} = {was!r}, and now it is {new.get(key)!r}: put it back, or "
                "choose another --out"
            )
    if before.get("name") != now["name"]:
        raise UserError(
            f"{folder}: compared what a file {before.get('name')}.toml says, and now it is {now['name']}.toml: name it "
            "as before, or choose another --out"
        )
    if before["weights"] != now["weights"]:
        raise UserError(
            f"model.path: its weights or its tokenizer are not those that {folder} was made with: put them back, or "
            "choose another --out"
        )
    for key, value in now["problems"].items():
        if before["problems"].get(key, value) != value:
            raise UserError(
                f"problems.{key}: its problems are not those that {folder} was made with: put them back, or choose "
                "another --out"
            )


def _may_change(key: str) -> bool:
    return key in FREE or (why_it_may_change(key) is not None and key not in WATCHED)


def _hash(problems: Sequence[Problem]) -> str:
    found = hashlib.sha256()
    for problem in problems:
        found.update(f"{problem.id}\x00{digest(problem)}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:16]


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.") or "own"
