"""`covrl config` and `covrl recipe`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from covrl.config_help import Setting, check_file, chosen_settings, config_schema, list_settings
from covrl.recipes import Recipe
from covrl.reporting.text import visible


def run_config(
    names: Sequence[str], file: Path | None, schema: bool, as_json: bool, assignments: Sequence[str]
) -> None:
    """Check a file, print the schema, or list settings."""
    if file is not None:
        config = check_file(file, assignments)
        given = sum(len(table) for table in config.model_dump(exclude_unset=True).values())
        print(f"{visible(str(file))}: {given} settings, all right; the method is {config.algorithm.name}")
    elif schema:
        print(json.dumps(config_schema(), indent=2, ensure_ascii=False))
    elif as_json:
        found = chosen_settings(names) if names else list_settings()
        print(json.dumps([asdict(setting) for setting in found], ensure_ascii=False))
    else:
        show_settings(Console(), chosen_settings(names))


def show_settings(console: Console, settings: Sequence[Setting]) -> None:
    """A table of each section: name, what it may be, default, unit, evidence; the meaning below the name."""
    for section, group in groupby(settings, key=lambda setting: setting.key.rpartition(".")[0]):
        table = Table(box=box.SIMPLE_HEAD, title=Text(f"[{visible(section)}]", "bold"), title_justify="left")
        for head in ("setting", "default", "unit", "evidence"):
            table.add_column(Text(head), overflow="fold")
        for setting in group:
            about = Text.assemble(
                (setting.key.rpartition(".")[2], "bold"), (f"  {visible(setting.kind)}", "dim"),
                *([f"\n{visible(setting.about)}"] if setting.about else []),
            )  # fmt: skip
            default = "has to be given" if setting.required else json.dumps(setting.default, ensure_ascii=False)
            table.add_row(about, Text(visible(default)), Text(setting.unit), Text(setting.evidence))
        console.print(table)
    console.print(
        Text("the settings of a method: covrl config NAME; evidence is a paper's or ours, see docs/papers.md", "dim")
    )


def show_recipes(console: Console, recipes: Sequence[Recipe]) -> None:
    """Each recipe with what its first line says."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for recipe in recipes:
        table.add_row(Text(recipe.name, "bold"), Text(visible(recipe.about)))
    console.print(table)
    console.print(Text("covrl recipe NAME > run.toml; covrl train --config run.toml --dry-run", "dim"))
