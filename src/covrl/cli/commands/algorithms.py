"""`covrl algorithms`: the methods."""

from __future__ import annotations

from typing import Annotated

import typer

from covrl.cli.options import cpu_defaults


def algorithms(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the methods: paper, evidence, the prompts and models that score a trace, whether they need a verifier."""
    cpu_defaults()
    from covrl.algorithms.listing import list_algorithms

    found = list_algorithms()
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(method) for method in found], ensure_ascii=False))
        return
    from rich.console import Console

    from covrl.cli.show import show_algorithms

    show_algorithms(Console(), found)
