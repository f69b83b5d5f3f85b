"""`covrl view`: a run's report, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def view(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Make a run's HTML report again from its files, and print its path."""
    from covrl.reporting.folder import summary_of
    from covrl.reporting.html import write_report

    write_report(run / "report.html", summary_of(run))
    print((run / "report.html").resolve())
