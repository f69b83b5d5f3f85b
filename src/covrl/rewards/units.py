"""Units after an answer: their normal form, and whether the question asks for a unit that the reference does not have.

``m/s^2``, ``m s^{-2}`` and ``meters per second squared`` are ``meter second -2``. ``36 cents`` is 36 if the question
asks for cents, and not if it asks for dollars. The reference does not show it, so the question has to: it must ask for
the unit ("how many cents", "in cents"), or name it and no other unit of that kind. For a noun ("72 clips") it has to
ask.
"""

from __future__ import annotations

import re
from collections import Counter

_KINDS = (
    ("dollar", "cent", "euro"),
    ("millimeter", "centimeter", "meter", "kilometer", "foot", "inch", "yard", "mile"),
    ("second", "minute", "hour", "day", "week", "month", "year"),
    ("milligram", "gram", "kilogram", "pound", "ounce"),
    ("milliliter", "liter", "gallon", "cup"),
    ("degree", "radian"),
)
_WORDS = frozenset(word for kind in _KINDS for word in kind) | {"unit", "point", "people", "newton", "joule", "watt"}
_ABBREVIATIONS = {
    "cm": "centimeter", "mm": "millimeter", "km": "kilometer", "kg": "kilogram", "foot": "foot", "feet": "foot",
    "inch": "inch", "inches": "inch", "centimetre": "centimeter", "millimetre": "millimeter", "metre": "meter",
    "kilometre": "kilometer", "litre": "liter", "millilitre": "milliliter", "min": "minute", "mins": "minute",
    "sec": "second", "secs": "second", "hrs": "hour", "hr": "hour", "lbs": "pound", "yr": "year", "yrs": "year",
    "wks": "week", "gal": "gallon", "gals": "gallon", "usd": "dollar",
}  # fmt: skip
_SYMBOLS = {
    "m": "meter", "g": "gram", "s": "second", "h": "hour", "l": "liter", "L": "liter", "ft": "foot", "in": "inch",
    "mi": "mile", "mg": "milligram", "ml": "milliliter", "mL": "milliliter", "lb": "pound", "oz": "ounce",
    "yd": "yard", "wk": "week", "N": "newton", "J": "joule", "kJ": "kilojoule", "W": "watt", "V": "volt",
    "A": "ampere", "C": "coulomb", "K": "kelvin", "Hz": "hertz", "Pa": "pascal", "mol": "mole", "rad": "radian",
}  # fmt: skip
"""Units in few letters, which may also be products of variables: read only if nothing else can be meant."""

_QUOTIENTS = {"mph": ("mile", "hour"), "kph": ("kilometer", "hour"), "kmph": ("kilometer", "hour")}
_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTER = {"squared": 2, "cubed": 3}
_TEXT_COMMAND = r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|operatorname)\s*"
_PART = re.compile(
    r"([A-Za-z]+)\.?|(/)|\^ ?\{? ?(-?[1-9]) ?\}?|\\[,;: ]|\\(?:cdot|times)(?![A-Za-z])|[ ~*{}-]|([\u00b2\u00b3])"
)
_IN_TEXT = re.compile(rf"{_TEXT_COMMAND}\{{([^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*)\}}")
_FRACTION = re.compile(r"\\frac ?\{([^{}]*)\} ?\{([^{}]*)\}")

_MONEY = re.compile(r"\\\$|(?<![\\\w])\$\d[\d,.]*(?=[\s.,;:?!)]|$)")
_DEGREES = re.compile(r"\\circ|\u00b0")
_WORD = re.compile(r"(?:(\d)\s*(?:\\[,;!]\s*)?)?(?:\\(?:text|mbox|mathrm)\s*\{\s*)?([A-Za-z]+)")
_ONLY_BEHIND_NUMBERS = frozenset({"m", "in", "g", "s", "h", "l", "mi", "mg", "min"})
_NEUTRAL = frozenset({"unit", "square", "cubic", "sq", "cu", "per"})
_LONGEST = 60


def read_unit(text: str, symbols: bool) -> str:
    r"""The normal form of a unit, such as ``meter second -2``; empty if any of ``text`` is no unit.

    ``symbols`` reads ``m`` and ``s`` too, which may also be variables.
    """
    powers: Counter[str] = Counter()
    last: list[str] = []
    sign, before, whole = 1, 1, True
    for part in _parts(text):
        plain = part.casefold()
        power = _AFTER.get(plain) or (int(part) if part.strip("-").isdigit() else 0)
        if power:
            powers.update(dict.fromkeys(last, sign * (power - 1)))
            last, whole = [], whole and bool(last)
        elif plain in ("/", "per"):
            sign, last = -1, []
        elif plain in _BEFORE:
            before = _BEFORE[plain]
        else:
            last = _names(part, symbols)
            powers.update({name: sign * one * before for name, one in zip(last, (1, -1), strict=False)})
            before, whole = 1, whole and bool(last)
    if not whole or before != 1:
        return ""
    return " ".join(name if power == 1 else f"{name} {power}" for name, power in sorted(powers.items()) if power)


