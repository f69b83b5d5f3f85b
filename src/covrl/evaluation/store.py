"""Finished problems on disk: one JSON-lines file for each model and exam, appended to as problems are finished.

The first line has the settings of the records; continuing with other settings is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covrl.errors import UserError
from covrl.evaluation.exam import Solved, digest, from_json, to_json
from covrl.files import write_file
from covrl.models.model import Unloaded
from covrl.records import Problem

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.index.json", "config.json", "adapter_config.json", "tokenizer*.json")
"""The files of a model's folder that determine its answers."""


@dataclass(slots=True)
class Store:
    """The file of one model and exam, and what is in it."""

    path: Path
    solved: dict[str, Solved]

    def add(self, finished: Iterable[Solved]) -> None:
        """Append records; they are on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            for record in finished:
                file.write(to_json(record) + "\n")
                self.solved[record.problem] = record

    def left(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems that have no record yet.

        Raises:
            UserError: a problem with a record has changed since.
        """
        missing = []
        for problem in problems:
            known = self.solved.get(problem.id)
            if known is None:
                missing.append(problem)
            elif known.digest != digest(problem):
                raise UserError(
                    f"{self.path}: problem {problem.id} is not what it was when it was answered; choose another --out"
                )
        return missing


def open_store(path: Path, header: Mapping[str, Any]) -> Store:
    """The records of a file that was made with the same settings, or of a new one.

    A last line that was not written whole is dropped; its problem is sampled again.

    Raises:
        UserError: the file cannot be used, or was made with other settings; names the first that differs.
    """
    try:
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(header)) + "\n", encoding="utf-8")
            return Store(path, {})
        if whole != raw:
            path.write_bytes(whole)
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror}") from None
    first, *lines = whole.removesuffix(b"\n").split(b"\n")
    try:
        then = json.loads(first)
        records = [from_json(line) for line in lines]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a file of `covrl eval`; move it away or choose another --out") from None
    _same(path, then, json.loads(json.dumps(dict(header))))
    return Store(path, {record.problem: record for record in records})


def _same(path: Path, then: Any, now: Mapping[str, Any], prefix: str = "") -> None:
    if not isinstance(then, Mapping):
        raise UserError(f"{path}: not a file of `covrl eval`; move it away or choose another --out")
    for key in dict.fromkeys([*now, *then]):
        old, new = then.get(key), now.get(key)
        if key not in then and new in ("", {}):  # a setting that was added after the file was made, and is not used
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            _same(path, old, new, f"{prefix}{key}.")
        elif old != new:
            raise UserError(
                f"{path}: was made with {prefix}{key} = {old!r}, and now it is {new!r}; "
                "give the same again, or choose another --out"
            )


def slug(name: str) -> str:
    """A name as part of a file name; different names stay different."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


class Fingerprints:
    """Identifies a model's weights: a hash of all bytes of its folder's weights and settings.

    Hashes of whole files are kept in ``file`` with size and modification time, so that continuing does not read every
    file again; a file that was changed since is read again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):  # none yet, or not ours: all files are read
            found = {}
        self._known: dict[str, Any] = found if isinstance(found, dict) else {}

    def of(self, folder: Path) -> str:
        """The fingerprint of a folder or file; empty for anything else (a hub id)."""
        if folder.is_file():  # a model in one file
            return self._hash(folder)[:16]
        if not folder.is_dir():
            return ""
        names = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
        found = hashlib.sha256()
        for path in names:
            found.update(f"{path.name}/{self._hash(path)}/".encode())
        return found.hexdigest()[:16]

    def of_model(self, model: Unloaded) -> str:
        """The fingerprint of a model and its base, and of a snapshot of the hub its commit."""
        folders = [self.of(Path(path)) for path in dict.fromkeys((model.source, model.base))]
        return "-".join(filter(None, [*folders, getattr(model.config, "_commit_hash", None)]))

    def save(self) -> None:
        """Write the hashes for the next call.

        Raises:
            OSError: the file cannot be written.
        """
        write_file(self.file, json.dumps(self._known, indent=1))

    def _hash(self, path: Path) -> str:
        state, key = path.stat(), str(path.resolve())
        now = [state.st_size, state.st_mtime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and len(known) == 3 and known[:2] == now:
            return str(known[2])
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[key] = [*now, found]
        return found
