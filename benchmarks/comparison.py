"""Every method on the digits task: rates tuned on dev, then measured on test, then the ablations.

    python benchmarks/comparison.py [--stage NAME] [--list | --tables]

Stages run in the order of ``STAGES``, first parts before second ones. Each runs only the cells that have no result in
``docs/results/raw`` yet, two single-thread processes at a time, so the command may be cut and started again. A rate is
tuned on dev with seeds 100 and 101 by the mean of avg@n; where the best is at the edge of what was tried, the grid
grows by a factor of two. What is measured on test is every method at its own rate, with seeds that no rate was chosen
by.

Writes ``docs/results/STAGE.md`` for every stage, the courses of every method on test into
``docs/results/curves`` and onto the methods' pages, and a short table into the README.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import collapse
from curve_pages import write_pages
from curves import curves
from own_tasks import orders, results
from readme_table import short_table, write_readme
from tuning import Tuning

from covrl.comparison.cells import Budget, Cell, Exam, Result, found, grid, missing
from covrl.comparison.methods import BASE
from covrl.comparison.run import run_cells
from covrl.comparison.summary import Line, lines
from covrl.comparison.table import markdown, percent
from covrl.errors import UserError

HERE = str(Path(__file__).resolve().parent)
FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
BUDGET = Budget("steps", 50)
DEV, TEST = Exam("dev", 4, 1000), Exam("test", 8)
TUNING = Tuning((100, 101), BUDGET, DEV, rates=(1.5e-4, 3e-4, 6e-4), least=1.8e-5, most=4.9e-3)

RAVR = "ravr-tuned"  # stands for the one of RAVRS that is best on dev, and for all of them where rates are tuned
RAVRS = ("ravr", "ravr-beta-0.3", "ravr-beta-0.1")
CONTROLS = ("rationalise", RAVR, "covrl-shuffled", "grpo-posterior")
LONG = ("covrl", *CONTROLS, "verifree", "grpo")  # measured with five seeds
SHORT = (
    *("rlpr", "jepo", "latro", "ravr", "nover", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo"),
    *("psr", "nsr", "w_reinforce", "rapo", "dash", "rover"),
)
WEAK, PLAIN = "covrl-beta-0.1", "covrl"  # said to collapse, and what it is held against
BETAS = (PLAIN, "covrl-beta-0", WEAK, "covrl-beta-3")
REUSE = ("grpo-reuse", "gspo-reuse", "cispo-reuse", "rlpr-reuse", "dash-no-kl")  # what one update or a KL hides
SECOND_WAVE = (
    *("grpo", "tempo", "thr", "nthr", "tw_grpo", "steer", "grpo-reuse", "dhpo-reuse", "c3po", "a_star_po", "prorl"),
    *("recap-right-and-form", "grpo_lambda", "rlsp"),
)
BUDGETED = {"rare": "train_long_think_short-digits", "common": "train_long_think_short-digits"}
BUDGETED["countdown"] = "train_long_think_short-countdown"
ABLATIONS = (
    *("covrl", "covrl-beta-0", "covrl-beta-0.1", "covrl-beta-3", "covrl-alpha-0.1", "covrl-alpha-0.9"),
    *("covrl-nll-0", "covrl-nll-0.1", "covrl-reward-mean", "covrl-reward-mean-scaled", "covrl-reward-prob"),
    "covrl-reward-mean_prob",
    *("covrl-mixture", "covrl-detached"),
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Methods at one setting: tuned (``seeds`` empty), or measured with ``seeds`` at their tuned rates.

    ``rates`` runs these instead of the tuned ones.
    """

    methods: tuple[str, ...]
    setting: str
    seeds: tuple[int, ...] = ()
    budget: Budget = BUDGET
    exam: Exam = TEST
    rates: tuple[float, ...] = ()

    @property
    def tunes(self) -> bool:
        """Whether rates are searched."""
        return not self.seeds


