"""`covrl compare`: methods trained on the same model and problems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import Settings, cpu_defaults


def compare(
    config: Annotated[Path, typer.Option(help="TOML file of a run: methods are compared on its model and problems.")],
    algorithms: Annotated[str, typer.Option(metavar="A,B,…", help="Methods or their named variants.")],
    settings: Settings = None,
    seeds: Annotated[str, typer.Option(metavar="0,1,…", help="Seeds of the runs.")] = "0,1,2",
    rates: Annotated[str, typer.Option(metavar="R,…", help="Learning rates. [the file's]")] = "",
    budget: Annotated[str, typer.Option(help="steps or tokens (generated): what is the same for all.")] = "steps",
    steps: Annotated[int | None, typer.Option(min=1, help="With --budget steps. [the file's]")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="With --budget tokens.")] = 300_000,
    split: Annotated[
        str | None,
        typer.Option(
            help="What the trained models are measured on: held_out or test. [both, where the file has problems.test]"
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", "--samples", min=0, help="Samples per problem (avg@n, pass@k).")] = 8,
    limit: Annotated[
        int | None, typer.Option("--limit", "--problems", min=1, help="Measure on the first problems only.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of table, page and results. [runs/compare-NAME]"),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the table and the page.")] = "compare",
    commit: Annotated[
        str | None, typer.Option(help="Count results of this commit only; HEAD: the present one.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. [one a core; on an accelerator 1]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each training. [cores divided by jobs]")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List finished and missing results; run nothing.")] = False,
) -> None:
    """Train methods on the same model and problems, a few at a time, and compare them; what is missing is run."""
    cpu_defaults()
    from covrl.comparison.compare import ask_for, compare_and_show

    folder = out or Path("runs") / f"compare-{config.stem}"
    typed = (algorithms, seeds, rates, budget, steps, tokens, split, n, limit, folder, commit)
    asked = ask_for(config, settings or [], *typed)
    if not compare_and_show(asked, name, only_list, jobs, threads):
        raise typer.Exit(1)
