"""`covrl quickstart`: a shipped task, from its base to the report."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covrl.cli.options import AsJson, Settings, cpu_defaults

if TYPE_CHECKING:
    from covrl.quickstart.run import Outcome


def quickstart(
    task: Annotated[str, typer.Option(help="Which shipped task: digits, animals or countdown.")] = "digits",
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run: order of problems and every sample.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. [the recipe's if left out]")] = None,
    shuffle_answers: Annotated[
        bool, typer.Option("--shuffle-answers", help="Control: the posterior sees another problem's answer.")
    ] = False,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/quickstart-DATE-TIME]")] = None,
) -> None:
    """Train a tiny shipped base without a verifier (countdown: with one), and show what it learnt."""
    assignments = [f"training.seed={seed}", *([f"training.steps={steps}"] if steps else [])]
    assignments += ["problems.shuffle_hints=true"] if shuffle_answers else []
    folder = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    cpu_defaults()
    from rich.console import Console

    console = Console(stderr=True)
    console.print("covrl quickstart: loading torch and transformers …", style="dim", highlight=False)
    from covrl.problems.tasks import find_task
    from covrl.quickstart.run import find_recipe, load_config
    from covrl.quickstart.run import quickstart as run_quickstart
    from covrl.reporting.terminal import Progress

    config = load_config([*assignments, *(settings or [])], task)
    title = f"{config.algorithm.name} on {find_recipe(task).title}"
    progress = Progress(config.training.steps, chance=find_task(task).chance(), title=title, console=console)
    outcome = run_quickstart(config, folder, progress, task)
    if as_json:
        import json

        print(json.dumps(outcome.record()))
    else:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from covrl.reporting.tables import comparison_table, trace_panel

    console = Console()
    console.print()
    console.print(comparison_table(outcome.summary.results, title=f"{len(outcome.base.greedy.graded):,} test problems"))
    console.print(trace_panel(outcome.summary.examples[:4]))
    console.print(f"trained model  {outcome.training.last.resolve()}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"report         {outcome.report}", highlight=False, soft_wrap=True, markup=False)
