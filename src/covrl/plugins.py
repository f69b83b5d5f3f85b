"""Code that is not ours, by name: an installed entry point, or ``module:object`` where a person typed it.

A configuration file may name installed entry points only, so that a file alone can never make code run that nobody
installed. On the command line and in Python ``module:object`` is taken as well. The same holds for the address of an
engine on another machine, which is sent prompts and a key: a file names one of this machine, a person any.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from covrl.errors import UserError

REWARDS = "covrl.rewards"
ALGORITHMS = "covrl.algorithms"

NAMING_SETTINGS = (("algorithm", "name", "--algorithm"), ("rewards", "function", "--reward"))
"""Settings that name code: section, key, and the option that may give ``module:object`` for it."""


def installed(group: str) -> list[str]:
    """Names of the installed entry points of a group, in order."""
    return sorted({point.name for point in entry_points(group=group)})


def load_named(name: str, group: str, where: str, what: str, ours: Iterable[str] = ()) -> Any:
    """The object behind the name of an installed entry point, or behind ``module:object``.

    ``where`` is the setting and ``what`` it names, for messages; ``ours`` are further names that would be right.

    Raises:
        UserError: no such entry point (names the nearest), or it cannot be imported.
    """
    if ":" in name:
        return _imported(name, where)
    found = [point for point in entry_points(group=group) if point.name == name]
    if not found:
        known = sorted({*ours, *installed(group)})
        near = difflib.get_close_matches(name, known, n=1)
        listed = f"known: {', '.join(known)}" if known else f"no entry point of the group {group} is installed"
        raise UserError(f"{where}: unknown {what} {name!r}: " + (f"did you mean {near[0]}?" if near else listed))
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: the entry point {name!r} ({found[0].value}) cannot be loaded: {error}") from error


def refuse_code_in_file(table: Mapping[str, Any], file: Path) -> None:
    """A file names installed entry points only.

    Raises:
        UserError: a setting of it is ``module:object``.
    """
    sections = [(section, key, f"{option} ", table.get(section)) for section, key, option in NAMING_SETTINGS]
    sections += [(f"reward.{name}", "function", f"--reward {name}=", part) for name, part in reward_tables(table)]
    for section, key, option, part in sections:
        value = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(value, str) and ":" in value:
            raise UserError(
                f"{file}: {section}.{key} = {value!r}: a file may name an installed entry point only; "
                f"give it on the command line instead: {option}{value}"
            )


def reward_tables(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Name and settings of each reward function, in either spelling (``[[reward]]``, ``[reward.NAME]``), unchecked."""
    given = table.get("reward")
    if isinstance(given, Mapping):
        return list(given.items())
    parts = given if isinstance(given, list) else []
    return [(str(part.get("name")) if isinstance(part, Mapping) else "?", part) for part in parts]


def refuse_address_in_file(table: Mapping[str, Any], file: Path) -> None:
    """A file alone sends nothing to another machine: prompts and ``VLLM_API_KEY`` go to the engine that it names.

    Raises:
        UserError: its engine's address is not on the loopback interface.
    """
    part = table.get("generation")
    value = part.get("engine") if isinstance(part, Mapping) else None
    if isinstance(value, str) and "://" in value and not all(map(is_loopback, map(str.strip, value.split(",")))):
        raise UserError(
            f"{file}: generation.engine = {value!r}: a file may name an engine on this machine only (127.0.0.1), as "
            f"prompts and VLLM_API_KEY go there; give it on the command line instead: --set generation.engine={value}"
        )


def is_loopback(address: str) -> bool:
    """Whether what is sent to a URL stays on this machine; a name other than ``localhost`` may lead anywhere."""
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _imported(name: str, where: str) -> Any:
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the folder that the command was typed in
    try:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: cannot import {name!r}: {error}") from error
    return found
