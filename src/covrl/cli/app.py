"""The command line: thin callers of the Python API.

Nothing heavy is imported before a command runs, so that ``covrl --help`` answers at once. Results go to standard
output, progress and messages to standard error. Exit codes: 0 done, 1 training was stopped, 2 unusable input,
130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import covrl
from covrl.cli.commands import (
    algorithms,
    ask,
    calibrate,
    compare,
    config,
    data,
    doctor,
    evaluate,
    grade,
    leak,
    merge,
    preflight,
    prompts,
    push,
    quickstart,
    recipe,
    train,
    view,
    warm_format,
)
from covrl.cli.console import crash, end, several, write_any_text
from covrl.errors import RunInterruptedError, TrainingStoppedError, UserError

app = typer.Typer(
    help="Reinforcement learning of language-model reasoning, with or without a verifier.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = {
    "quickstart": quickstart.quickstart,
    "train": train.train,
    "push": push.push,
    "warm-format": warm_format.warm_format,
    "eval": evaluate.evaluate,
    "leak": leak.leak,
    "calibrate": calibrate.calibrate,
    "preflight": preflight.preflight,
    "prompts": prompts.prompts,
    "ask": ask.ask,
    "merge": merge.merge,
    "view": view.view,
    "grade": grade.grade,
    "algorithms": algorithms.algorithms,
    "config": config.config_command,
    "data": data.data,
    "recipe": recipe.recipe,
    "doctor": doctor.doctor,
    "compare": compare.compare,
}
"""By name, in the order of the help."""

ON_SEVERAL = ("train", "eval", "leak", "calibrate")
"""Commands whose work several processes share."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"covrl {covrl.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Reinforcement learning of language-model reasoning, with or without a verifier."""
    del version
    if several() and context.invoked_subcommand not in ON_SEVERAL:
        raise UserError(f"covrl {context.invoked_subcommand} works as one process: start it without torchrun")


for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2, a fault of ours a traceback and 1."""
    write_any_text()
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:  # a wrong option or argument
        said = error.format_message()
        if not said:  # without arguments the help was printed and there is nothing to add
            sys.exit(2)
        end(f"{said} (covrl --help)".replace("\n", " "), 2)
    except (typer.Abort, KeyboardInterrupt):
        end("interrupted", 130)
    except UserError as error:
        end(str(error), 2)
    except TrainingStoppedError as error:
        end(str(error), 130 if isinstance(error, RunInterruptedError) else 1)
    except Exception as error:
        from covrl.distributed.deferred_oom import is_out_of_memory

        if not is_out_of_memory(error):  # unexpected: Python would print it unfiltered, with whatever it quotes
            crash(error)
        said = (str(error).splitlines() or [type(error).__name__])[0]
        end(f"{said}: lower generation.rows_per_pass, or take a smaller model or a larger device", 1)
