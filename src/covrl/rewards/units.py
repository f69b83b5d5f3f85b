"""Whether the unit behind an answer is the one that was asked for, where the reference has none.

``36 cents`` is 36 if the question asks for cents, and not if it asks for dollars. The reference cannot tell, so the
question has to: it must ask for the unit ("how many cents", "in cents"), or name it and no other unit of that kind.
"""

from __future__ import annotations

import re

_KINDS = (
    ("dollar", "cent", "euro"),
    ("millimeter", "centimeter", "meter", "kilometer", "foot", "inch", "yard", "mile"),
    ("second", "minute", "hour", "day", "week", "month", "year"),
    ("milligram", "gram", "kilogram", "pound", "ounce"),
    ("milliliter", "liter", "gallon", "cup"),
    ("degree", "radian"),
)
_SAME = {
    "cm": "centimeter", "mm": "millimeter", "km": "kilometer", "m": "meter", "ft": "foot", "feet": "foot",
    "in": "inch", "inches": "inch", "mi": "mile", "kg": "kilogram", "g": "gram", "mg": "milligram", "lb": "pound",
    "oz": "ounce", "ml": "milliliter", "l": "liter", "h": "hour", "hr": "hour", "min": "minute", "sec": "second",
    "s": "second",
}  # fmt: skip
_ONLY_BEHIND_NUMBERS = frozenset({"m", "in", "g", "s", "h", "l", "mi", "mg", "min"})
_NEUTRAL = frozenset({"unit", "square", "cubic", "sq", "cu", "per"})
_MONEY = re.compile(r"\\\$|(?<![\\\w])\$\d[\d,.]*(?=[\s.,;:?!)]|$)")
_DEGREES = re.compile(r"\\circ|°")
_WORD = re.compile(r"(?:(\d)\s*(?:\\[,;!]\s*)?)?(?:\\(?:text|mbox|mathrm)\s*\{\s*)?([A-Za-z]+)")


def unit_is_due(unit: str, question: str) -> bool:
    """Whether the question asks for an answer in ``unit`` (as :class:`covrl.rewards.normalise.Expression` has it)."""
    words = [w for written in re.findall(r"[A-Za-z]+", unit) for w in _plain(written)]
    needed = {w for w in words if w not in _NEUTRAL}
    if not needed:
        return True
    said = _words(question)
    asked = {w for i, w in enumerate(said) if _asked_for([s for s in said[max(i - 4, 0) : i] if s not in _NEUTRAL])}
    named = set(said) | ({"dollar"} if _MONEY.search(question) else set())
    named |= {"degree"} if _DEGREES.search(question) else set()
    return all(w in asked or (w in named and not named & _others(w)) for w in needed)


def _others(word: str) -> set[str]:
    return {w for kind in _KINDS if word in kind for w in kind} - {word}


def _plain(word: str) -> list[str]:
    if word == "mph":
        return ["mile", "hour"]
    word = _SAME.get(word, word if len(word) < 3 else word.removesuffix("s"))
    return [_SAME.get(word, word).replace("metre", "meter").replace("litre", "liter")]


def _words(question: str) -> list[str]:
    found = []
    for number, word in _WORD.findall(question.casefold()):
        found += [word] if word in _ONLY_BEHIND_NUMBERS and not number else _plain(word)
    return found


def _asked_for(before: list[str]) -> bool:
    """``how many``, ``how many more``, ``number of``, ``in``: with these words before it, a unit is asked for."""
    return (
        before[-2:] in (["how", "many"], ["number", "of"]) or before[-3:-1] == ["how", "many"] or before[-1:] == ["in"]
    )
