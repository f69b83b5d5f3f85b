"""The names of verifiers, and the parameters that may follow one: ``numeric,relative=0.001``.

Imports no verifier, so that settings can be checked without loading any.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from covrl.errors import UserError
from covrl.plugins import installed

GROUP = "covrl.verifiers"

PARAMETERS: Mapping[str, Mapping[str, float]] = {
    "exact": {},
    "text": {},
    "math": {"seconds": 5.0},
    "numeric": {"relative": 1e-6, "absolute": 0.0},
    "choice": {},
    "countdown": {},
    "code": {"seconds": 4.0, "memory_mb": 1024.0, "allow_unisolated": 0.0},
    "reasoning-gym": {"seconds": 5.0},
}
"""Every verifier of ours, with its parameters and their defaults."""

USER_PARAMETERS: Mapping[str, float] = {"seconds": 5.0}
"""What may follow the name of a user's verifier."""


class Named(NamedTuple):
    """A verifier's name as it was written, in parts; ``set_values`` are the parameters that were given."""

    base: str
    values: Mapping[str, float]
    set_values: frozenset[str]


def parse_name(name: str, where: str = "", code: bool = False) -> Named:
    """Split ``base,parameter=value,…`` and check all of it.

    ``code`` allows ``module:function``, which no file may name. ``where`` begins the messages.

    Raises:
        UserError: no such verifier (names the nearest) or parameter, or a value that is no number above 0.
    """
    at = f"{where}: " if where else ""
    base, *rest = name.split(",")
    ours = base in PARAMETERS
    if not ours:
        _check_user_name(base, at, code)
    known = PARAMETERS[base] if ours else USER_PARAMETERS
    values = dict(known)
    for part in rest:
        key, _, raw = part.partition("=")
        if key not in known:
            listed = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"{at}verifier {base} has no parameter {key!r}: {listed}")
        values[key] = _number(raw, f"{at}verifier {base}: {key}", zero=base == "numeric" or key == "allow_unisolated")
    return Named(base, values, frozenset(p.partition("=")[0] for p in rest))


def _check_user_name(base: str, at: str, code: bool) -> None:
    if ":" in base:
        if code:
            return
        raise UserError(
            f"{at}{base!r}: only an installed entry point of the group {GROUP} may be named here; "
            f"module:function is for the command line: covrl grade --verifier {base}"
        )
    known = [*PARAMETERS, *installed(GROUP)]
    if base not in known:
        near = difflib.get_close_matches(base, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise UserError(f"{at}unknown verifier {base}: {hint}")


def _number(raw: str, what: str, zero: bool) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if not (0 < value < float("inf") or (zero and value == 0)):
        raise UserError(f"{what} must be a number {'from' if zero else 'above'} 0, found {raw!r}")
    return value
