"""`covrl calibrate`: whether log p(answer) tells right traces from wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import AsJson, Model, Problems, PromptsFile, Settings, cpu_defaults


def calibrate(
    model: Model,
    problems: Problems,
    config: PromptsFile = None,
    settings: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Traces per problem.")] = 8,
    limit: Annotated[int, typer.Option(min=1, help="Only the first problems.")] = 200,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Folder for calibration.json and calibration.html.")] = None,
) -> None:
    """Measure before training whether log p(answer) distinguishes right from wrong traces of these problems."""
    cpu_defaults()
    from covrl.cli.evaluate import TraceRequest, run_calibrate

    run_calibrate(TraceRequest(model, problems, config, settings or [], n, limit, as_json), out)
