"""Files and folders that are there whole or not at all, also after a kill or a loss of power; the lock of a folder.

A folder is written beside its place, every file is listed with its hash in ``manifest.json`` and forced to the disk,
and one rename moves the whole to its place. :func:`damage` tells a folder that is not what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from covrl.errors import RunBusyError, UserError

MANIFEST = "manifest.json"

FOLDERS_OPEN = os.name == "posix"
"""Whether folders can be opened as files are, to lock them and to force their lists of names to the disk."""

LOCK = ".lock"
"""The file that is locked in a folder."""

NEW, OLD = ".new-", ".old-"
"""How a folder is called while it is written, and while it is being replaced."""


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file by one of this content (text as UTF-8); whoever reads it finds the old content or the new.

    Several processes may write the same file: each has a draft of its own, and the last one to finish wins.
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f"{NEW}{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def made(folder: Path) -> Path:
    """The folder, created where it is missing.

    Raises:
        UserError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    return folder


@contextmanager
def alone_in(folder: Path, what: str = "a run", lock: str = LOCK) -> Generator[None]:
    """Hold the folder's lock, which the system lets go of when the process ends, however it ends.

    ``lock`` is a file in the folder; "." locks the folder itself, which leaves no file but does not work on every
    network file system. Where folders cannot be opened (Windows) it is the file.

    Raises:
        RunBusyError: another process holds it; the message says that ``what`` is going on.
        UserError: the folder cannot be written, or its file system has no locks.
    """
    try:
        handle = _opened(folder, lock)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    try:
        _lock(handle, folder, what)
        yield
    finally:
        os.close(handle)


def _opened(folder: Path, lock: str) -> int:
    """A descriptor of what is locked, made where it is missing."""
    if lock == "." and FOLDERS_OPEN:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    # In a folder of somebody else's a link could be any file of ours: nothing is followed, and nothing emptied.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.open(folder / (LOCK if lock == "." else lock), flags, 0o666)


def _take(handle: int) -> None:
    """Take the lock or raise: BlockingIOError, or PermissionError on Windows, where another process has it."""
    try:
        import fcntl
    except ImportError:
        windows: Any = import_module("msvcrt")
        windows.locking(handle, windows.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(handle: int, folder: Path, what: str) -> None:
    try:
        _take(handle)
    except (BlockingIOError, PermissionError):
        raise RunBusyError(f"{folder}: {what} is going on in this folder; wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be locked: {error.strerror}") from None


def beside(final: Path) -> Path:
    """Where the successor of the folder ``final`` is written."""
    return final.with_name(f"{NEW}{final.name}")


@contextmanager
def discarded_if_not_done(written: Path) -> Generator[None]:
    """What fails inside leaves nothing of ``written``: a full disk gets its space back."""
    try:
        yield
    except BaseException:
        discard(written)
        raise


def begin(final: Path) -> Path:
    """An empty folder beside ``final`` to write its successor in; leftovers of a kill are removed."""
    written = beside(final)
    discard(written)
    written.mkdir(parents=True)
    return written


def finish(written: Path, final: Path, about: Mapping[str, Any]) -> None:
    """List and hash the files of ``written``, force all to the disk, and move it to ``final``.

    ``about`` goes into the manifest. What stood at ``final`` is moved aside first and deleted last: a kill in between
    leaves it, and :func:`recover` puts things right.
    """
    seal(written, about)
    old = final.with_name(f"{OLD}{final.name}")
    if final.exists():
        discard(old)
        final.rename(old)
    written.rename(final)
    sync(final.parent)
    discard(old)


def present(final: Path) -> Path | None:
    """Where the folder ``final`` is: in its place, or, after a kill inside :func:`finish`, beside it; changes nothing.

    The successor counts if it is whole; it is then newer than what it was to replace.
    """
    new, old = (final.with_name(f"{mark}{final.name}") for mark in (NEW, OLD))
    if final.is_dir():
        return final
    if new.is_dir() and damage(new) is None:
        return new
    return old if old.is_dir() else None


def recover(final: Path) -> None:
    """Put ``final`` in its place after a kill inside :func:`finish`, and remove what was left beside it."""
    found = present(final)
    if found is not None and found != final:
        found.rename(final)
        sync(final.parent)
    for mark in (NEW, OLD):
        discard(final.with_name(f"{mark}{final.name}"))


def remove(folder: Path) -> None:
    """Delete a folder so that a kill in between leaves nothing of its name."""
    doomed = folder.with_name(f"{OLD}{folder.name}")
    discard(doomed)
    folder.rename(doomed)
    discard(doomed)


def discard(folder: Path) -> None:
    """Delete what has no name of its own; what cannot be deleted stays, and nobody reads it."""
    shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a folder's files and force everything in it to the disk."""
    files = {p.relative_to(folder).as_posix(): _measure(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    content = {**about, "files": files}
    text = json.dumps({**content, "digest": _digest(content)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def manifest(folder: Path) -> dict[str, Any]:
    """What :func:`seal` wrote.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from None
    if not isinstance(content, dict) or content.pop("digest", None) != _digest(content):
        raise ValueError(f"{MANIFEST} is not as it was written")
    return content


def damage(folder: Path) -> str | None:
    """The first thing that is not as :func:`seal` left it, or None. Reads every byte, none of it outside the folder."""
    try:
        files = manifest(folder).get("files")
    except ValueError as error:
        return str(error)
    if not isinstance(files, dict) or not all(
        isinstance(s, dict) and isinstance(s.get("bytes"), int) for s in files.values()
    ):
        return f"{MANIFEST} is not as it was written"
    inside = folder.resolve()
    for name, said in files.items():
        path = folder / name
        if "\0" in name or not path.resolve().is_relative_to(inside):
            return f"{name!r} is not in the folder"
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != said["bytes"]:
            return f"{name} has {size:,} bytes instead of {said['bytes']:,}"
        try:
            found = _measure(path)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != said:
            return f"{name} is not as it was written (its sha256 differs)"
    return None


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk; of a folder, where the system can do that."""
    if not FOLDERS_OPEN and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if FOLDERS_OPEN else os.O_RDWR)  # Windows forces only what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
