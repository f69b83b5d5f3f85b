r"""LaTeX that lost its backslash: ``\frac`` in JSON or TOML is a form feed and ``rac``, as ``\f`` is an escape there.

A form feed or a backspace before the rest of a command is a mistake anywhere. Tabs and line ends are honest where a
word follows them, so what the word has to be depends on where it stands: ``imes`` is no word, ``an`` is one unless it
stands inside a formula.
"""

from __future__ import annotations

import re

_NAMES = {"\b": ("a backspace", "b"), "\f": ("a form feed", "f"), "\t": ("a tab", "t"), "\n": ("a line end", "n")}
_NAMES |= {"\r": ("a carriage return", "r")}
_SURE = re.compile(
    "\b[A-Za-z]+"
    "|\f(?:rac|box|orall|lat|rown|rak|bf|lushleft|ootnote)(?![A-Za-z])"
    "|\t(?:imes|frac|heta|ilde|herefore|binom|hickapprox|riangle[a-z]*|ext(?:bf|it|rm|tt|sf|normal|style)?(?=\\s*\\{))"
    "(?![A-Za-z])"
    "|\n(?:eq|abla|otin|earrow|warrow|leq|geq|mid|ewline|subseteq|supseteq|parallel|leftarrow|rightarrow)(?![A-Za-z])"
    "|\r(?:ight|ightarrow|ho|brace|rangle|angle|floor|ceil|brack|vert)(?![A-Za-z])"
)
_IN_A_FORMULA = re.compile(r"(?:\t(?:anh?|au|op?)|(?<=[ ${(=])\n(?:eg?|u|i|ot)|\r(?:m|e))(?![A-Za-z])")
_DELIMITERS = re.compile(r"\\.|\$\$|\$", re.DOTALL)
_OPEN, _CLOSED = r"\(", r"\)"


def lost_backslash(text: str, is_formula: bool = False) -> str | None:
    r"""What is wrong with a text that holds LaTeX without its backslash, and what was meant; None if nothing is.

    ``is_formula`` says that the text is mathematics outside ``$ $`` too, as answers are.
    """
    found = _SURE.search(text)
    if found is None:
        maybe = (m for m in _IN_A_FORMULA.finditer(text) if _inside(text, m.start(), is_formula))
        found = next(maybe, None)
    if found is None:
        return None
    kind, letter = _NAMES[found.group()[0]]
    rest = found.group()[1:]
    return (
        f"holds {kind} before {rest!r}, which is what \\{letter}{rest} with one backslash becomes; "
        f"write \\\\{letter}{rest}"
    )


def _inside(text: str, place: int, is_formula: bool) -> bool:
    """Whether a place is inside ``$ $`` or ``\\( \\)``; of a text that is a formula, anywhere where there are none."""
    opened = ""
    marks = [m.group() for m in _DELIMITERS.finditer(text[:place])]
    for mark in marks:
        if mark == opened:
            opened = ""
        elif not opened and mark in ("$", "$$", _OPEN):
            opened = _CLOSED if mark == _OPEN else mark
    return opened in ("$", _CLOSED) or (is_formula and not opened and "$" not in text and text.count("\n") < 2)
