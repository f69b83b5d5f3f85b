"""What a table of settings must be, and the one line that says where it is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from covrl.config.base import Settings
from covrl.config.rewards import RewardConfig
from covrl.errors import UserError

LONGEST_SHOWN = 200
"""Characters of a wrong value that a message quotes."""

Checked = TypeVar("Checked", bound=BaseModel)


def check(cls: type[Checked], table: Mapping[str, Any], where: str = "") -> Checked:
    """Validate ``table`` as ``cls``.

    Raises:
        UserError: one line that names the first wrong key (dotted), what was found, and what would be right.
    """
    try:
        return cls.model_validate(dict(table))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(where + _explain(cls, first)) from None


def _explain(cls: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"] if part not in ("(name)", "(table)", "(tables)")]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        section = _section(cls, path[:-1])
        reasons = section.absent if issubclass(section, Settings) else {}
        if path[-1] in reasons:
            return f"setting {key} makes no sense here: {reasons[path[-1]]}"
        known = list(section.model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown setting {key}: {hint}"
    if error["type"] == "missing":
        return f"setting {key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    shown = f", found {_short(error['input'])}" if not isinstance(error["input"], Mapping) else ""
    shown = "" if "password" in message else shown
    return f"setting {key}: {message}{shown}" if key else message


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of over 4,300 digits
        text = "a huge number"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _section(cls: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for part in path:
        if part.isdigit():  # of a table in a list
            continue
        if part not in cls.model_fields:  # the name of a reward, whose table is next
            cls = RewardConfig
            continue
        inner = cls.model_fields[part].annotation
        if get_origin(inner) is dict:
            continue
        found = next(_models_in(inner), None)
        if found is None:
            break
        cls = found
    return cls


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The classes of settings in a type such as ``str | tuple[SourceConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
