"""What a value of a row is called, which texts can be used, and the one line that an error is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from covrl.errors import UserError
from covrl.escapes import lost_backslash

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(text: str, spot: str, is_formula: bool = False) -> None:
    """A text of a row is there, is Unicode text, and has its backslashes.

    Raises:
        UserError: it is not; begins with ``spot``.
    """
    if not text.strip():
        raise row_error(spot, "nothing but white space" if text else "empty")
    if lone := _LONE_SURROGATE.search(text):
        code = f"\\u{ord(lone[0]):04x}"
        raise row_error(spot, f"holds {code}, half of a surrogate pair, which is no character; correct it or remove it")
    if lost := lost_backslash(text, is_formula):
        raise row_error(spot, lost)


def kind(value: Any) -> str:
    """What a message calls a value that should have been another."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return f"the number {value}"
        case str():
            return "text"
        case list():
            return "a list"
        case Mapping():
            return "an object"
        case _:
            return type(value).__name__


def row_error(where: str | Path, what: str) -> UserError:
    """The error about a place in a source of problems."""
    return UserError(_printable(f"{where}: {what}"))


def _printable(text: str) -> str:
    """The text on one line that every terminal can show: line ends, controls and lone surrogates are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
