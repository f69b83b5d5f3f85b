r"""Equivalent spellings: what may differ between two answers that are equal as text, and the input for math-verify.

Everything here is conservative: there is no rule that could make two different answers equal, and
text whose mathematical reading is doubtful is refused with a reason. math-verify alone reads ``1 2`` as 3, ``1e-7`` as
``e - 7``, ``3 pm`` as 3, ``listen`` as ``silent`` and ``4210_5`` as 4210.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from covrl.rewards.extract import unboxed
from covrl.rewards.units import noun_is_due, read_unit

MAX_CHARS = 1000
"""Longer answers are compared only as written: people write no longer answers."""

MAX_DEPTH = 40
"""Depth of nested brackets beyond which no sensible answer goes."""


def _letter(match: re.Match[str]) -> str:
    return match[1] or "i"


_SPELLINGS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\[lr]?vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:left|right)\s*(?=[()\[\]|]|\\[{}])"), ""),
    (re.compile(r"\\[bB]igg?[lrm]?\s*(?=[()\[\]|]|\\[{}])"), ""),
    (re.compile(r"\\displaystyle(?![A-Za-z])"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))|,\\!\s*"), ","),
    (re.compile(r"(?<!\\)\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;:\s]|(?<=[^\s$])~"), " "),  # before a number a tilde means that it is rounded
    (
        re.compile(r"\\(?:mathrm|mathit|text|textrm|operatorname) ?\{ ?([ei]) ?\}(?! ?[-+]?\d)|\\imath(?![A-Za-z])"),
        _letter,
    ),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\(le|ge)qslant(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\s+|\\q?quad(?![A-Za-z])"), " "),
]
_TEXT_COMMAND = r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|operatorname)\s*"
_WHOLE_GROUP = re.compile(rf"(?:{_TEXT_COMMAND})?\{{([^{{}}]*)\}}")
_PAIRS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("*", "*"), ("`", "`"), ("“", "”")]
_PAIRS += [('"', '"'), ("'", "'")]
_MONEY_IN_DOLLARS = re.compile(r"\A\$(-?\$ ?[\d.,]+)\$\Z")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")
_WORDS = re.compile(r"[^\W\d_]+(?:[ ,'\-]+[^\W\d_]+)*")
_LONG_WORD = re.compile(r"[^\W\d_]{3}")
_NUMBER = re.compile(r"([-+]?)(\d{0,100})(?:\.(\d{0,100}))?(?:[eE]([-+]?\d{1,3}))?")
_KEPT = {"<super>", "<sub>", "<fraction>"}  # NFKC would turn 10² into 102 and 2½ into 21/2


def normalise(text: str) -> str:
    r"""A normal form for answers that differ only in spelling.

    Unicode compatibility forms, spaces, ``$ $``, ``\( \)``, emphasis, quotes, ``\text{}``, a final full stop or comma,
    a currency sign, thousands separators, and the case of letters in words of three or more. Single letters keep
    their case: ``X`` and ``x`` are two variables.
    """
    return _strip(text)[0]


def _strip(text: str) -> tuple[str, bool]:
    """The normalised text, and whether a dollar sign marked it as money."""
    text = text.strip()
    if len(text) > MAX_CHARS:
        return text, False
    text = unboxed(_unescaped(_characters(text)))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    money = False
    before = None
    while text != before:
        before = text
        text = _MONEY_IN_DOLLARS.sub(r"\1", _ends(text))
        if text.count("$") == 1 and re.fullmatch(r"[-+]?\$ ?[\d.,]+|[-+]?[\d.,]+ ?\$", text):
            text, money = text.replace("$", "").replace(" ", ""), True
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1]
    return (text.casefold() if is_words(text) else text), money


_BACKSLASHES = re.compile(r"(\\+)([A-Za-z]{2}|[!,;$%{}()\[\]])?")


def _unescaped(text: str) -> str:
    r"""``\\\\frac`` is ``\\frac`` where all commands are written so: LaTeX that was escaped twice."""
    runs = _BACKSLASHES.findall(text) if "\\\\" in text else []
    twice = all(len(run) % 2 == 0 for run, _ in runs) and any(following for _, following in runs)
    return text.replace("\\\\", "\\") if twice else text


def _characters(text: str) -> str:
    if text.isascii():
        return text
    plain = (
        c if unicodedata.decomposition(c).split(" ")[0] in _KEPT else unicodedata.normalize("NFKC", c) for c in text
    )
    return unicodedata.normalize("NFC", "".join(plain)).replace("\u2212", "-").replace("\u2044", "/")


def _ends(text: str) -> str:
    """Remove one layer of what may surround an answer."""
    text = text.strip()
    if text[-1:] in {".", ",", ";", ":"} and text[-2:-1] not in {".", "\\"}:
        text = text[:-1].rstrip()
    for opening, closing in _PAIRS:
        inside = text[len(opening) : len(text) - len(closing)]
        around = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
        if around and opening not in inside and closing not in inside:
            text = inside.strip()
    match = _WHOLE_GROUP.fullmatch(text)
    if match:
        return match.group(1).strip()
    return text[1:-1].strip() if text[:1] == "{" and _closes(text) == len(text) - 1 else text


def _closes(text: str) -> int | None:
    r"""The place of the brace that closes the first one; ``\{`` and ``\}`` are none."""
    depth = 0
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += (mark.group() == "{") - (mark.group() == "}")
        if depth == 0:
            return mark.start()
    return None


def is_words(text: str) -> bool:
    """Whether a text consists of words and is not a formula: letters only, three in a row somewhere, and no "sin" or
    "log"."""
    return bool(_LONG_WORD.search(text) and _WORDS.fullmatch(text) and not _FUNCTION.search(text))


def plain_number(text: str) -> Fraction | None:
    """The exact value of normalised text that is one decimal number, with or without an exponent."""
    match = _NUMBER.fullmatch(text)
    if match is None or not (match.group(2) or match.group(3)):
        return None
    sign, whole, decimals, exponent = match.groups(default="")
    value = Fraction(int(whole + decimals), 10 ** len(decimals)) * Fraction(10) ** int(exponent or "0")
    return -value if sign == "-" else value


def spelling(answer: str) -> str | None:
    """A normal form for answers that are equal as text or as plain numbers; None for an empty one."""
    text = normalise(answer)
    value = plain_number(text)
    return (str(value) if value is not None else text) or None


class NotMathematicsError(ValueError):
    """Text that has no safe mathematical reading; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Expression:
    """An answer as input for math-verify.

    ``unit`` is the unit after it ("centimeter 2", "dollar", …; empty if none), ``base`` the base of a numeral
    like ``4210_5``, ``number`` the exact value where the text is a plain number, ``percent`` whether a per cent
    sign followed: ``latex`` and ``number`` are a hundredth of the number before the sign.
    """

    latex: str
    unit: str = ""
    base: int | None = None
    number: Fraction | None = None
    percent: bool = False

    @property
    def letters(self) -> frozenset[str]:
        """The variables."""
        return frozenset(re.findall(r"[A-Za-z]", COMMAND.sub(" ", self.latex)))