def wave(setting: str) -> Stage:
    """The second wave of methods beside GRPO, with one seed at one rate."""
    return Stage((*SECOND_WAVE, BUDGETED[setting]), setting, TUNING.seeds[:1], BUDGET, DEV, (3e-4,))


STAGES: dict[str, tuple[Stage, ...]] = {
    "tuning-rare": (Stage((*LONG, "rlpr"), "rare"), Stage(SHORT, "rare")),
    "test-rare": (Stage(LONG, "rare", (0, 1, 2, 3, 4)), Stage(SHORT, "rare", (0, 1, 2))),
    "tuning-common": (Stage((*LONG, "rlpr"), "common"), Stage(SHORT, "common")),
    "test-common": (Stage(LONG, "common", (0, 1, 2, 3, 4)), Stage(SHORT, "common", (0, 1, 2))),
    "beta": (Stage(BETAS, "rare", TUNING.seeds, Budget("steps", 100), DEV, TUNING.rates),),
    "tuning-ablations": (Stage(ABLATIONS, "rare"),),
    "ablations": (Stage(ABLATIONS, "rare", (0, 1, 2)),),
    "tuning-reuse": (Stage(REUSE, "rare"),),
    "second-wave-rare": (wave("rare"),),
    "second-wave-common": (wave("common"),),
    "second-wave-countdown": (wave("countdown"),),
    "reuse": (Stage(("grpo", *REUSE[:3], "rlpr", "rlpr-reuse", "dash", "dash-no-kl"), "rare", (0, 1, 2)),),
}

ONE_UPDATE = (
    "All methods but rover take one update a batch of rollouts here. Every importance ratio is 1 then: no clip ever "
    "binds, and gspo is grpo. The stage `reuse` has four updates for those that are made for it."
)
EQUAL_RATES = "How soon a method learns depends on its rate, too. At equal rates: [tuning-{0}.md](tuning-{0}.md)."
NEAR_GRPO = (
    "One seed, on dev, at one rate for all that was tuned for none of them, and 50 steps of as many responses each. "
    "This tells a method that fails from one that learns, and no small differences.",
    "dhpo-reuse has four updates a batch, as grpo-reuse; c3po has a budget of 3,000 tokens. a_star_po samples eight "
    "responses of every training problem before step 1, which its tokens count; it and rlsp then take one response of "
    "each of 256 problems a step. recap weighs two rewards: the verdict, and a closed thought with an answer. "
    "train_long_think_short puts the budget after the question in the training prompts alone.",
)
SAME_LENGTH = (
    "Responses of the digits task are all about as long, so methods about length have nothing to shorten here."
)
NOTES: dict[str, tuple[str, ...]] = {
    "second-wave-rare": (*NEAR_GRPO, SAME_LENGTH),
    "second-wave-common": (*NEAR_GRPO, SAME_LENGTH),
    "second-wave-countdown": NEAR_GRPO,
    "test-rare": (ONE_UPDATE, EQUAL_RATES.format("rare")),
    "test-common": (ONE_UPDATE, EQUAL_RATES.format("common")),
    "ablations": (
        EQUAL_RATES.format("ablations"),
        "With reward = mean, prob or mean_prob rewards are smaller than a sum in nats, and the same β = 1 weighs more "
        "beside them. covrl-reward-mean-scaled divides β as the reward is, by the four tokens of an answer.",
    ),
    "reuse": (
        "-reuse: four mini-batches of eight problems, each an update, on the same rollouts; grpo, rlpr and dash as in "
        "[test-rare.md](test-rare.md). dash has a KL, with which every row has weight and the exact filter drops none; "
        "dash-no-kl has none.",
    ),
}
"""What a reader of a stage's table has to know beside its figures."""


