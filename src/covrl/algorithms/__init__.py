"""Methods by name."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from covrl.config import AlgorithmTable, check
from covrl.errors import UserError

if TYPE_CHECKING:
    from covrl.algorithms.base import Algorithm, Setup

ALGORITHMS = {
    "covrl": "covrl.algorithms.covrl:CoVRL",
}


def find_algorithm(name: str) -> type[Algorithm]:
    """The class of a method.

    Raises:
        UserError: no such method; names the nearest.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(ALGORITHMS))}"
        raise UserError(f"algorithm.name: unknown method {name!r}: {hint}")
    module, _, attribute = ALGORITHMS[name].partition(":")
    return getattr(import_module(module), attribute)


def make_algorithm(table: AlgorithmTable, setup: Setup) -> Algorithm:
    """The method with its own settings checked.

    Raises:
        UserError: unknown method, unknown or wrong setting.
    """
    cls = find_algorithm(table.name)
    return cls(check(cls.Config, table.settings, where="[algorithm] "), setup)