_TAIL = r"(?:/|\\cdot|\^ ?\{? ?-?[1-9] ?\}?|[\u00b2\u00b3 ])"
_TEXT_UNIT = re.compile(
    rf"(.*?[^\s\\]) *(/?(?:{_TEXT_COMMAND}\{{[^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)?\}}{_TAIL}*)+)", re.DOTALL
)
_FRACTION_UNIT = re.compile(rf"(.*[\d}})]) *(\\frac ?\{{ ?{_TEXT_COMMAND}.*)", re.DOTALL)
_BARE_UNIT = re.compile(
    r"(.*[\d})]) *((?:[A-Za-z]{2,}\.?[ /]?){1,4} ?(?:\^ ?\{? ?[23] ?\}?|[\u00b2\u00b3])?)", re.DOTALL
)
_SYMBOL_UNIT = re.compile(rf"(?<=[\d}})]) *((?:[A-Za-z]++{_TAIL}*+)+)$")
_NO_PRODUCT = re.compile(r"^in\.?$|^(?:sq|cu)[. ]|[23\u00b2\u00b3]")  # ft^2 and in, if there are no other letters
_WITH_EXPONENT = re.compile(r"([-+]?\d+(?:\.\d+)?[eE][-+]?\d{1,3}) ([A-Za-z\\].*)", re.DOTALL)
_COUNTED = re.compile(r"([-+]?[\d.,]*\d|[-+]?\d+ ?/ ?\d+|[-+]?\\frac ?\{\d+\} ?\{\d+\}) ([A-Za-z][A-Za-z' ,-]*)")
_NOUN_IN_TEXT = re.compile(rf" ?{_TEXT_COMMAND}\{{ ?([A-Za-z' ,-]*)\}}")
_PER_CENT = re.compile(rf"(.*[\d}})]) ?(?:{_TEXT_COMMAND}\{{ *)?per ?cent ?\}}?\Z", re.DOTALL | re.IGNORECASE)
_DEGREES = re.compile(r"(.*[\d})]) ?(?:\^ ?(?:\\circ|\{ ?\\circ ?\})|°|\\degree) ?", re.DOTALL)
_DEGREES_INSIDE = re.compile(
    r"(?<![\d.])(\d+(?:\.\d+)?) ?(?:\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|°|\\degree(?![A-Za-z]))"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_LOG_BASE = re.compile(r"\\log ?_ ?(\d) ?(?=[\d.A-Za-z(\\{])")
_BASED = re.compile(rf"(\d+) ?_ ?\{{? ?(?:{_TEXT_COMMAND}\{{)? ?(\d{{1,2}}) ?\}}*")
_SCIENTIFIC = re.compile(
    r"(?:([-+]?(?:\d{1,100}(?:\.\d{0,100})?|\.\d{1,100})) ?(?:\\times|\\cdot|\*|x) ?|)10 ?(?:\^|\*\*) ?"
    r"(?:\{ ?([-+]?\d{1,3}) ?\}|\(([-+]?\d{1,3})\)|(-?\d{1,3}))"
)
_MIXED = re.compile(r"(-?\d+) (\d+) ?/ ?(\d+)")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|exp|ln|log|pi|theta)(?![A-Za-z])")
COMMAND = re.compile(r"\\(?:begin|end) ?\{[a-z]+\}|\\[A-Za-z]+|(?<![A-Za-z])(?:and|or|sqrt)(?![A-Za-z])")
_SMALL_WORD = re.compile(r"no|is|so|it|to|of|by|at|in|on|if|we|be|an|as|my|me|us|do|go|he|up|pm|am")
_SYMBOLS = {"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot ", "÷": "/"}
_SYMBOLS |= {"±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "θ": r"\theta ", "∅": r"\emptyset "}
_DOUBTS = [
    (re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])"), "a box inside the answer"),
    (re.compile(r"\.\.|\\(?:[lc]?dots|approx|sim|simeq|overline)(?![A-Za-z])"), "dots or an approximation"),
    (re.compile(r"'|\\prime"), "a prime"),
    (re.compile(r"\d\s+\d"), "numbers side by side"),
    (re.compile(r"\d[eE][-+]?\d"), "an exponent written with e inside a formula"),
    (re.compile(r"\d ?_"), "a base inside a formula"),
    (re.compile(r"\\circ|\\degree|°"), "degrees inside a formula"),
    (re.compile(r"\\(?:text\w*|mbox) ?\{(?! ?(?:and|or) ?\})[^{}]*[A-Za-z]{2}"), "words inside a formula"),
    (re.compile(r"\\infty ?(?:\\[}]|\])|\[ ?-? ?\\infty"), "a closed end at infinity"),
    (re.compile(r"(?:\^ ?(?:\{ ?\w{1,10}|\w) ?){3}"), "a power of a power of a power"),
    (re.compile(r"%"), "per cent of a formula"),
    (re.compile(r"\\notin(?![A-Za-z])"), "what is not in a set"),
    (re.compile(r"[#?@]|\\\\?$"), "a sign that is no mathematics"),
]


