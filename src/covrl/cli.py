"""The command line: thin callers of the Python API.

Nothing heavy is imported before a command runs, so that ``covrl --help`` answers at once. Results go to standard
output, progress and messages to standard error. Exit codes: 0 done, 1 training was stopped, 2 unusable input,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covrl.errors import RunInterruptedError, TrainingStoppedError, UserError

if TYPE_CHECKING:
    from covrl.quickstart.run import Outcome

app = typer.Typer(
    help="Reinforcement learning of language-model reasoning, with or without a verifier.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _common() -> None:
    """Reinforcement learning of language-model reasoning, with or without a verifier."""


@app.command()
def quickstart(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run: order of problems and every sample.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. [the recipe's if left out]")] = None,
    shuffle_answers: Annotated[
        bool, typer.Option("--shuffle-answers", help="Control: the posterior sees another problem's answer.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change any setting; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/quickstart-DATE-TIME]")] = None,
) -> None:
    """Train a tiny shipped base with CoVRL on the spot, and show what it learnt."""
    assignments = [f"training.seed={seed}", *([f"training.steps={steps}"] if steps else [])]
    assignments += ["problems.shuffle_hints=true"] if shuffle_answers else []
    folder = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    _cpu_defaults()
    from rich.console import Console

    from covrl.quickstart.run import load_config
    from covrl.reporting.terminal import Progress

    console = Console(stderr=True)
    config = load_config([*assignments, *(settings or [])])
    console.print("covrl quickstart: loading torch and transformers …", style="dim", highlight=False)
    from covrl.problems.digits import chance
    from covrl.quickstart.run import quickstart as run_quickstart

    title = f"{config.algorithm.name} on five-digit problems"
    progress = Progress(config.training.steps, chance=chance(), title=title, console=console)
    outcome = run_quickstart(config, folder, progress)
    if as_json:
        import json

        print(json.dumps(outcome.record()))
    else:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from covrl.reporting.terminal import comparison_table, trace_panel

    console = Console()
    console.print()
    console.print(comparison_table(outcome.summary.results, title=f"{len(outcome.base.greedy.graded):,} test problems"))
    console.print(trace_panel(outcome.summary.examples[:4]))
    console.print(f"trained model  {outcome.training.folder / 'model'}", highlight=False, soft_wrap=True)
    console.print(f"report         {outcome.report}", highlight=False, soft_wrap=True)


def _cpu_defaults() -> None:
    """Settings that must be in the environment before torch is imported; what the user set is kept.

    Idle OpenMP threads that spin take the processor from whatever else runs, and slow small models down.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"covrl: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingStoppedError as error:
        print(f"covrl: {error}", file=sys.stderr)
        sys.exit(130 if isinstance(error, RunInterruptedError) else 1)