def _parts(text: str) -> list[str]:
    """Words, slashes and powers; empty if the text has anything else."""
    text = _FRACTION.sub(r" \1 / \2 ", _IN_TEXT.sub(r" \1 ", text))
    found, place = [], 0
    while place < len(text) <= _LONGEST:
        part = _PART.match(text, place)
        if part is None:
            return []
        word, slash, power, small = part.groups()
        found.append(word or slash or power or {"\u00b2": "2", "\u00b3": "3"}.get(small or "") or "")
        place = part.end()
    return [part for part in found if part]


def _names(word: str, symbols: bool) -> list[str]:
    """The unit of a word; two for miles per hour; none if it is no unit."""
    if symbols and word in _SYMBOLS:
        return [_SYMBOLS[word]]
    plain = word.casefold()
    if plain in _QUOTIENTS:
        return list(_QUOTIENTS[plain])
    for name in (plain, plain.removesuffix("s")):
        name = _ABBREVIATIONS.get(name, name)
        if name in _WORDS:
            return [name]
    return [_SYMBOLS[plain]] if symbols and len(plain) > 1 and plain in _SYMBOLS else []


def unit_is_due(unit: str, question: str) -> bool:
    """Whether the question asks for an answer in ``unit`` (as :func:`read_unit` has it)."""
    needed = set(re.findall(r"[A-Za-z]+", unit)) - {"unit"}
    if not needed:
        return True
    said = _words(question)
    asked = {w for i, w in enumerate(said) if _asked_for([s for s in said[max(i - 4, 0) : i] if s not in _NEUTRAL])}
    named = set(said) | ({"dollar"} if _MONEY.search(question) else set())
    named |= {"degree"} if _DEGREES.search(question) else set()
    return all(w in asked or (w in named and not named & _others(w)) for w in needed)


def _others(word: str) -> set[str]:
    return {w for kind in _KINDS if word in kind for w in kind} - {word}


def _words(question: str) -> list[str]:
    found = []
    for number, word in _WORD.findall(question.casefold()):
        symbol = word in _SYMBOLS and not (word in _ONLY_BEHIND_NUMBERS and not number)
        found += _names(word, symbol) or [word]
    return found


def _asked_for(before: list[str]) -> bool:
    """``how many``, ``how many more``, ``number of``, ``in``: a unit after these words is asked for."""
    return (
        before[-2:] in (["how", "many"], ["number", "of"]) or before[-3:-1] == ["how", "many"] or before[-1:] == ["in"]
    )


# Nouns that are counted

_TAILS = re.compile(r",? (?:altogether|all together|in (?:all|total)|total|overall|combined)$")
_ASKED = re.compile(r"\b(?:how many|number of|how much) ([a-z' -]{1,200})")
_CLAUSE = re.compile(
    r"an?|the|and|any|are|at|be|been|but|by|can|could|did|do|does|each|every|for|from|had|has|have|her?|his|how|i|if|in|is|"
    r"its?|left|may|must|my|not|of|on|or|our|remains?|she|should|than|that|their|there|they|this|to|was|we|were|what|when|"
    r"where|which|while|who|will|with|would|your?"
)
"""Words that end the noun after "how many"."""

_AMOUNT = re.compile(
    r"hal(?:f|ve)|third|quarter|ten|dozen|score|pair|couple|hundred|thousand|(?:m|b|tr)illion|percent|maybe|perhaps|probably"
)
"""Words that change the meaning of the number before them, in the singular: allowed if the question has them too."""


def noun_is_due(words: str, question: str) -> bool:
    """Whether the words after a number are what the question counts: 72 hair clips, for "how many clips"."""
    before, said = None, words.casefold().strip(" .,")
    while said != before:
        before, said = said, _TAILS.sub("", said).strip(" .,")
    if (left := re.search(r" (?:left|remain)(?:ing|s)?$", said)) and left[0].strip()[:4] in question.casefold():
        said = said[: left.start()]
    nouns = [_singular(w) for w in re.findall(r"[a-z']+", said)]
    if not re.fullmatch(r"[a-z' -]+", said) or not nouns or any(map(_CLAUSE.fullmatch, nouns)):
        return False
    for asked in _ASKED.findall(" ".join(question.casefold().split())):
        counted = []
        for word in asked.removeprefix("of the ").split():
            if _CLAUSE.fullmatch(word):
                break
            counted.append(_singular(word))
        amounts = [[w for w in words if _AMOUNT.fullmatch(w)] for words in (nouns, counted)]
        if amounts[0] == amounts[1] and nouns[-1] in counted and set(nouns) <= set(counted):
            return True
    return False


def _singular(word: str) -> str:
    for ending, to in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("men", "man")):
        if word.endswith(ending):
            return word.removesuffix(ending) + to
    return word if word.endswith("ss") else word.removesuffix("s")