def expression(text: str, question: str = "") -> Expression:
    """Make an answer ready for math-verify. After a number the noun that the question counts is allowed.

    Raises:
        NotMathematicsError: the text has no safe reading as one mathematical object, with the reason.
    """
    text, money = _strip(text)
    if len(text) > MAX_CHARS:
        raise NotMathematicsError(f"longer than {MAX_CHARS:,} characters")
    text = _PER_CENT.sub(r"\1%", _to_latex(_uncounted(text.replace("$", ""), question)), count=1)
    exponent = _WITH_EXPONENT.fullmatch(text)
    if exponent and (number := _normal_number(exponent[1])):
        text = f"{number[0]} {exponent[2]}"
    text, unit = _split_unit(text)
    if unit and _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    number = _normal_number(text)
    if number is not None:
        return Expression(number[0], "dollar" if money else unit, number=number[1])
    percent = plain_number(text.removesuffix("%").rstrip()) if text.endswith("%") else None
    if percent is not None:
        value = percent / 100
        return Expression(rf"\frac{{{value.numerator}}}{{{value.denominator}}}", unit, number=value, percent=True)
    based = _BASED.fullmatch(text)
    if based:
        return _numeral(based.group(1), int(based.group(2)))
    _refuse_doubtful(text, unit)
    return Expression(text, "dollar" if money else unit)


