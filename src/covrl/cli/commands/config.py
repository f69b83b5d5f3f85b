"""`covrl config`: the settings, listed or checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import Settings, cpu_defaults
from covrl.errors import UserError


def config_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Sections, settings or methods. [every section]")
    ] = None,
    check: Annotated[Path | None, typer.Option(metavar="FILE", help="Check a settings file; load nothing.")] = None,
    settings: Settings = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema, for editors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, of all methods too.")] = False,
) -> None:
    """List settings with default, unit and evidence; check a file; print a JSON schema for editors."""
    if (check is not None) + schema + as_json > 1 or (names and (check is not None or schema)):
        raise UserError("give one of names, --check FILE, --schema and --json (names go with --json)")
    if settings and check is None:
        raise UserError("--set changes settings of a file: give it with --check")
    cpu_defaults()
    from covrl.cli.settings import run_config

    run_config(names or [], check, schema, as_json, settings or [])
