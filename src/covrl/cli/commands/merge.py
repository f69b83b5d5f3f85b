"""`covrl merge`: base and adapter as a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import Settings, cpu_defaults


def merge(
    model: Annotated[str, typer.Argument(help="Folder of a LoRA run or of an adapter, or a GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder for the plain model.")],
    settings: Settings = None,
) -> None:
    """Write base and LoRA adapter, or a GGUF file, as a plain model; --set model.dtype=bfloat16 for another dtype."""
    cpu_defaults()
    from rich.console import Console

    from covrl.cli.merge import merge as merge_adapter
    from covrl.cli.show import show_model_path

    show_model_path(Console(), merge_adapter(model, out, settings or []))
