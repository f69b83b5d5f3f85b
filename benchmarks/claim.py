"""Does CoVRL teach what verifier-free training without the answer in sight does not? A real model, a fixed budget.

    python benchmarks/claim.py --model FOLDER [--most N | --list | --page] [--tasks text,numeric,long]

Every arm of ``claim_arms`` trains SmolLM2-135M-Instruct on each task of ``claim_tasks`` with the same sampled tokens
(40,000; SFT of the answer, which samples nothing, takes 40 steps of 32 answers). The learning rate of each is chosen
among three on 200 dev problems with one seed; then three other seeds are measured on 1,000 test problems, greedy.

**Budget, written down before anything ran: 40 core-hours.** A training costs about 0.65 core-hours and a test 0.15 (an
estimate from the trial of ``benchmarks/real``), so it pays for about one task: tasks and arms are ordered by what they
decide. When the seconds of all finished cells reach the budget, nothing more is run.

Finished cells are lines of ``docs/results/claim.jsonl``; one that was cut goes on from its checkpoint in ``--out``.
``docs/results/claim.md`` reads them by the table of ``answer_in_sight.md`` section 4.5 and says what is not decided.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from claim_arms import ARMS
from claim_tasks import TASKS, make_problems

from covrl.comparison.cells import Budget, Cell, Exam, read_results, training_settings
from covrl.comparison.run import Share, run_cells
from covrl.comparison.worker import Order
from covrl.config import RunConfig, check, override, read_toml
from covrl.errors import UserError
from covrl.reporting.tables import TitledTable, markdown_table
from covrl.statistics import Interval, bootstrap_interval

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "results"
HOURS = 40.0
TOKENS, SFT_STEPS, SFT_PROBLEMS = 40_000, 40, 32
RATES: Mapping[str, tuple[float, ...]] = dict.fromkeys(ARMS, (3e-06, 1e-05, 3e-05))
DEV, TEST, TUNING_SEED, SEEDS = Exam("held_out", 0), Exam("test", 0), 100, (0, 1, 2)
POINTS = 0.02
"""By how much an arm has to be ahead, and within which arms are alike (table 4.5)."""


class Line(NamedTuple):
    """A finished cell: greedy accuracy, the mark of each problem, core-seconds, and tokens sampled."""

    cell: Cell
    greedy: float
    marks: str
    seconds: float
    generated: float


class Contrast(NamedTuple):
    """One arm's accuracy less another's, with its 95 % interval over the problems that both answered."""

    value: float
    interval: Interval


def main() -> int:
    """Run what is missing and within the budget, then write the page; 1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--tasks", default=",".join(TASKS), help="which tasks, in this order")
    parser.add_argument("--out", type=Path, default=Path("runs/claim"), help="problems, runs and results as they are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of claim.jsonl and claim.md")
    parser.add_argument("--most", type=int, help="run at most so many cells")
    parser.add_argument("--list", action="store_true", help="say what is missing and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page from the lines that are there")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="for a smoke")
    given = parser.parse_args()
    tasks, lines = given.tasks.split(","), read_lines(given.results / "claim.jsonl")
    try:
        todo = list(wanted(tasks, lines))
        print(f"{len(todo)} cells are missing, {spent(lines):.1f} of {HOURS:g} core-hours are spent")
        failures = [] if given.list or given.page else run(todo[: given.most], lines, given)
    except (UserError, ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if not given.list:
        (given.results / "claim.md").write_text(page(read_lines(given.results / "claim.jsonl")), encoding="utf-8")
    return 1 if failures else 0


def run(cells: Sequence[Cell], lines: Sequence[Line], given: Any) -> list[Any]:
    """Run cells one at a time while the budget lasts; each is a line as soon as it is finished."""
    if given.model is None:
        raise UserError("--model: name the folder of the model (python benchmarks/real_model.py FOLDER makes it)")
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), path)))  # workers find claim_arms
    failures, known, raw = [], list(lines), given.out / "raw"
    for cell in cells:
        if spent(known) >= HOURS:
            print(f"the budget of {HOURS:g} core-hours is spent")
            break
        folder = make_problems(cell.setting, given.out / "problems")
        config = cell_config(cell, given.model.resolve(), folder.resolve(), given.settings)
        about = f"SmolLM2-135M-Instruct on {cell.setting}"
        order = Order((cell,), config, raw, given.out / "cells" / cell.training, 1, about)
        before = core_seconds()
        failures += run_cells([order], raw, say=print, share=Share(1, 1))
        known += append_lines(given.results / "claim.jsonl", raw, known, core_seconds() - before)
    return failures


