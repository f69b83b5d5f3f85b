"""`covrl data`: a set of problems as it will be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import AsJson, Settings, cpu_defaults


def data(
    source: Annotated[str, typer.Argument(help="File, hf:NAME:SPLIT, or digits:test.")],
    config: Annotated[Path | None, typer.Option(help="TOML file for fields, prompts and model.")] = None,
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option(help="Count its tokens. [the file's; without either, characters are counted]")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Look for its problems in this source too; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows that are shown as they will be read.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show a set of problems as it will be read: rows, lengths, forms of answers, duplicates, overlap with others."""
    cpu_defaults()
    from covrl.cli.data import DataRequest, run_data

    run_data(DataRequest(source, config, settings or [], model, against or [], rows, as_json))
