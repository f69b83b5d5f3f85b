"""Methods by name: ours, and those of installed packages (entry-point group ``covrl.algorithms``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from covrl.config import AlgorithmTable, Settings, check
from covrl.errors import UserError
from covrl.plugins import ALGORITHMS as GROUP
from covrl.plugins import load_named

if TYPE_CHECKING:
    from covrl.algorithms.base import Algorithm, Setup

ALGORITHMS = {
    "covrl": "covrl.algorithms.covrl:CoVRL",
    "verifree": "covrl.algorithms.verifree:VeriFree",
    "rlpr": "covrl.algorithms.rlpr:RLPR",
    "jepo": "covrl.algorithms.jepo:JEPO",
    "latro": "covrl.algorithms.latro:LaTRO",
    "ravr": "covrl.algorithms.ravr:RAVR",
    "nover": "covrl.algorithms.nover:NOVER",
    "rationalise": "covrl.algorithms.rationalise:Rationalise",
    "opsd": "covrl.algorithms.opsd:OPSD",
    "nrt": "covrl.algorithms.nrt:NRT",
    "grpo": "covrl.algorithms.grpo:GRPO",
    "dr_grpo": "covrl.algorithms.dr_grpo:DrGRPO",
    "dapo": "covrl.algorithms.dapo:DAPO",
    "rloo": "covrl.algorithms.rloo:RLOO",
    "reinforce_pp": "covrl.algorithms.reinforce_pp:ReinforcePP",
    "gspo": "covrl.algorithms.gspo:GSPO",
    "cispo": "covrl.algorithms.cispo:CISPO",
    "psr": "covrl.algorithms.nsr:PSR",
    "nsr": "covrl.algorithms.nsr:NSR",
    "w_reinforce": "covrl.algorithms.nsr:WReinforce",
    "rapo": "covrl.algorithms.rapo:RAPO",
    "dash": "covrl.algorithms.dash:DASH",
    "rover": "covrl.algorithms.rover:ROVER",
    "ppo": "covrl.algorithms.ppo:PPO",
    "vineppo": "covrl.algorithms.vineppo:VinePPO",
    "cure": "covrl.algorithms.cure:CURE",
    "clip_delta": "covrl.algorithms.clip_delta:ClipDelta",
    "tempo": "covrl.algorithms.tempo:TEMPO",
    "thr": "covrl.algorithms.thr:THR",
    "nthr": "covrl.algorithms.thr:NTHR",
    "tw_grpo": "covrl.algorithms.tw_grpo:TWGRPO",
    "steer": "covrl.algorithms.steer:STEER",
    "dhpo": "covrl.algorithms.dhpo:DHPO",
    "c3po": "covrl.algorithms.c3po:C3PO",
}


def find_algorithm(name: str) -> type[Algorithm]:
    """The class of a method.

    Raises:
        UserError: no such method (names the nearest), or what the name stands for is not a method.
    """
    from covrl.algorithms.base import Algorithm

    if name in ALGORITHMS:
        module, _, attribute = ALGORITHMS[name].partition(":")
        return getattr(import_module(module), attribute)
    found: Any = load_named(name, GROUP, "algorithm.name", "method", ours=ALGORITHMS)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"algorithm.name: {name!r} is not a subclass of covrl.algorithms.base.Algorithm")
    return found


def make_algorithm(table: AlgorithmTable, setup: Setup) -> Algorithm:
    """The method with its own settings checked.

    Raises:
        UserError: unknown method, unknown or wrong setting.
    """
    cls = find_algorithm(table.name)
    return cls(check(cls.Config, table.settings, where="[algorithm] "), setup)


def with_every_setting(table: AlgorithmTable, cls: type[Algorithm], where: str = "") -> AlgorithmTable:
    """The table with the method's defaults in the place of what it leaves out; ``where`` begins an error's message.

    A run keeps this, so that a later version with other defaults resumes it as it was. Two kinds of settings stay left
    out: those that are None, which TOML cannot write, and those that the method refuses beside the others because they
    would do nothing.

    Raises:
        UserError: unknown or wrong setting.
    """
    settings = check(cls.Config, table.settings, where=f"{where}[algorithm] ")
    values = {name: value for name, value in settings.model_dump(mode="json").items() if value is not None}
    whole = {name: value for name, value in values.items() if name in table.settings}
    for name, value in values.items():
        if _means({**whole, name: value}, settings):
            whole[name] = value
    in_order = {name: whole[name] for name in values if name in whole}  # the same however many of them were given
    return AlgorithmTable(name=table.name, **in_order)


def _means(table: dict[str, Any], settings: Settings) -> bool:
    """Whether a method's table is accepted, and as these settings."""
    try:
        return type(settings).model_validate(table) == settings
    except ValidationError:
        return False
