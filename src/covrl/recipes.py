"""The recipes: settings files to start from, in a clone and in an installed wheel alike."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from covrl.errors import UserError

_PACKAGE = Path(__file__).parent
FOLDERS = (_PACKAGE / "recipe_files", _PACKAGE.parents[1] / "recipes", _PACKAGE / "quickstart")
"""Where recipes are: the wheel has those of the repository's folder inside the package."""


class Recipe(NamedTuple):
    """A settings file by name, with the first sentence or line of the comment that it begins with."""

    name: str
    file: Path
    about: str


def list_recipes() -> list[Recipe]:
    """All recipes, by name."""
    files = {file.stem: file for folder in reversed(FOLDERS) for file in folder.glob("*.toml")}
    return [Recipe(name, file, _about(file)) for name, file in sorted(files.items())]


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, with or without ``.toml``.

    Raises:
        UserError: there is none; names the nearest.
    """
    known = {recipe.name: recipe for recipe in list_recipes()}
    if (wanted := name.removesuffix(".toml")) in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1)
    raise UserError(f"no recipe {name!r}: " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"))


def _about(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
