r"""Properties of an answer other than its value: a list or a point, named or not, a restated question or not.

math-verify compares values. It takes ``2, 1`` for ``x = 1, y = 2``, ``5, 6`` for ``5, 5, 6``, ``5 < x < 6`` for the
point ``(5, 6)``, ``c`` for ``C``, and an integral that the question asks about for its value. If it calls two such
answers equal, the verdict is unknown (:func:`only_in_value`); otherwise nothing changes.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from covrl.rewards.normalise import COMMAND, Expression, normalise, plain_number
from covrl.rewards.units import unit_is_due

CLAIM_BREAKS = re.compile(r",|;|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|\\(?:text\w*|mbox)|\\lor|\\vee")
_INDEX = re.compile(r"_ ?\{[^{}]*\}")  # the i = 1 under a sum
_NAME = re.compile(r"[\s{}$&\\]*(\\?[A-Za-z]{1,7}|[A-Za-z] ?_ ?\{? ?\w{1,3} ?\}?)(?: ?\( ?[A-Za-z] ?\))?[\s}$]*")
_JOINED = re.compile(
    r"\\(?:text\w*|mbox) ?\{ ?(?:and|or) ?\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])|;"
)
_COMPARED = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt|cup|cap|infty|in)(?![A-Za-z])")
_TWO_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_OPENING, _CLOSING = "([{", ")]}"


# Equations


def equations(latex: str) -> list[list[str]]:
    """The sides of every part that holds an equals sign."""
    return [p.split("=") for p in CLAIM_BREAKS.split(_INDEX.sub("", latex)) if "=" in p]


def claims(latex: str, turned: bool) -> bool:
    """Whether a formula is a statement of equality and not the name of a value: 8 = 1, or x = 8 = 1, but not x = 1.

    ``turned``: 1 = x names a value too. Only for references that are equations: of the others math-verify would
    compare the last side, so that 997 = k would be k.
    """
    return any(
        len(sides) > 2 or not any(map(_NAME.fullmatch, sides if turned else sides[:1])) for sides in equations(latex)
    )


def chained(latex: str) -> bool:
    """Whether something is equal to two things at once."""
    return any(len(sides) > 2 for sides in equations(latex))


def _names(latex: str) -> frozenset[str]:
    """The names that are given a value: x and y of ``x = 1, 2 = y``."""
    found = (next(filter(None, map(_NAME.fullmatch, sides)), None) for sides in equations(latex))
    return frozenset(match.group(1).replace(" ", "") for match in found if match)


def _value(latex: str) -> str:
    """The text after the name of the only named value."""
    left, equals, right = latex.partition("=")
    named = equals and "=" not in right and _NAME.fullmatch(left)
    return (right if named else latex).strip()


# Parts


def parts(text: str) -> list[str]:
    r"""The parts between commas outside all brackets; ``and``, ``or`` and semicolons are commas too."""
    found, depth = [""], 0
    for c in _JOINED.sub(",", text):
        depth += (c in _OPENING) - (c in _CLOSING)
        if c == "," and depth == 0:
            found.append("")
        else:
            found[-1] += c
    return [part.strip() for part in found if part.strip()]


def _inside(text: str) -> str | None:
    """The content of a pair of brackets around the whole; None without one."""
    depth = 0
    for place, c in enumerate(text):
        depth += (c in _OPENING) - (c in _CLOSING)
        if depth == 0:
            return text[1:-1].strip() if place and place == len(text) - 1 else None
    return None


def _members(latex: str) -> list[str]:
    """The values of a list or of a set in braces."""
    text = _value(latex)
    braces = text.startswith(r"\{") and text.endswith(r"\}")
    inside = _inside(text[1:-2] + "}") if braces else None
    return parts(text if inside is None else inside)


def _kind(latex: str, interval: bool) -> str:
    """A point, a matrix, or neither; ``interval`` says that two values in round brackets are an interval."""
    text = _value(latex)
    if _COMPARED.search(text):
        return "range"
    if r"\begin" in text:
        return "matrix"
    inside = _inside(text) if text[:1] in {"(", "["} else None
    count = len(parts(inside)) if inside else 0
    if count < 2:
        return "values"
    return "range" if count == 2 and (interval or not (text[0] == "(" and text[-1] == ")")) else "point"


def _repeated(expected: str, said: str) -> bool:
    """Whether two lists may differ in how often a value occurs, which sets ignore."""
    one, other = ([_value(m) for m in _members(latex)] for latex in (expected, said))
    sizes = [sum(2 ** len(_TWO_SIGNS.findall(m)) for m in found) for found in (one, other)]
    counts = [Counter(map(_spelling, found)) for found in (one, other)]
    return sizes[0] != sizes[1] or (
        max(map(max, (c.values() for c in counts if c)), default=1) > 1 and counts[0] != counts[1]
    )


def _spelling(text: str) -> Fraction | str:
    number = plain_number(normalise(text))
    return "".join(text.split()) if number is None else number


def _two_cases(*texts: str) -> bool:
    letters = {c for text in texts for c in re.findall(r"[A-Za-z]", COMMAND.sub(" ", text))}
    return any(c.swapcase() in letters for c in letters)


def only_in_value(expected: Expression, said: Expression, question: str = "") -> str:
    """Why two answers that math-verify calls equal need not be; empty if there is no such reason."""
    one, other = expected.latex, said.latex
    if _two_cases(one, other):
        return "letters that differ in case only"
    names = _names(one), _names(other)
    if max(map(len, names)) > 1 and names[0] != names[1]:
        return "only one of the two says which value is which"
    interval = "interval" in question.casefold()
    kinds = {_kind(one, interval), _kind(other, interval)}
    if len(kinds) > 1 and not kinds.isdisjoint({"point", "matrix"}):
        return "a point or vector on one side only"
    if kinds == {"values"} and max(map(len, names)) <= 1 and _repeated(one, other):
        return "values that are repeated"
    return ""


# Restated questions

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_OPERATION = re.compile(r"[-+^/!]|\\(?!text|mbox|pi(?![A-Za-z])|left|right|circ)[A-Za-z]+")
_LOOK = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits|quad|qquad)(?![A-Za-z])|\\[,!;: ()\[\]]|\\(?=[$%])|[\s${}~]"
)
_QUOTIENT = re.compile(r"\\[dtc]?frac ?(?:\{ ?(\w+) ?\}|(\d)) ?(?:\{ ?(\w+) ?\}|(\d))")
_APPLIED = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln|sqrt)(?![A-Za-z])")
_EDGE = ".,;:?!"


def look(text: str, spaces: bool = False) -> str:
    r"""A formula without what may be typed differently: spaces (unless ``spaces`` keeps them), braces, delimiters,
    ``\frac12`` for 1/2.
    """
    text = _QUOTIENT.sub(lambda m: "/".join(filter(None, m.groups())), text)
    bare = _LOOK.sub(lambda m: m.group() if spaces and m.group().isspace() else "", text)
    return re.sub(r"\\[dtc]frac", r"\\frac", bare).replace(r"\cdot", "*").replace(r"\times", "*")


def beside_the_question(reference: str, expected: Expression, answer: str, said: Expression, question: str) -> str:
    """Why an answer with the right value does not answer the question; empty if there is no such reason."""
    if said.unit and not expected.unit and not unit_is_due(said.unit, question):
        return "a unit that the question does not ask for"
    numbers = expected.number is not None and said.number is not None
    numbers = numbers and "^" not in answer and "**" not in answer  # 10^3 is a formula that questions ask about
    plain = numbers and not expected.percent and not said.percent and said.base is None
    if not plain and restates(question, reference, answer):
        return "restates the question: a piece of it that does not look like the reference"
    return ""


def restates(question: str, reference: str, answer: str) -> bool:
    """Whether an answer is a part of the question, and is written differently from the reference.

    It is if it occurs in the question as a whole, or contains one of its formulas that the reference does not contain.
    Only the writing counts: ``487^2 - 513^2 + 0`` for ``513^2 - 487^2`` is not detected.
    """
    said, expected, asked = _core(answer), _core(reference), look(question)
    if not said or said == expected:
        return False
    if stands_in(said, asked):
        return True
    if _APPLIED.search(said) and stands_in(_flat(said), _flat(asked)) and _flat(said) != _flat(expected):
        return True  # a function's argument in brackets, where the question has none
    formulas = (look(next(filter(None, m.groups()))).strip(_EDGE) for m in _FORMULA.finditer(question))
    return any(
        len(f) > 2 and _OPERATION.search(f) and stands_in(f, said) and not stands_in(f, expected) for f in formulas
    )


def _flat(text: str) -> str:
    return re.sub("[()]", "", text)


def _core(text: str) -> str:
    """The writing of an answer without brackets around the whole or a name in front."""
    before, found = None, look(_value(normalise(text))).strip(_EDGE)
    while found != before:
        before = found
        inside = _inside(found) if found.startswith("(") else None
        found = found if inside is None or len(parts(inside)) > 1 else inside
    return found


def stands_in(part: str, text: str) -> bool:
    """Whether ``part`` occurs in ``text``, not as the end of a longer number or name."""
    start = text.find(part)
    while start >= 0:
        before, after = text[start - 1 : start], text[start + len(part) : start + len(part) + 1]
        more = text[start + len(part) + 1 : start + len(part) + 2]
        cut = _joins(before, part[0]) or _joins(part[-1], after) or (after == "." and more.isdigit())
        if not cut and not (before == "\\" and part[0].isalpha()):
            return True
        start = text.find(part, start + 1)
    return False


def _joins(one: str, other: str) -> bool:
    """Whether two neighbours belong to one number or word."""
    number = one.isdigit() or one == "."
    return (number and other.isdigit()) or (one.isalpha() and other.isalpha())