_PLAIN_SIGNS = [
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"(?<=[)\]]) ?U ?(?=[(\[])"), r"\\cup "),
    (re.compile(r"(?<=[\w)])\*\*(\d+)(?![\d.])"), r"^{\1}"),
    (
        re.compile(r"(?:^|(?<=[(\[,{])) ?([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?= ?(?:[,)\]\\]|$))"),
        r"\1 \\times 10^{\2}",
    ),
]
"""Signs typed without LaTeX; numbers with an exponent, as members of a list."""


def _to_latex(text: str) -> str:
    mixed = _MIXED.fullmatch(text)
    if mixed:
        return rf"{mixed.group(1)}\frac{{{mixed.group(2)}}}{{{mixed.group(3)}}}"
    for pattern, latex in _PLAIN_SIGNS:
        text = pattern.sub(latex, text)
    for symbol, latex in _SYMBOLS.items() if not text.isascii() else ():
        text = text.replace(symbol, latex)
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m.group()).replace('−', '-')}}}", text)
    text = re.sub(r"√ ?(\d+|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(
        "[¼-¾⅐-⅞]", lambda m: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", m.group()).split("⁄")), text
    )
    text = _FUNCTION.sub(r"\\\1 ", text).strip()
    text = _LOG_BASE.sub(r"\\log_{\1} ", re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10} ", text))
    if re.fullmatch(r"\\\{ ?\\\}", text):
        return r"\emptyset"
    return _DEGREES_INSIDE.sub(_radians, text) if _TRIGONOMETRIC.search(text) else text


def _radians(match: re.Match[str]) -> str:
    return rf"\left(\frac{{{match[1]} \pi}}{{180}}\right)"


def _uncounted(text: str, question: str) -> str:
    """The number alone of "72 clips"."""
    counted = _COUNTED.fullmatch(_NOUN_IN_TEXT.sub(r" \1", text)) if question else None
    if counted is None or not noun_is_due(counted[2], question):
        return text
    return counted[1].replace(",", "") if _THOUSANDS.fullmatch(counted[1]) else counted[1]


