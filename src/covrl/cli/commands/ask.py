"""`covrl ask`: traces for one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import cpu_defaults


def ask(
    model: Annotated[str, typer.Argument(help="Folder of a run or model, .gguf file, hub id, or covrl:digits.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    answer: Annotated[str | None, typer.Option(help="Its answer: adds posterior traces and log p(answer).")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Traces per model and prompt.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    config: Annotated[Path | None, typer.Option(help="TOML file for prompts. [the run's, if it is one]")] = None,
) -> None:
    """Show traces for one question: prior and posterior prompt side by side, a run's base against its result."""
    cpu_defaults()
    from rich.console import Console

    from covrl import api
    from covrl.cli.show import show_replies

    show_replies(Console(), api.ask(model, question, answer, n, seed, config))
