"""The runs with 8-bit moments of test_eight_bit.py: on one process in the test's own, on two by worlds.py."""

from __future__ import annotations

from pathlib import Path

import many

from covrl import api
from covrl.config import RunConfig
from covrl.distributed.processes import join_world
from covrl.training.run import Run


def config(folder: Path) -> RunConfig:
    """That of ``many``'s case of float64, with 8-bit moments, and no evaluation."""
    settings = many.config(folder, "covrl").model_dump(mode="json")
    settings["training"]["eight_bit_moments"] = True
    settings["evaluation"]["every"] = 0
    return RunConfig.model_validate(settings)


def train(folder: Path, out: Path) -> None:
    api.train(config(folder), many.PROBLEMS, None, out)


def resume(out: Path) -> Run:
    run = api.resume(out, many.PROBLEMS)
    api.train_run(run, out)
    return run


def main(folder: Path) -> None:
    world = join_world("cpu")
    train(folder, folder / "by-two")
    assert resume(folder / "one-cut").world.sharded
    for name in ("two-cut", "two-again"):
        world.on_rank0(lambda name=name: many.cut(folder / "by-two", folder / name))
    resume(folder / "two-again")
    world.close()
