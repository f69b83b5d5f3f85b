"""Numbers as text for people; the same rules in the terminal and in the report."""

from __future__ import annotations

import math

ABSENT = "–"

UNITS = {"share": "%", "nats": "nats", "tokens": "tokens", "seconds": "s", "": ""}

ENDS = {"length": "cut off", "eos": "no closing tag"}
VERDICTS = {"right": "✓ right", "wrong": "✗ wrong", "unknown": "? unknown"}


def end_word(finish: str) -> str:
    """How a trace ended, for a page."""
    return ENDS.get(finish, finish)


def verdict_word(verdict: str | None) -> str:
    """A verdict with its sign, for a page; a dash where there is none."""
    return ABSENT if verdict is None else VERDICTS.get(verdict, verdict)


def verdict_class(verdict: str | None) -> str:
    """The CSS class of a verdict."""
    return verdict if verdict in ("right", "wrong") else "unknown"


def number(value: float | None, unit: str = "", *, sign: bool = False) -> str:
    """A value with about three significant digits; ``share`` values are multiplied by 100 and end in ``%``.

    Example:
        >>> number(0.2384, "share"), number(-12.345), number(None)
        ('23.8 %', '-12.3', '–')
    """
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    plus = "+" if sign else ""
    if unit == "share":
        return f"{100 * value:{plus}.1f}\u00a0%"
    return _digits(value, plus)


def _digits(value: float, plus: str) -> str:
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 99_999.5 or size < 0.000_95:
        return f"{value:{plus}.1e}"
    if size >= 99.95:
        return f"{value:{plus},.0f}"
    if size >= 9.995:
        return f"{value:{plus}.1f}"
    return f"{value:{plus}.2f}" if size >= 0.0995 else f"{value:{plus}.2g}"


def typeset(text: str) -> str:
    """The text with a real minus sign before numbers, for places that can always show Unicode."""
    return text.replace("-", "\u2212")


def duration(seconds: float) -> str:
    """Seconds as ``48s``, ``3m12s`` or ``2h05m``."""
    if not math.isfinite(seconds) or seconds < 0:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
