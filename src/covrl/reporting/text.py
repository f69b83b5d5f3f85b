"""Makes text that a model or a data set wrote safe to show, without hiding what it holds."""

from __future__ import annotations

import re
import unicodedata

from covrl.secrets import redacted

LONGEST_MESSAGE = 2000
"""Limit in characters: a file may contain a name of a megabyte in the place of a setting."""

_JOINERS = "\u200c\u200d"  # they shape ordinary Persian, Hindi and emoji text, so they stay as they are
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_DIGITS = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?")


def _shown(char: str) -> str:
    """One character as it is to be printed; an unprintable one becomes its code point's name."""
    code = ord(char)
    if char in "\n\t" or char in _JOINERS:
        return char
    noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if not noncharacter and unicodedata.category(char) not in _HIDDEN:
        return char
    return f"<U+{code:04X}>"  # as in `less`; the Control Pictures block has no glyphs in many fonts


def visible(text: str) -> str:
    """The text with control characters, direction marks and lone surrogates replaced by visible stand-ins.

    Line feeds and tabs stay. The result always encodes as UTF-8 and never moves a terminal's cursor.

    Example:
        >>> visible("a\\x00b")
        'a<U+0000>b'
    """
    # isprintable() is true for nearly every line, and scanning in C is some fifty times faster.
    return text if text.isprintable() else "".join(map(_shown, text))


def one_line(text: str, limit: int | None = None) -> str:
    """Visible text on one line, white space runs collapsed, cut to ``limit`` characters with an ellipsis."""
    line = " ".join(visible(text).split())
    return line if limit is None or len(line) <= limit else line[: max(limit - 1, 0)].rstrip() + "…"


def message(text: str) -> str:
    """An error message on one line that every terminal can show; it may quote a file, a model or another package."""
    line = " ".join(visible(redacted(text)).split("\n")).strip()
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}…"


def clip(text: str, limit: int) -> tuple[str, int]:
    """The first ``limit`` characters, and how many were left out."""
    return text[:limit], max(len(text) - limit, 0)


def warning_key(text: str) -> str:
    """The identity of a warning: its text without its numbers."""
    return _DIGITS.sub("#", text)
