"""`covrl leak`: how often posterior traces give the answer away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import AsJson, Model, Problems, PromptsFile, Settings, cpu_defaults


def leak(
    model: Model,
    problems: Problems,
    config: PromptsFile = None,
    settings: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Traces per problem and prompt.")] = 4,
    limit: Annotated[int, typer.Option(min=1, help="Only the first problems.")] = 200,
    as_json: AsJson = False,
    traces: Annotated[Path | None, typer.Option(help="Write every trace and what was found to this JSONL.")] = None,
) -> None:
    """Measure how often posterior traces give away the answer that they were shown, against shuffled answers."""
    cpu_defaults()
    from covrl.cli.evaluate import TraceRequest, run_leak

    run_leak(TraceRequest(model, problems, config, settings or [], n, limit, as_json), traces)