def main() -> int:
    """Run the stages, or the one that is asked for; 1 where a cell failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--stage", choices=list(STAGES), action="append", help="only this stage; may be repeated")
    options.add_argument("--first", action="store_true", help="only the first part of each stage")
    options.add_argument("--list", action="store_true", help="say what is missing and run nothing")
    options.add_argument(
        "--tables", action="store_true", help="write tables from the results that are there; run nothing"
    )
    options.add_argument("--folder", type=Path, default=FOLDER, help="where results are and go")
    asked = options.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])  # own_rewards
    failures = 0
    try:
        for name in (asked.stage or STAGES) if asked.list else ():
            print(f"{name}: {count(lines_of(name, asked.folder))}")
        for number, name in () if asked.list else order(asked.stage or list(STAGES), asked.first):
            failures += 0 if asked.tables else run(STAGES[name][number], asked.folder)
            write(name, asked.folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if not asked.list:
        write_curves(asked.folder)
        if asked.folder.resolve() == FOLDER:
            write_pages()
            write_readme(short_table({setting: rows_of(setting, asked.folder) for setting in ("rare", "common")}))
    return 1 if failures else 0


def order(names: Sequence[str], first: bool) -> list[tuple[int, str]]:
    """Which part of which stage runs when: all first parts before any second one."""
    return [(n, name) for n in range(1 if first else 2) for name in names if n < len(STAGES[name])]


def results_of(cells: Iterable[Cell], folder: Path) -> dict[Cell, Result]:
    """The results that are there, the newest of each cell."""
    return found(cells, results(folder / "raw"))


def names(stage: Stage, known: Sequence[Result]) -> list[str]:
    """The methods of a stage: ``RAVR`` is all of ``RAVRS`` where rates are tuned, else the best; itself until then."""
    here: list[str] = []
    for method in stage.methods:
        here += [method] if method != RAVR else RAVRS if stage.tunes else [best_ravr(stage.setting, known) or RAVR]
    return list(dict.fromkeys(here))


def ravr_scores(setting: str, known: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Rate and mean avg@n on dev of each of ``RAVRS`` that is tuned."""
    best = {method: TUNING.best(method, setting, known) for method in RAVRS}
    scores = {m: (rate, TUNING.score(m, setting, rate, known)) for m, rate in best.items() if rate}
    return {method: (rate, score) for method, (rate, score) in scores.items() if score is not None}


def best_ravr(setting: str, known: Sequence[Result]) -> str | None:
    """The one of ``RAVRS`` with the best mean avg@n on dev, each at its tuned rate; None while one is not tuned."""
    scores = ravr_scores(setting, known)
    return max(scores, key=lambda method: scores[method][1]) if len(scores) == len(RAVRS) else None


def wanted(stage: Stage, folder: Path) -> list[Cell]:
    """The cells that a stage asks for as far as results say: a tuning's grow with what was found."""
    known = results(folder / "raw")
    methods = names(stage, known)
    if stage.tunes:
        cells = [
            cell
            for method in methods
            for cell in grid(
                *((method,), (stage.setting,), TUNING.seeds, BUDGET, DEV),
                TUNING.tried(method, stage.setting, known),
            )
        ]
        return sorted(dict.fromkeys(cells), key=lambda cell: (cell.seed, cell.rate == 0))
    best = {method: TUNING.best(method, stage.setting, known) for method in methods}
    rates = {method: stage.rates or ((rate,) if rate else ()) for method, rate in best.items()}
    cells = [
        cell
        for seed in stage.seeds
        for method in methods
        for cell in grid((method,), (stage.setting,), (seed,), stage.budget, stage.exam, rates[method])
        if rates[method]
    ]
    return list(dict.fromkeys(cells))  # the base is in every grid


def untuned(stage: Stage, folder: Path) -> list[Line]:
    """The methods that a stage cannot run yet, as their rates are not tuned: every seed is missing."""
    if stage.tunes or stage.rates:
        return []
    known = results(folder / "raw")
    waiting = [method for method in names(stage, known) if TUNING.best(method, stage.setting, known) is None]
    return [Line(method, stage.setting, None, (), stage.seeds) for method in waiting]