def _split_unit(text: str) -> tuple[str, str]:
    degrees = _DEGREES.fullmatch(text)
    if degrees:
        return degrees.group(1), "degree"
    for pattern in (_TEXT_UNIT, _FRACTION_UNIT, _BARE_UNIT):
        match = pattern.fullmatch(text)
        unit = (
            read_unit(match[2], pattern is not _BARE_UNIT or _NO_PRODUCT.search(match[2]) is not None) if match else ""
        )
        if match and unit:
            return match[1].strip(), unit
    return text, ""


def with_symbol_unit(read: Expression) -> Expression:
    """The reading of ``12 m^2`` as square meters and not as a product; the unchanged input if there is no such
    reading."""
    match = None if read.unit or read.number is not None else _SYMBOL_UNIT.search(read.latex)
    unit = read_unit(match[1], symbols=True) if match else ""
    head = read.latex[: match.start()].strip() if match else ""
    if not unit or re.search("[A-Za-z]", COMMAND.sub(" ", head)):
        return read
    latex, number = _normal_number(head) or (head, None)
    return Expression(latex, unit, number=number)


def _normal_number(text: str) -> tuple[str, Fraction] | None:
    r"""The LaTeX and the exact value of a decimal, also ``6.02e23`` and ``6.02 \times 10^{23}``."""
    match = _SCIENTIFIC.fullmatch(text)
    if match:
        text = f"{match[1] or '1'}e{match[2] or match[3] or match[4]}"
    number = plain_number(text)
    if number is None:
        return None
    if "e" not in text.lower():
        return text.removeprefix("+"), number
    if number.denominator == 1 and number.numerator < 10**100:
        return str(number.numerator), number
    mantissa, exponent = text.lower().removeprefix("+").split("e")
    return rf"{mantissa} \times 10^{{{exponent.removeprefix('+')}}}", number


def _numeral(digits: str, base: int) -> Expression:
    if not 2 <= base <= 36 or any(int(d) >= base for d in digits) or len(digits) > 100:
        raise NotMathematicsError(f"{digits[:100]} is no number in base {base}")
    return Expression(digits, base=base, number=Fraction(int(digits, base)))


def _refuse_doubtful(text: str, unit: str) -> None:
    if not text.strip(" .,;:"):
        raise NotMathematicsError("blank")
    for pattern, doubt in _DOUBTS:
        if pattern.search(text):
            raise NotMathematicsError(doubt)
    foreign = next((c for c in text if not c.isascii() or not c.isprintable()), None)
    if foreign is not None:
        raise NotMathematicsError(f"the character {foreign!r}")
    letters = re.findall(r"[A-Za-z]{2,}", COMMAND.sub(" ", text))
    word = next((w for w in letters if len(w) > 2 or _SMALL_WORD.fullmatch(w.casefold())), None)
    if word is not None:
        raise NotMathematicsError(f"the word {word[:40]!r}")
    if _thousands_outside_brackets(text):
        raise NotMathematicsError("a comma that may separate thousands")
    if _depth(text) > MAX_DEPTH:
        raise NotMathematicsError("brackets nested too deeply")
    if not _balanced(text):
        raise NotMathematicsError("braces that do not balance")
    if unit == "degree" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        raise NotMathematicsError("degrees inside a formula")


def _thousands_outside_brackets(text: str) -> bool:
    depth = 0
    for mark in re.findall(r"[(\[{]|[)\]}]|(?<!\d)\d{1,3},\d{3}(?!\d)", text):
        depth += (mark in "([{") - (mark in ")]}")
        if len(mark) > 1 and depth == 0:
            return True
    return False


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in re.findall(r"[(\[{}\])]", text):
        depth += 1 if c in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def _balanced(text: str) -> bool:
    depth = 0
    for c in re.findall(r"[{}]", text):
        depth += 1 if c == "{" else -1
        if depth < 0:
            return False
    return depth == 0
