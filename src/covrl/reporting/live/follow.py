"""Reads what a file of lines has gained, while another process appends to it, cuts it or replaces it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

REMEMBERED = 4096
"""Bytes before the place that was reached; if they are others now, the file was written anew."""


class Mark(NamedTuple):
    """How far a file was read: up to the byte ``end``, which follows line ``count``."""

    end: int = 0
    count: int = 0
    last: bytes = b""


class Line(NamedTuple):
    """A whole line without its line feed: its number from 1, and where it is, in bytes."""

    count: int
    at: int
    content: bytes


class News(NamedTuple):
    """What a file has gained since a mark.

    ``afresh`` says that what was read before is no longer in it; the lines then begin with the first. ``behind`` is how
    many bytes are there and were not read yet.
    """

    lines: list[Line]
    mark: Mark
    afresh: bool = False
    behind: int = 0


def follow(path: Path, mark: Mark, most: int) -> News:
    """The whole lines after ``mark``, about ``most`` bytes of them, and the mark after them.

    An unfinished last line is left for the next time. A file that is missing has gained nothing, and what was read of
    it counts on: its folder may be about to be deleted, or the file about to be replaced.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        # A pipe that somebody put there would otherwise wait for its other end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return News([], mark)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(None, "is not a file", str(path))
        afresh = not _continues(file, mark, about.st_size)
        start = Mark() if afresh else mark
        whole = _whole_lines(file, start.end, most)
        read = file.tell()
    lines, at = [], start.end
    for count, content in enumerate(whole.split(b"\n")[:-1], start=start.count + 1):
        lines.append(Line(count, at, content))
        at += len(content) + 1
    reached = Mark(at, start.count + len(lines), (start.last + whole[-REMEMBERED:])[-REMEMBERED:])
    return News(lines, reached, afresh, max(about.st_size - read, 0))


def read_at(path: Path, at: int, size: int) -> bytes:
    """``size`` bytes of a file, or fewer where it ends before.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(at)
        return file.read(size)


def _continues(file: BinaryIO, mark: Mark, size: int) -> bool:
    """Whether what was read up to the mark is still there."""
    if size < mark.end:
        return False
    file.seek(mark.end - len(mark.last))
    return file.read(len(mark.last)) == mark.last


def _whole_lines(file: BinaryIO, start: int, most: int) -> bytes:
    """The bytes from ``start`` up to a line feed: about ``most``, or one line where that is longer."""
    file.seek(start)
    parts = [file.read(most)]
    while b"\n" not in parts[-1] and (more := file.read(most)):
        parts.append(more)
    content = b"".join(parts)
    return content[: content.rfind(b"\n") + 1]
