"""The quickstart: train the shipped base with CoVRL, evaluate both models, write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from covrl.api import Trained, build, new_run_folder, train_run
from covrl.config import RunConfig, check, override, read_toml
from covrl.errors import TrainingStoppedError, UserError
from covrl.evaluation.accuracy import Evaluation, Graded
from covrl.generation.base import Draw
from covrl.problems.tasks import find_task
from covrl.records import Problem
from covrl.reporting.html import write_report
from covrl.reporting.sinks import read_steps
from covrl.reporting.summary import Attempt, Example, Note, ResultRow, RunSummary
from covrl.reporting.terminal import Progress
from covrl.training.run import Run

EXAMPLES = 6


class Recipe(NamedTuple):
    """A shipped recipe, and how its problems and their untrained size are called in tables."""

    file: Path
    title: str
    longer: str


RECIPES = {
    "digits": Recipe(Path(__file__).with_name("quickstart.toml"), "five-digit problems", "six digits"),
    "animals": Recipe(Path(__file__).with_name("animals.toml"), "five-animal problems", "six animals"),
    "countdown": Recipe(Path(__file__).with_name("countdown.toml"), "problems of three numbers", "four numbers"),
}


def find_recipe(task: str) -> Recipe:
    """The recipe of an embedded task; raises UserError if there is none of that name."""
    if task not in RECIPES:
        raise UserError(f"--task: no recipe {task!r}; there are {', '.join(RECIPES)}")
    return RECIPES[task]


def load_config(assignments: Sequence[str], task: str = "digits") -> RunConfig:
    """The task's recipe with ``section.key=value`` assignments applied; raises UserError like every config."""
    return check(RunConfig, override(read_toml(find_recipe(task).file), assignments))


@dataclass(frozen=True, slots=True)
class Measured:
    """The three evaluations of one model: test greedy and sampled, and the longer size greedy."""

    greedy: Evaluation
    sampled: Evaluation
    longer: Evaluation

    def record(self) -> dict[str, float | None]:
        """The figures as they stand in the JSON line."""
        return {
            "greedy": self.greedy.accuracy,
            "sampled": self.sampled.accuracy,
            "sound": self.sampled.sound,
            "longer_greedy": self.longer.accuracy,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished quickstart; ``report`` is the HTML file that shows ``summary``."""

    base: Measured
    trained: Measured
    chance: float
    training: Trained
    report: Path
    summary: RunSummary

    def record(self) -> dict[str, Any]:
        """The one JSON line of ``covrl quickstart --json``; ``seconds`` are those of training."""
        return {
            "base": self.base.record(),
            "trained": self.trained.record(),
            "chance": self.chance,
            "steps": self.training.run.done,
            "seconds": round(self.training.seconds, 1),
            "report": str(self.report),
        }


def quickstart(config: RunConfig, folder: Path, progress: Progress, name: str = "digits") -> Outcome:
    """The whole quickstart on the task of that name; ``progress`` is shown while the model trains.

    Raises:
        UserError: a setting or the folder cannot be used.
        TrainingStoppedError: training ended early (RunInterruptedError: by the user); what was done is written.
    """
    task = find_task(name)
    test, longer = task.problems("test"), task.problems("longer")
    progress.note("loading the base …")
    run = build(config)
    new_run_folder(folder)
    report = (folder / "report.html").resolve()
    try:
        with progress:
            training = train_run(run, folder, [progress], progress.note)
    except TrainingStoppedError as error:
        if run.done:
            write_report(report, summarise(run, folder, None, [Note(str(error), run.done)], name))
        raise type(error)(f"{error}; what was done is in {folder}") from error
    progress.note("measuring the base and the trained model on the test problems …")  # not before: training shows soon
    base, trained = measure(build(config), test, longer), measure(run, test, longer)
    summary = summarise(run, folder, (base, trained), [], name)
    write_report(report, summary)
    return Outcome(base, trained, task.chance(), training, report, summary)


def measure(run: Run, test: Sequence[Problem], longer: Sequence[Problem]) -> Measured:
    """Evaluate the run's model as it is, with the prior prompt only; the draws depend on the run's seed alone."""
    assert run.evaluator is not None
    draw = Draw(run.config.training.seed, 0)
    return Measured(run.evaluator(test, 0.0, draw), run.evaluator(test, 1.0, draw), run.evaluator(longer, 0.0, draw))


def summarise(
    run: Run, folder: Path, both: tuple[Measured, Measured] | None, notes: Sequence[Note], name: str = "digits"
) -> RunSummary:
    """The report's content, from the run's files and the evaluations of base and trained model; None: not trained."""
    chance, recipe = find_task(name).chance(), find_recipe(name)
    return RunSummary(
        title="covrl quickstart",
        subtitle=f"{run.config.algorithm.name} on {recipe.title}, seed {run.config.training.seed}",
        headline=_headline(run, both),
        config=run.config.model_dump(mode="json"),
        steps=read_steps(folder / "metrics.jsonl", folder / "traces.jsonl"),
        results=_rows(*both, chance, recipe) if both else (),
        examples=_examples(*both) if both else (),
        notes=notes,
        chance=chance,
    )


def _headline(run: Run, both: tuple[Measured, Measured] | None) -> str:
    if both is None:
        return f"Training was stopped after {run.done} steps."
    base, trained = both
    shown = "a shuffled answer" if run.config.problems.shuffle_hints else "the answer"
    return (
        f"In {run.done} steps, without a verifier, greedy accuracy on {len(base.greedy.graded):,} test problems "
        f"went from {base.greedy.accuracy:.1%} to {trained.greedy.accuracy:.1%}; the posterior prompt showed {shown}."
    )


def _rows(base: Measured, trained: Measured, chance: float, recipe: Recipe) -> list[ResultRow]:
    count, longer = len(base.greedy.graded), len(base.longer.graded)
    return [
        ResultRow("accuracy, greedy", base.greedy.accuracy, trained.greedy.accuracy, chance, count=count),
        ResultRow("accuracy, sampled", base.sampled.accuracy, trained.sampled.accuracy, chance, count=count),
        ResultRow(
            "sound traces, sampled",
            base.sampled.sound,
            trained.sampled.sound,
            note="right procedure, every step true and in order",
            count=count,
        ),
        ResultRow(
            f"{recipe.longer}, greedy",
            base.longer.accuracy,
            trained.longer.accuracy,
            note=f"a size that nothing was trained on; {trained.longer.sound or 0:.0%} of these traces are sound",
            count=longer,
        ),
    ]


def _examples(base: Measured, trained: Measured) -> list[Example]:
    """The first test problems, sampled before and after."""
    return [
        Example(before.problem.question, before.problem.answer, _attempt(before), _attempt(after))
        for before, after in zip(base.sampled.graded[:EXAMPLES], trained.sampled.graded[:EXAMPLES], strict=True)
    ]


def _attempt(graded: Graded) -> Attempt:
    return Attempt(f"{graded.rollout.text}<answer>{graded.answer}</answer>", graded.verdict)
