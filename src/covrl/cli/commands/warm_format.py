"""`covrl warm-format`: a base is taught the format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import Settings, cpu_defaults


def warm_format(
    config: Annotated[Path, typer.Option(help="TOML file of the training run that follows.")],
    out: Annotated[Path, typer.Option(help="Folder for the model that knows the format.")],
    settings: Settings = None,
    steps: Annotated[int, typer.Option(min=1, help="Most steps.")] = 200,
    rate: Annotated[float, typer.Option("--learning-rate", help="Of AdamW, constant.")] = 1e-5,
    until: Annotated[float, typer.Option(min=0, max=1, help="Stop at this share of valid traces.")] = 0.5,
    every: Annotated[int, typer.Option(min=1, help="Steps between checks with sampled traces.")] = 20,
    roles: Annotated[str, typer.Option(help="Prompts that are taught: prior, posterior, or both.")] = "prior,posterior",
) -> None:
    """Teach a base the format on worked solutions (supervised), if too few of its traces are valid."""
    cpu_defaults()
    from covrl.cli.train import run_warm_format

    run_warm_format(config, out, settings or [], steps, rate, until, every, roles)
