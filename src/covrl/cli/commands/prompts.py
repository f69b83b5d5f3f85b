"""`covrl prompts`: styles of prompts, tried."""

from __future__ import annotations

from typing import Annotated

import typer

from covrl.cli.options import AsJson, Model, Problems, PromptsFile, Settings, cpu_defaults


def prompts(
    model: Model,
    problems: Problems,
    config: PromptsFile = None,
    settings: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Traces per problem and prompt.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Only the first problems.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a trace. [96, or the settings' limit if it is lower]")
    ] = None,
    templates: Annotated[
        bool, typer.Option("--templates", help="The six posterior templates of the settings' style, not the styles.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show each style of prompts with sampled traces and their rewards, and recommend one."""
    cpu_defaults()
    from covrl.cli.evaluate import TraceRequest, run_prompts

    run_prompts(TraceRequest(model, problems, config, settings or [], n, limit, as_json), max_tokens, templates)