def cell_config(cell: Cell, model: Path, problems: Path, settings: Sequence[str] = ()) -> RunConfig:
    """The settings of a cell: the shared file, its task, its arm, then rate, seed and budget."""
    task = TASKS[cell.setting]
    own = [f'model.path="{model}"', *(f'problems.{k}="{problems / v}.jsonl"' for k, v in SPLITS.items())]
    own += [f"evaluation.verifier={task.verifier}", f"rewards.verifier={task.verifier}"]
    own += [f"generation.max_answer_tokens={task.answer_tokens}", *ARMS[cell.method].settings]
    if cell.method == "answer-sft":
        own += ["training.rollouts_per_problem=1", f"training.problems_per_step={SFT_PROBLEMS}"]
    shared = read_toml(HERE / "tasks" / "claim.toml")
    return check(RunConfig, override(shared, [*own, *training_settings(cell), *settings]))


SPLITS = {"train": "train", "held_out": "dev", "test": "test"}


def cell_of(arm: str, task: str, rate: float, seed: int, exam: Exam) -> Cell:
    """One cell, with the budget of its arm."""
    budget = Budget("steps", SFT_STEPS) if arm == "answer-sft" else Budget("tokens", TOKENS)
    return Cell(arm, task, rate, seed, budget, exam)


def wanted(tasks: Sequence[str], lines: Sequence[Line]) -> Iterator[Cell]:
    """What is missing, in order: of each task the tuning, then a seed of every arm at a time, at its best rate.

    Raises:
        UserError: there is no such task.
    """
    done = {line.cell: line for line in lines}
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"--tasks: there is no task {task!r}; known: {', '.join(TASKS)}")
        for arm in ARMS:
            yield from (c for c in tuning(arm, task) if c not in done)
        for seed in SEEDS:
            for arm in ARMS:
                rate = best_rate(arm, task, done)
                cell = cell_of(arm, task, rate, seed, TEST) if rate else None
                if cell is not None and cell not in done:
                    yield cell


def tuning(arm: str, task: str) -> list[Cell]:
    """The cells that an arm's rate is chosen by."""
    return [cell_of(arm, task, rate, TUNING_SEED, DEV) for rate in RATES[arm]]


def best_rate(arm: str, task: str, done: Mapping[Cell, Line]) -> float | None:
    """The rate with the best dev accuracy, the lowest of equals; None while one is missing."""
    cells = tuning(arm, task)
    if any(cell not in done for cell in cells):
        return None
    return max(cells, key=lambda cell: (done[cell].greedy, -cell.rate)).rate


def spent(lines: Sequence[Line]) -> float:
    """Core-hours of the finished cells."""
    return sum(line.seconds for line in lines) / 3600


def read_lines(file: Path) -> list[Line]:
    """The finished cells; none where there is no file."""
    if not file.is_file():
        return []
    rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    return [Line(_cell(row["cell"]), row["greedy"], row["marks"], row["seconds"], row["generated"]) for row in rows]


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(**{**row, "budget": Budget(**row["budget"]), "exam": Exam(**row["exam"])})


def core_seconds() -> float:
    """Processor seconds of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def append_lines(file: Path, raw: Path, known: Sequence[Line], seconds: float) -> list[Line]:
    """Add what is finished in ``raw`` and no line yet; it took ``seconds``, training and measuring."""
    seen, added = {line.cell for line in known}, []
    with file.open("a", encoding="utf-8") as out:
        for found in read_results(raw):
            if found.cell in seen:
                continue
            figures = found.figures
            marks = "".join(str(int(mark)) for mark in figures["by_problem"]["greedy"])
            line = Line(found.cell, figures["exam"]["greedy"], marks, seconds, figures["tokens"]["generated"])
            record = {"cell": figures["cell"], "commit": found.commit, "greedy": line.greedy, "marks": marks}
            out.write(json.dumps(record | {"seconds": seconds, "generated": line.generated}) + "\n")
            added.append(line)
    return added


def contrast(lines: Sequence[Line], task: str, one: str, other: str) -> Contrast | None:
    """The difference on the test problems, each arm's marks averaged over its seeds; None while a seed is missing."""
    found = [marks_of(lines, task, arm) for arm in (one, other)]
    if None in found:
        return None
    each = [a - b for a, b in zip(*(row for row in found if row is not None), strict=True)]
    return Contrast(fmean(each), bootstrap_interval(each))


