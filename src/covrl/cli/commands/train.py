"""`covrl train`: a run, new or resumed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.console import several
from covrl.cli.options import Settings, cpu_defaults
from covrl.errors import UserError


def train(
    config: Annotated[Path | None, typer.Option(help="TOML file with the run's settings.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/NAME-DATE-TIME]")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue a run from its newest checkpoint.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show prompts, sampled traces and the cost; train nothing.")
    ] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="8x80GB",
            help="With --dry-run: memory by phase on hardware that is not there, from the model's config alone.",
        ),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="NAME", help="Method: a name of `covrl algorithms`, or module:class.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Reward function: an entry point, or module:function; as NAME=module:function one of several, and may "
            "be repeated.",
        ),
    ] = None,
) -> None:
    """Train a model on problems, with the settings of a TOML file."""
    if (config is None) == (resume is None):
        raise UserError("give either --config FILE or --resume RUN")
    engine = _only_engine(settings or []) if resume is not None else None
    if resume is not None and (out or dry_run):
        raise UserError("--resume continues the run as it is: leave --out and --dry-run out")
    if plan is not None and not dry_run:
        raise UserError("--plan shows what a run would take and trains nothing: give --dry-run with it")
    if dry_run and several():
        raise UserError("--dry-run works as one process: start it without torchrun")
    cpu_defaults()
    from covrl.config import config_from, reward_assignments

    named = [f"algorithm.name={algorithm}"] * bool(algorithm) + reward_assignments(reward or [])
    checked = config_from(config, [*named, *(settings or [])]) if config else None  # before the seconds of torch
    if plan is not None and checked is not None:
        from covrl.cli.plan import run_plan

        run_plan(checked, plan)
        return
    folder = resume or out or Path("runs") / f"{config.stem if config else 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    from covrl.cli.train import run_train

    run_train(checked, folder, dry_run, algorithm, reward, engine)


def _only_engine(settings: list[str]) -> str | None:
    """The one setting that a resume accepts: an engine's address on another machine has to be typed."""
    from covrl.config import override

    typed = override({}, settings)
    generation = typed.pop("generation", {})
    if typed or not isinstance(generation, dict) or generation.keys() - {"engine"}:
        raise UserError(
            "--resume continues the run as it is: leave --set out, but for generation.engine; the other settings that "
            "may change are changed in the run's config.toml"
        )
    return generation.get("engine")
