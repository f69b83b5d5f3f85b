"""`covrl recipe`: settings to start from."""

from __future__ import annotations

from typing import Annotated

import typer


def recipe(
    name: Annotated[str | None, typer.Argument(help="Of a recipe. [all are listed]")] = None,
) -> None:
    """List the recipes, or print one: a settings file to start from."""
    from covrl.recipes import find_recipe, list_recipes

    if name is not None:
        print(find_recipe(name).file.read_text(encoding="utf-8"), end="")
        return
    from rich.console import Console

    from covrl.cli.settings import show_recipes

    show_recipes(Console(), list_recipes())
