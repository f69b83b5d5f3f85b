r"""Inequalities as sets: ``2 \le x \le 5 \text{ or } x > 7`` is ``[2,5]\cup(7,\infty)``.

math-verify compares one inequality with an interval, but neither joined inequalities nor a set described in words.
"""

from __future__ import annotations

import re

_OR = re.compile(r"\\(?:text\w*|mbox) ?\{ ?or ?\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee|cup)(?![A-Za-z])")
_AND = re.compile(r"\\(?:text\w*|mbox) ?\{ ?and ?\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])")
_SIGN = re.compile(r"\\(?:leq?|geq?|lt|gt|neq?)(?![A-Za-z])|<=|>=|!=|[<>=]")
_PLAIN = {r"\leq": "<=", r"\le": "<=", r"\geq": ">=", r"\ge": ">=", r"\lt": "<", r"\gt": ">"}
_PLAIN |= {r"\neq": "!=", r"\ne": "!="}
_NAME = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu)")
_BUILDER = re.compile(
    r"\\\{ ?([A-Za-z]) ?(?:\\in ?(?:\\mathbb ?\{? ?R ?\}?|R) ?)?(?:\\mid(?![A-Za-z])|:|\|) ?(.*)\\\}", re.DOTALL
)
_SET = re.compile(r"\\(?:cup|cap|infty|emptyset)(?![A-Za-z])|^ ?[(\[].*,.*[)\]] ?$", re.DOTALL)
_INTERVAL = re.compile(r" ?[(\[][^()\[\]]*,[^()\[\]]*[)\]] ?")
_INFINITE = r"\infty"


def is_inequality(latex: str) -> bool:
    """Whether a formula contains an inequality sign."""
    return any(sign.group() != "=" for sign in _SIGN.finditer(latex))


def is_set(latex: str) -> bool:
    """Whether a formula without such a sign is an interval or a union."""
    return not is_inequality(latex) and bool(_SET.search(latex))


def is_joined(latex: str) -> bool:
    """Whether several inequalities are joined, or a set is described by them."""
    return is_inequality(latex) and bool(_OR.search(latex) or _AND.search(latex) or _BUILDER.fullmatch(latex))


def united(latex: str) -> str:
    r"""Intervals that are joined by "or" as their union; anything else unchanged."""
    members = _OR.split(latex)
    intervals = len(members) > 1 and all(_INTERVAL.fullmatch(m) for m in members)
    return r"\cup".join(m.strip() for m in members) if intervals else latex


def as_set(latex: str) -> tuple[str, str] | None:
    """The variable of the inequalities and the set of its values; None if they have another form."""
    described = _BUILDER.fullmatch(latex.strip())
    members, names = [], set()
    for part in _OR.split(described[2] if described else latex):
        found = [_one(p) for p in _AND.split(part)]
        if None in found:
            return None
        names |= {name for name, _ in filter(None, found)}
        set_of = _joined([s for _, s in filter(None, found)])
        if set_of is None:
            return None
        members.append(set_of)
    return (names.pop(), r"\cup".join(members)) if len(names) == 1 else None


_Ends = tuple[str, str, str, str]
"""Bracket, lower end, upper end, bracket."""


def _joined(found: list[str | _Ends]) -> str | None:
    """The set in which all conditions hold: one of them, or a lower and an upper end."""
    if len(found) == 1:
        only = found[0]
        return only if isinstance(only, str) else _interval(only)
    if len(found) != 2 or any(isinstance(f, str) for f in found):
        return None
    lower = [f for f in found if f[1] != f"-{_INFINITE}"]
    upper = [f for f in found if f[2] != _INFINITE]
    if len(lower) != 1 or len(upper) != 1 or lower[0] is upper[0]:
        return None
    return _interval((lower[0][0], lower[0][1], upper[0][2], upper[0][3]))


def _interval(ends: _Ends) -> str:
    return f"{ends[0]}{ends[1]},{ends[2]}{ends[3]}"


def _one(text: str) -> tuple[str, str | _Ends] | None:
    """The variable of one inequality, and its set or the ends of its interval."""
    signs = [_PLAIN.get(s, s) for s in _SIGN.findall(text)]
    sides = [side.strip() for side in _SIGN.split(text)]
    if len(signs) == 2:
        low, name, high = sides
        if signs[0][0] == ">" and signs[1][0] == ">":
            low, high, signs = high, low, [_turned(signs[1]), _turned(signs[0])]
        if not (signs[0][0] == "<" and signs[1][0] == "<" and _NAME.fullmatch(name)) or not _ends(name, low, high):
            return None
        return name, ("(" if signs[0] == "<" else "[", low, high, ")" if signs[1] == "<" else "]")
    if len(signs) != 1:
        return None
    (sign,), (name, end) = signs, sides
    if not _NAME.fullmatch(name):
        name, end, sign = end, name, _turned(sign)
    if not _NAME.fullmatch(name) or not _ends(name, end):
        return None
    if sign in ("=", "!="):
        return name, rf"\{{{end}\}}" if sign == "=" else rf"(-\infty,{end})\cup({end},\infty)"
    if sign[0] == "<":
        return name, ("(", f"-{_INFINITE}", end, ")" if sign == "<" else "]")
    return name, ("(" if sign == ">" else "[", end, _INFINITE, ")")


def _turned(sign: str) -> str:
    return sign.translate(str.maketrans("<>", "><"))


def _ends(name: str, *ends: str) -> bool:
    """Whether these can be ends of an interval of values of ``name``."""
    itself = re.compile(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])")
    return all(end and not re.search("[,;]", end) and not itself.search(end) for end in ends)
