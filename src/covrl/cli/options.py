"""Options that several commands share, and what is set before any of them imports torch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change any setting; may be repeated.")
]
Model = Annotated[str, typer.Option(help="Folder of a run or model, .gguf file, hub id, or covrl:digits.")]
Problems = Annotated[str, typer.Option(help="File, hf:NAME:SPLIT, or digits:test.")]
PromptsFile = Annotated[Path | None, typer.Option(help="TOML file for prompts and fields. [the run's, if it is one]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")]


def cpu_defaults() -> None:
    """Settings that must be in the environment before torch is imported; what the user set is kept.

    Idle OpenMP threads that spin take processor time from other work, and slow small models down.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Without a network it reports every retry before our one line of error.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
