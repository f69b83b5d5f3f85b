"""`covrl preflight`: which method will work, measured before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import AsJson, Model, Problems, PromptsFile, Settings, cpu_defaults


def preflight(
    model: Model,
    problems: Problems,
    config: PromptsFile = None,
    settings: Settings = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="12 problems, 2 traces, 3 templates: an eighth of the time.")
    ] = False,
    n: Annotated[int | None, typer.Option("--n", "-n", min=2, help="Traces per problem and prompt. [4]")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first problems. [30]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a trace. [96, or the settings' limit if it is lower]")
    ] = None,
    templates: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Of the posterior prompt. [all six; of --quick: three]")
    ] = None,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Folder for preflight.json and preflight.html.")] = None,
) -> None:
    """Measure before training which method will work on these problems with this model, or that none will."""
    cpu_defaults()
    from covrl.cli.evaluate import TraceRequest
    from covrl.cli.preflight import FULL, QUICK, PreflightRequest, named_templates, run_preflight

    size = QUICK if quick else FULL
    asked = TraceRequest(model, problems, config, settings or [], n or size.traces, limit or size.problems, as_json)
    chosen = size.templates if templates is None else named_templates(templates)
    run_preflight(PreflightRequest(asked, max_tokens, chosen, out))
