"""The command ``covrl view``: a run's report as a file, or a page that is served while the run goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from covrl.errors import UserError


def run_view(run: Path) -> None:
    """Write the run's report and print its path."""
    from covrl.reporting.folder import summary_of
    from covrl.reporting.html import write_report

    write_report(run / "report.html", summary_of(run))
    print((run / "report.html").resolve())


def run_live(folders: Sequence[Path], port: int) -> None:
    """Serve the page of one run or two and print its address; returns only by an interrupt.

    Raises:
        UserError: the folders are not runs, or are the same, or the port cannot be had.
    """
    from covrl.reporting.live.run import open_run
    from covrl.reporting.live.server import Site, open_server

    if len(folders) > 2:
        raise UserError(f"--live shows one run or two side by side, not {len(folders)}")
    runs = [open_run(number, folder) for number, folder in enumerate(folders)]
    if len({run.folder for run in runs}) < len(runs):
        raise UserError(f"{folders[0]} and {folders[1]} are the same run; give two to compare, or one")
    site = Site(runs)
    with open_server(site, port) as server:
        print(server.url, flush=True)
        print(
            "Ctrl-C ends it. Whoever has this address can read the run, on this machine.", file=sys.stderr, flush=True
        )
        server.serve_forever()