def lines_of(name: str, folder: Path) -> list[Line]:
    """Everything that a stage shows, in the order of its methods: what is there and what is missing."""
    parts, known = STAGES[name], results(folder / "raw")
    cells = list(dict.fromkeys(cell for part in parts for cell in wanted(part, folder)))
    every = lines(cells, results_of(cells, folder)) + [line for part in parts for line in untuned(part, folder)]
    place = [BASE, *(method for part in parts for method in names(part, known))]
    return sorted(every, key=lambda line: place.index(line.method))


def count(every: Sequence[Line]) -> str:
    """How much of a stage is missing, in words."""
    lacking, there = sum(len(line.missing) for line in every), sum(len(line.results) for line in every)
    waiting = sum(len(line.missing) for line in every if line.rate is None)
    later = f", {waiting} of them at rates not tuned yet" if waiting else ""
    return f"{lacking} of {lacking + there} cells are missing{later}"


def run(stage: Stage, folder: Path) -> int:
    """Run what is missing of a stage; returns how many cells failed. A tuning goes on until no grid grows."""
    failed: set[Cell] = set()
    while True:
        cells = wanted(stage, folder)
        todo = [cell for cell in missing(cells, results_of(cells, folder)) if cell not in failed]
        if not todo:
            return len(failed)
        print(f"{stage.setting}: {len(todo)} of {len(cells)} cells to run", flush=True)
        failures = run_cells(orders(todo, folder / "raw"), folder / "raw", say=lambda text: print(text, flush=True))
        failed |= {failure.cell for failure in failures}


def write(name: str, folder: Path) -> None:
    """A stage's table from the results that are there."""
    every = lines_of(name, folder)
    command = f"python benchmarks/comparison.py --stage {name}"
    more = [collapse.table(collapse.endings(every, WEAK, PLAIN), WEAK, PLAIN)] if name == "beta" else []
    known = results(folder / "raw")
    notes = [ravr_note(part.setting, known) for part in STAGES[name] if part.seeds and RAVR in part.methods]
    text = markdown(every, {}, command, more, [*NOTES.get(name, ()), *notes], f"Comparison: {name}")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def ravr_note(setting: str, known: Sequence[Result]) -> str:
    """How RAVR's β was chosen, for the remarks of a table."""
    scores = ravr_scores(setting, known)
    said = ", ".join(
        f"{m} {percent(scores[m][1])} at rate {scores[m][0]:g}" if m in scores else f"{m} not tuned yet" for m in RAVRS
    )
    return (
        "RAVR's β was tuned on dev beside its rate, as its default of 1 lets q fall onto p on this task; no other "
        f"method had that. Mean avg@{TUNING.exam.samples} there: {said}. Measured here: "
        f"{best_ravr(setting, known) or 'none yet'}."
    )


def write_curves(folder: Path) -> None:
    """An SVG for each method that was measured on test, in ``folder/curves``; those of others go."""
    (folder / "curves").mkdir(exist_ok=True)
    every = [line for name in ("test-rare", "test-common") for line in lines_of(name, folder)]
    methods = dict.fromkeys(line.method for line in every)
    for drawn in (folder / "curves").glob("*.svg"):
        if drawn.stem not in methods:
            drawn.unlink()
    for method in methods:
        if text := curves(method, every):
            (folder / "curves" / f"{method}.svg").write_text(text, encoding="utf-8")


def rows_of(setting: str, folder: Path) -> dict[str, Line]:
    """The base and the methods with five seeds, by the name that a short table gives them."""
    every = {line.method: line for line in lines_of(f"test-{setting}", folder)}
    best = best_ravr(setting, results(folder / "raw")) or RAVR
    named = {method: best if method == RAVR else method for method in (BASE, *LONG)}
    return {row.removesuffix("-tuned"): every[method] for row, method in named.items() if method in every}


if __name__ == "__main__":
    sys.exit(main())
