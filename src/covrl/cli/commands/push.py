"""`covrl push`: a run's model on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import cpu_defaults


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the Hugging Face hub.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a repository that is made. [the run's hub.private: private]"),
    ] = None,
    license: Annotated[str, typer.Option(metavar="ID", help="Licence of the base. [what the base's card says]")] = "",
) -> None:
    """Put a run's model, tokenizer, card and report on the Hugging Face hub."""
    cpu_defaults()
    from covrl.cli.push import run_push

    run_push(run, repo, private, license)
