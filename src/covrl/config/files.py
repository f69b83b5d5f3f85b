"""Settings in TOML files and in ``section.key=value`` assignments: read, changed, written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from covrl.config.checks import LONGEST_SHOWN, check
from covrl.config.prompts import PromptConfig
from covrl.config.rewards import rewards_by_name
from covrl.config.schema import RunConfig
from covrl.config.styles import STYLED
from covrl.errors import UserError
from covrl.escapes import lost_backslash
from covrl.plugins import refuse_address_in_file, refuse_code_in_file


def override(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    r"""Apply ``a.b=value`` assignments to a nested table; values are TOML, bare words are strings.

    In a bare word for ``[prompts]`` the escapes of TOML's strings count too: ``\n`` is a line end.

    Raises:
        UserError: an assignment without ``=``, one that goes through a value that is not a table, or a bare word for
            ``[prompts]`` with a backslash of which nobody knows whether it begins an escape.
    """
    result = _copied(table)
    if isinstance(result.get("reward"), list):
        try:
            result["reward"] = rewards_by_name(result["reward"])
        except ValueError as error:
            raise UserError(f"setting reward: {error}") from None
    for text in assignments:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"--set {text}: not UTF-8")
        path, equals, raw = text.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set {text}: expected section.key=value")
        *sections, key = path.strip().split(".")
        inner = result
        for part in sections:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {text}: {part} is a value, not a section")
        value = _toml_value(raw.strip())
        if sections == ["prompts"] and value == raw.strip():  # a bare word; a line end from the shell belongs to it
            value = _prompt_text(text, raw.strip(" "))
        inner[key] = value
        _refuse_lost_backslash(f"--set {path.strip()}", inner[key])
    return result


def typed_rewards(config: RunConfig) -> list[str]:
    """The reward functions that no file may name, as ``--reward`` takes them."""
    one, several = config.rewards.function, config.reward.items()
    return [one] * (":" in one) + [f"{name}={part.function}" for name, part in several if ":" in part.function]


def reward_assignments(typed: Sequence[str]) -> list[str]:
    """What ``--reward`` sets: ``module:function`` the one function, ``NAME=module:function`` that of ``[[reward]]``.

    Raises:
        UserError: two functions without a name.
    """
    plain = [text for text in typed if "=" not in text]
    if len(plain) > 1:
        raise UserError(
            f"--reward {plain[0]} --reward {plain[1]}: several functions need a name each: --reward NAME={plain[0]}"
        )
    named = (text.partition("=") for text in typed if "=" in text)
    return [f"rewards.function={text}" for text in plain] + [f"reward.{n}.function={f}" for n, _, f in named]


def _copied(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in table.items()}


_LINE_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\[nrt]")
_QUOTE = re.compile(r'(\\.)|"', re.DOTALL)


def _prompt_text(assignment: str, raw: str) -> str:
    r"""A bare word with its ``\n``, ``\t`` and ``\r`` as TOML reads them; one without these as it is (``\boxed{}``).

    Raises:
        UserError: TOML does not know another of its escapes, or one of them may begin a command of LaTeX (``\neq``).
    """
    if not _LINE_ESCAPE.search(raw):
        return raw
    quoted = _QUOTE.sub(lambda m: m[1] or '\\"', raw)
    said = _toml_value(f'"""\n{quoted}"""')  # three quotes take line ends as they are
    if said == f'"""\n{quoted}"""' or lost_backslash(said, is_formula=True):
        raise UserError(
            f"--set {assignment}: a bare word with \\n and other commands may be meant in two ways; put it in quotes "
            "of TOML's: \"…\" where \\n is a line end and \\\\ a backslash, '…' as it stands"
        )
    return said


def _refuse_lost_backslash(where: str, value: Any) -> None:
    """Refuse a text of ``[prompts]`` in which TOML has read ``\\boxed`` as a backspace and ``oxed``."""
    lost = lost_backslash(value) if isinstance(value, str) else None
    if lost:
        raise UserError(f"{where} {lost}, or use single quotes, in which TOML reads no escapes")


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):  # no TOML; a number of over 4,300 digits; very deep nesting
        return raw


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: the file is missing or is not TOML, with the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:  # also a number of over 4,300 digits, and very deep nesting
        raise UserError(f"{path}: not a TOML file: {str(error)[:LONGEST_SHOWN]}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run from a file, which names installed code only.

    Raises:
        UserError: as :func:`read_toml`, or a setting is ``module:object``.
    """
    table = read_toml(path)
    refuse_code_in_file(table, path)
    prompts = table.get("prompts")
    for name, value in prompts.items() if isinstance(prompts, Mapping) else ():
        _refuse_lost_backslash(f"{path}: prompts.{name}", value)
    return table


def refuse_idle_style(table: Mapping[str, Any], assignments: Sequence[str], where: str) -> None:
    """Raise where ``--set`` names another style or template than ``table``, which is of ``where``, to no effect.

    Raises:
        UserError: every field that the two styles, or the two templates, have words for is set.
    """
    own, changed = table.get("prompts", {}), override(table, assignments).get("prompts", {})
    if not isinstance(own, Mapping) or not isinstance(changed, Mapping):
        return
    for name, what in (("style", "style"), ("posterior_template", "template")):
        default = PromptConfig.model_fields[name].default
        before, after = ({**changed, name: part.get(name, default)} for part in (own, changed))
        if before == after:
            continue
        try:
            was, now = PromptConfig.model_validate(before), PromptConfig.model_validate(after)
        except ValidationError:  # said where the settings are checked
            return
        if was.model_copy(update={name: after[name]}) == now:
            raise UserError(
                f"--set prompts.{name}={after[name]}: the whole wording is in {where}, so a {what} changes nothing; "
                f"leave it out, or set what is to change ({', '.join(f'prompts.{field}' for field in sorted(STYLED))})"
            )


def config_from(file: Path, assignments: Sequence[str]) -> RunConfig:
    """The settings of a file with ``section.key=value`` assignments applied.

    Raises:
        UserError: as :func:`read_settings`, a setting is wrong (says whether the file or ``--set`` has it), or the file
            names an engine on another machine, which no assignment does.
    """
    table = read_settings(file)
    changed = override(table, assignments)
    refuse_idle_style(table, assignments, str(file))
    typed = override({}, assignments).get("generation")
    if not (isinstance(typed, Mapping) and "engine" in typed):
        refuse_address_in_file(table, file)
    try:
        return check(RunConfig, changed)
    except UserError as error:
        where = str(file) if _is_wrong(table) else "--set"
        raise UserError(f"{where}: {error}") from None


def _is_wrong(table: Mapping[str, Any]) -> bool:
    try:
        check(RunConfig, table)
    except UserError:
        return True
    return False


def to_toml(config: BaseModel) -> str:
    """The settings as TOML text that :func:`read_toml` gives back."""
    lines: list[str] = []
    for section, table in config.model_dump(mode="json").items():
        if not table:
            continue
        lines.append(f"[{section}]")
        lines += [f"{_toml_key(key)} = {_toml_text(value)}" for key, value in table.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_text(key)


def _toml_text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_text(v)}" for k, v in value.items() if v is not None) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # what JSON allows and TOML does not