def marks_of(lines: Sequence[Line], task: str, arm: str) -> list[float] | None:
    """Of each test problem the share of seeds that are right; None while a seed is missing."""
    done = {line.cell: line for line in lines}
    rate = best_rate(arm, task, done)
    cells = [cell_of(arm, task, rate, seed, TEST) for seed in SEEDS] if rate else []
    if not cells or any(cell not in done for cell in cells):
        return None
    return [fmean(int(mark) for mark in column) for column in zip(*(done[c].marks for c in cells), strict=True)]


def ahead(found: Contrast | None) -> bool | None:
    """More than two points ahead with an interval above 0; None where it is not known."""
    return None if found is None else found.value > POINTS and found.interval.low > 0


def alike(found: Contrast | None) -> bool | None:
    """The whole interval within two points."""
    return None if found is None else found.interval.low > -POINTS and found.interval.high < POINTS


def readings(lines: Sequence[Line], task: str) -> list[tuple[str, bool | None, str]]:
    """The rows of table 4.5 that the arms can decide: the outcome, whether it is there, and what it would mean."""
    shuffled, jepo, sft = (contrast(lines, task, "covrl", arm) for arm in ("covrl-shuffled", "jepo", "answer-sft"))
    imitation = [contrast(lines, task, "covrl", arm) for arm in ("rationalise", "rationalise-uniform")]
    leads = [ahead(found) for found in (jepo, shuffled, *imitation)]
    same = [alike(found) for found in imitation]
    direct = contrast(lines, task, "answer-sft", "jepo")
    not_ahead = None if sft is None or direct is None else sft.value <= 0 and direct.value >= 0
    below = None if shuffled is None else shuffled.interval.high < POINTS
    return [
        (
            "covrl ahead of jepo, of its shuffled hints and of imitation, by more than 2 points each",
            None if None in leads else all(leads),
            "the claim holds for this model and task, with the other conditions of the table not measured here",
        ),
        (
            "covrl ahead of its shuffled hints by less than 2 points",
            below,
            "the hint's content is not used: refuted here",
        ),
        (
            "covrl like imitation of hinted traces",
            None if None in same else any(same),
            "copying explains it; the RL part is idle",
        ),
        ("covrl like jepo", alike(jepo), "seeing the answer helps exploration at most"),
        (
            "the answer without a thought not below jepo and covrl",
            not_ahead,
            "thoughts do not help: a likelihood claim is void for these answers",
        ),
    ]


def page(lines: Sequence[Line]) -> str:
    """What was found, as Markdown."""
    parts = [
        "# The claim, with a fixed budget",
        "",
        "`python benchmarks/claim.py --model FOLDER` (its docstring has the design). **Budget, fixed before anything "
        f"ran: {HOURS:g} core-hours**; {spent(lines):.2f} of them are spent, on {len(lines)} finished cells "
        "([claim.jsonl](claim.jsonl)). Each task is read by the table of the specification that the benchmark "
        "implements; a row is *not decided* while a cell that it needs is missing. Rows of that table on a second "
        "model, on other domains and on monitors are not measured by these arms.",
    ]
    for task in TASKS:
        rows = [[arm, ARMS[arm].about, *_shown(lines, task, arm)] for arm in ARMS]
        about = f"Greedy accuracy on {1000:,} test problems in %, mean of {len(SEEDS)} seeds; - where one is missing."
        head = ["arm", "what it is", "rate", "dev cells", "test cells", "accuracy"]
        parts += ["", markdown_table(TitledTable(f"Task {task}", about, head, rows)), ""]
        for outcome, there, meaning in readings(lines, task):
            said = "not decided" if there is None else f"yes: {meaning}" if there else "no"
            parts.append(f"- {outcome}: **{said}**")
    return "\n".join([*parts, ""])


def _shown(lines: Sequence[Line], task: str, arm: str) -> list[str]:
    done = {line.cell: line for line in lines}
    rate, marks = best_rate(arm, task, done), marks_of(lines, task, arm)
    dev = sum(cell in done for cell in tuning(arm, task))
    test = sum(cell_of(arm, task, rate, seed, TEST) in done for seed in SEEDS) if rate else 0
    accuracy = "-" if marks is None else f"{100 * fmean(marks):.1f}"
    return [f"{rate:g}" if rate else "-", f"{dev}/{len(RATES[arm])}", f"{test}/{len(SEEDS)}", accuracy]


if __name__ == "__main__":
    sys.exit(main())
