"""`covrl view`: a run's report, made again, or a page of runs that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.errors import UserError


def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folder of a run; with --live also of two.")],
    live: Annotated[
        bool, typer.Option("--live", help="Serve a page that keeps up with the run, with a search of its traces.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of the page, on this machine only. [a free one]")
    ] = None,
) -> None:
    """Make a run's HTML report again from its files, and print its path; or look at one run or two as they go on."""
    from covrl.cli.view import run_live, run_view

    if live:
        run_live(runs, port or 0)
    elif port is not None or len(runs) > 1:
        raise UserError("--port and a second run go with --live, which serves the page; without it give one run")
    else:
        run_view(runs[0])
