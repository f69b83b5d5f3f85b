r"""How often a verifier is right: gold answers rewritten so that the label follows from how they were rewritten.

    python benchmarks/verifier_confusion.py --data FOLDER [--verifier math] [--seed 0] [--out FILE.md]

FOLDER holds gsm8k, math500, aime24 and amc23 with a test.jsonl each. Every gold answer is read by the small patterns of
this file (never by a verifier) and written down again in equal and in unequal forms; which of the two a form is follows
from the arithmetic that made it. Beside them stand MATH-500's own solutions, against their problem's answer and against
other problems' answers, and the formulas of its questions as answers to them. Prints, and writes to FILE.md, verdict by
label for every kind of rewriting, and each kind of miss with an example. Labels that no arithmetic decides are
conventions of this file, and said there: a unit counts where the question asks for it, a value in another base
than the reference's is not what was asked for. Where nothing decides (5 % against 5, 52_8 against 42) no pair is made.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from covrl.records import Problem
from covrl.rewards.judgement import Judgement, judge_all
from covrl.rewards.registry import open_verifier

SETS = ("gsm8k", "math500", "aime24", "amc23")
VERDICTS = ("right", "wrong", "unknown")
OTHERS_PER_SOLUTION = 5

Forms = Iterator[tuple[str, bool, str]]
"""(kind, equal to the gold answer?, the answer rewritten)."""


class Pair(NamedTuple):
    """One row: whether the response is right follows from how it was made."""

    kind: str
    same: bool
    reference: str
    response: str
    question: str = ""


# Numbers

INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d+\.\d+")
FRACTION = re.compile(r"(-?)\\d?frac\{?(\d+)\}?\{?(\d+)\}?")


def integer_forms(text: str, rng: random.Random) -> Forms:
    """A whole number, spelled otherwise and changed."""
    n, k = int(text), rng.randint(2, 9)
    yield from (
        (("decimals", True, f"{n}.{'0' * k}")),
        ("decimals", False, f"{n}.{'0' * k}1"),
        ("decimals", False, f"{n}.5"),
    )
    yield from (("fractions", True, rf"\frac{{{k * n}}}{{{k}}}"), ("fractions", True, f"{k * n}/{k}"))
    yield from (("fractions", False, rf"\frac{{{k * n + 1}}}{{{k}}}"), ("fractions", False, f"{k * n - 1}/{k}"))
    yield "numbers", False, str(n + rng.choice([-1, 1]))
    yield "numbers", False, f"{n}0" if n else "10"
    if n:
        yield "numbers", False, str(-n)
        yield "numbers", False, f"{text[:-1] or '1'}{(int(text[-1]) + k) % 10}"
        yield "fractions", False, rf"\frac{{{k}}}{{{k * n}}}" if abs(n) != 1 else rf"\frac{{{k}}}{{{k + 1}}}"
    if abs(n) > 2:
        yield from (
            ("operators", False, f"{n}^2"),
            ("operators", False, rf"\sqrt{{{abs(n)}}}"),
            ("operators", False, f"|{n}|+1"),
        )
    if 3 <= n <= 50:
        yield "operators", False, f"{n}!"
    yield from (
        ("percent", True, rf"{100 * n}\%"),
        ("percent", False, rf"{100 * n + 1}\%"),
        ("percent", False, f"{1000 * n + 7}%"),
    )
    unit = rng.choice(["cm", "dollars", "hours", "meters", "square units", "minutes"])
    yield "units", False, f"{n + 1} {unit}"
    yield from (("units", False, f"{n} million"), ("units", False, rf"{n + 2}\text{{ {unit}}}"))
    yield from (
        ("plus or minus", False, rf"{n} \pm {k}"),
        ("lists", False, f"{n}, {n + k}"),
        ("lists", False, f"{n} or {n + k}"),
    )
    yield from (
        ("lists", False, rf"\{{{n}, {n - k}\}}"),
        ("intervals", False, f"({n}, {n + k})"),
        ("intervals", False, rf"x \le {n}"),
    )
    yield from (("bases", False, f"{n}_{{{k}}}") for _ in range(1) if abs(n) >= 10)
    yield from spaced(text)
    yield from (
        ("words", False, f"not {n}"),
        ("words", False, f"at least {n}"),
        ("words", False, f"between {n} and {n + k}"),
    )
    if abs(n) >= 1000:
        yield from (
            ("commas", True, f"{n:,}"),
            ("commas", True, f"{n:,}".replace(",", "{,}")),
            ("commas", True, f"{n:,}".replace(",", r",\!")),
        )
        yield from (
            ("commas", False, f"{n + 1:,}"),
            ("commas", False, f"{n:,}".replace(",", ".", 1)),
            ("commas", False, f"{n:,}".replace(",", ", ")),
        )
        digits = str(abs(n)).rstrip("0")
        lead = f"{'-' if n < 0 else ''}{digits[0]}.{digits[1:] or '0'}"
        yield "scientific", True, rf"{lead} \times 10^{{{len(str(abs(n))) - 1}}}"
        yield "scientific", False, rf"{lead} \times 10^{{{len(str(abs(n)))}}}"


def trick_forms(text: str, rng: random.Random) -> Forms:
    """Two answers at once, and formulas that hold for anything: what a reward would be farmed with."""
    n, m = int(text), int(text) + rng.randint(2, 9)
    for form in (f"{n} = {m}", f"{m} = {n}", f"x = {n}, x = {m}", f"{n}; {m}", f"{n} | {m}", f"{n}x", "x"):
        yield "tricks", False, form
    for form in (
        rf"{n} \lor {m}",
        rf"{n} \cup {m}",
        f"x = {m} = {n}",
        rf"\ne {n}",
        rf"{n} \ne {m}",
        rf"[{n - 1}, {m}]",
    ):
        yield "tricks", False, form
    for form in (
        r"x \in \mathbb{R}",
        "0 = 0",
        "x = x",
        rf"{n} \text{{ or maybe }} {m}",
        rf"{n} \text{{ or }} {m}",
        f"{n}n",
    ):
        yield "tricks", False, form


def fraction_forms(text: str, rng: random.Random) -> Forms:
    """A quotient of whole numbers."""
    match = FRACTION.fullmatch(text.replace(" ", ""))
    if match is None:
        return
    minus, a, b = match.group(1), int(match.group(2)), int(match.group(3))
    k, value = rng.randint(2, 9), Fraction(a, b)
    yield from (("fractions", True, f"{minus}{a}/{b}"), ("fractions", True, rf"{minus}\dfrac{{{a}}}{{{b}}}"))
    yield from (
        ("fractions", True, rf"{minus}\frac{{{k * a}}}{{{k * b}}}"),
        ("fractions", True, rf"\frac{{{minus}{a}}}{{{b}}}"),
    )
    yield from (("fractions", True, rf"{minus}\tfrac {{{a}}} {{{b}}}"), ("fractions", True, f"{minus}({a})/({b})"))
    yield from (("fractions", False, rf"{minus}\frac{{{a + 1}}}{{{b}}}"), ("fractions", False, f"{minus}{a}/{b + k}"))
    yield from (
        ("fractions", False, rf"{'' if minus else '-'}\frac{{{a}}}{{{b}}}"),
        ("fractions", False, f"{minus}{a}{b}"),
    )
    if a != b:
        yield "fractions", False, rf"{minus}\frac{{{b}}}{{{a}}}"
    if a > b:
        yield "mixed numbers", True, rf"{minus}{a // b}\frac{{{a % b}}}{{{b}}}"
        yield "mixed numbers", True, f"{minus}{a // b} {a % b}/{b}"
        yield "mixed numbers", False, rf"{minus}{a // b + 1}\frac{{{a % b}}}{{{b}}}"
    exact = terminating(value)
    if exact:
        yield from (("decimals", True, f"{minus}{exact}"), ("decimals", True, f"{minus}{exact.removeprefix('0')}"))
        yield "percent", True, rf"{minus}{terminating(100 * value)}\%"
        yield "percent", False, rf"{minus}{terminating(10 * value)}\%"
    else:
        yield "decimals", True, f"{minus}{float(value):.9f}"
        yield from (
            ("decimals", False, f"{minus}{float(value):.2f}"),
            ("decimals", False, f"{minus}{float(value):.3f}"),
        )
    yield "decimals", False, f"{minus}{float(value) + 0.01:.6f}"
    yield from spaced(text)


def decimal_forms(text: str, rng: random.Random) -> Forms:
    """A number with decimals."""
    value = Fraction(text)
    yield from (
        ("decimals", True, f"{text}0"),
        ("fractions", True, rf"\frac{{{value.numerator}}}{{{value.denominator}}}"),
    )
    yield from (
        ("decimals", False, f"{text}{rng.randint(1, 9)}"),
        ("fractions", False, f"{value.numerator + 1}/{value.denominator}"),
    )
    yield from (("numbers", False, text.replace(".", "")), ("numbers", False, text.partition(".")[0]))
    yield "commas", False, text.replace(".", ", ")
    yield from (
        ("percent", True, rf"{terminating(100 * value)}\%"),
        ("percent", False, rf"{terminating(10 * value)}\%"),
    )


def terminating(value: Fraction) -> str:
    """The decimal of a fraction that has one; empty for the others."""
    places = next((p for p in range(13) if (value * 10**p).denominator == 1), None)
    if places is None:
        return ""
    digits = str(abs(int(value * 10**places))).rjust(places + 1, "0")
    return ("-" if value < 0 else "") + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


# What stands around numbers

DEGREES = re.compile(r"(-?\d+)\^\\circ")
MONEY = re.compile(r"\\\$(\d+(?:\.\d+)?)")
BASED = re.compile(r"(\d+)_\{?(\d)\}?")
WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?) ?\\(?:text|mbox)\{ ?([a-z]+)\}(?:\^2)?")
LETTER = re.compile(r"\\text\{\(([A-E])\)\}")
WORD = re.compile(r"\\text\{([A-Za-z]+)\}")
NAMES = ["west", "parabola", "Angela", "odd", "north", "circle", "neither"]


def dressed_forms(text: str, rng: random.Random) -> Forms:
    """Degrees, money, units, bases, letters and words."""
    k = rng.randint(2, 9)
    if m := DEGREES.fullmatch(text):
        n = m.group(1)
        for form in (n, f"{n} degrees", f"{n}°", rf"{n}\text{{ degrees}}", rf"{n}^{{\circ}}", rf"{n} ^ \circ"):
            yield "units", True, form
        for form in (rf"{int(n) + k}^\circ", f"{n} radians", f"-{n}", rf"{n}^\circ {k}'", rf"\sin {n}^\circ"):
            yield "units", False, form
    if m := MONEY.fullmatch(text):
        n = m.group(1)
        for form in (n, f"${n}", f"{n} dollars", f"{n}\\text{{ dollars}}", f"\\${n}" + ("" if "." in n else ".00")):
            yield "units", True, form
        for form in (f"{n} cents", f"\\${n}1", f"${n}7", f"-\\${n}"):
            yield "units", False, form
    if m := BASED.fullmatch(text):
        n, base = m.groups()
        for form in (f"{n}_{base}", f"{n}_{{{base}}}", rf"{n}_{{\text{{{base}}}}}"):
            yield "bases", True, form
        changed = str(int(n[0]) % (int(base) - 1) + 1) + n[1:]
        value = int(n, int(base))
        for form in (f"{value}_{{10}}", f"{value:b}_2", f"{value}_{10}"):  # the value, not in the base that is due
            yield "another base", False, form
        for form in (f"{n}_{{{int(base) + 1}}}", f"{n}1_{{{base}}}", f"{changed if changed != n else n + '1'}_{base}"):
            yield "bases", False, form
    if m := WITH_UNIT.fullmatch(text):
        n, unit = m.groups()
        yield from (("units", True, n), ("units", True, text.replace(r"\mbox", r"\text")), ("units", False, f"1{n}"))
        yield from (("units", False, f"{n} \\text{{ kilometers}}"), ("units", False, f"{n}7 {unit}"))
    if m := LETTER.fullmatch(text):
        letter, other = m.group(1), rng.choice([c for c in "ABCDE" if c != m.group(1)])
        for form in (
            letter,
            f"({letter})",
            rf"\text{{{letter}}}",
            rf"\textbf{{({letter})}}",
            rf"\mathrm{{({letter})}}",
        ):
            yield "letters", True, form
        for form in (f"z = {letter.lower()}", f"{letter.lower()} = z"):
            yield "case of letters", False, form
        for form in (
            other,
            f"({other})",
            rf"\text{{({other})}}",
            f"{letter} or {other}",
            f"{letter}, {other}",
            f"not {letter}",
        ):
            yield "letters", False, form
    elif m := WORD.fullmatch(text):
        word = m.group(1)
        for form in (word, word.lower(), rf"\textbf{{{word}}}", rf"\mathrm{{{word}}}", f"**{word}**", f'"{word}"'):
            yield "words", True, form
        other = rng.choice([w for w in NAMES if w.lower() != word.lower()])
        for form in (other, rf"\text{{{other}}}", f"not {word}", f"{word} or {other}", word[:-1], "none", str(k)):
            yield "words", False, form


# What has parts

GROUPED = re.compile(r"(\\left)?([(\[])(.+?)(\\right)?([)\]])")
MATRIX = re.compile(r"\\begin\{pmatrix\}(.+)\\end\{pmatrix\}")
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+")
PLUS_MINUS = re.compile(r"([^,{}()\\]*) ?\\pm ?([^,]+)")
SIMPLE = re.compile(r"-?\d+")


def parts_of(text: str) -> list[str]:
    """Split at commas outside all brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]


def changed_part(part: str, by: int) -> str:
    """Another value: one that differs from ``part`` by a whole number."""
    return str(int(part) + by) if SIMPLE.fullmatch(part) else rf"{part}+{by}"


def grouped_forms(text: str, rng: random.Random) -> Forms:
    """Points, vectors and intervals."""
    m = GROUPED.fullmatch(text)
    if m is None or r"\cup" in text:
        return
    opening, closing = m.group(2), m.group(5)
    parts = parts_of(m.group(3))
    if len(parts) < 2:
        return
    infinite = any("infty" in p for p in parts)
    kind = "intervals" if infinite or opening + closing != "()" else "points"
    if kind == "points":  # what has no order, or is no point
        listed = ", ".join(parts)
        yield from ((kind, False, listed), (kind, False, rf"\{{{listed}\}}"))
        if len(parts) == 2:
            yield kind, False, f"{parts[0]} < x < {parts[1]}"
    yield kind, True, rf"\left{opening} {', '.join(parts)} \right{closing}"
    yield kind, True, f"{opening}{','.join(parts)}{closing}"
    yield kind, True, rf"\big{opening} {' , '.join(parts)} \big{closing}"
    at = rng.choice([i for i, p in enumerate(parts) if "infty" not in p])
    new = [changed_part(p, rng.randint(1, 5)) if i == at else p for i, p in enumerate(parts)]
    yield kind, False, f"{opening}{', '.join(new)}{closing}"
    yield kind, False, f"{opening}{', '.join([*parts, '1'])}{closing}"
    if len(set(parts)) == len(parts):
        yield kind, False, f"{opening}{', '.join(reversed(parts))}{closing}"
    if SIMPLE.fullmatch(parts[at]):
        equal = [rf"\frac{{{2 * int(p)}}}{{2}}" if i == at else p for i, p in enumerate(parts)]
        yield kind, True, f"{opening}{', '.join(equal)}{closing}"
        equal = [f"{p}.0" if i == at else p for i, p in enumerate(parts)]
        yield kind, True, f"{opening}{', '.join(equal)}{closing}"
    flipped = {"(": "[", "[": "("}[opening] if "infty" not in parts[0] else opening
    other_end = closing if flipped != opening else {")": "]", "]": ")"}[closing]
    yield kind, False, f"{flipped}{', '.join(parts)}{other_end}"
    if kind == "intervals" and len(parts) == 2:
        low, high = parts
        left, right = ("<" if opening == "(" else r"\le"), ("<" if closing == ")" else r"\le")
        wrong = r"\le" if right == "<" else "<"
        if not infinite:
            yield kind, True, f"{low} {left} x {right} {high}"
            yield kind, False, f"{low} {left} x {wrong} {high}"
        elif "infty" in low and "infty" not in high:
            yield from (
                (kind, True, f"x {right} {high}"),
                (kind, False, f"x {wrong} {high}"),
                (kind, False, f"x > {high}"),
            )
        elif "infty" in high:
            more = ">" if left == "<" else r"\ge"
            yield from ((kind, True, f"x {more} {low}"), (kind, False, f"x {left} {low}"))
        yield kind, True, rf"x \in {opening}{low}, {high}{closing}"


def union_forms(text: str, rng: random.Random) -> Forms:
    """Unions of intervals."""
    if r"\cup" not in text or text.startswith("x"):
        return
    members = [m.strip() for m in text.split(r"\cup")]
    yield "intervals", True, r"\cup".join(members)
    yield "intervals", True, r" \cup ".join(reversed(members))
    yield from (("intervals", False, m) for m in members)
    yield "intervals", False, r" \cap ".join(members)
    yield "intervals", False, text.replace("(", "[", 1) if "infty" not in members[0] else text[:-1] + "]"
    yield "intervals", False, rf"{text} \cup \{{{rng.randint(900, 999)}\}}" if "infty" not in text else members[0]


def list_forms(text: str, rng: random.Random) -> Forms:
    """Several values."""
    parts = parts_of(text)
    if len(parts) < 2 or THOUSANDS.fullmatch(text) or not all(SIMPLE.fullmatch(p) for p in parts):
        return
    turned = parts[1:] + parts[:1]
    for form in (
        ",".join(parts),
        ", ".join(turned),
        rf"\{{{', '.join(turned)}\}}",
        ", ".join(parts[:-1]) + f" and {parts[-1]}",
    ):
        yield "lists", True, form
    k = rng.randint(1, 5)
    for form in (
        parts[:-1],
        parts[1:],
        [*parts, str(max(map(int, parts)) + k)],
        [str(max(map(int, parts)) + k), *parts[1:]],
    ):
        yield "lists", False, ", ".join(form)


def plus_minus_forms(text: str, rng: random.Random) -> Forms:
    r"""``a \pm b`` and its two values."""
    m = PLUS_MINUS.fullmatch(text)
    if m is None:
        return
    a, b = m.group(1).strip(), m.group(2).strip()
    k = rng.randint(1, 5)
    for form in (
        rf"{a}\pm{b}",
        f"{a} ± {b}",
        f"{a}+{b}, {a}-{b}",
        f"{a} - {b}, {a} + {b}",
        rf"{a}+{b} \text{{ and }} {a}-{b}",
        rf"\{{{a}+{b}, {a}-{b}\}}",
    ):
        yield "plus or minus", True, form
    for form in (
        f"{a}+{b}",
        f"{a} - {b}",
        rf"{a} \pm ({b}+{k})",
        rf"{a}+{k} \pm {b}",
        f"{a}+{b}, {a}-{b}, {k + 90}",
        rf"\pm {b}",
    ):
        yield "plus or minus", False, form


def matrix_forms(text: str, rng: random.Random) -> Forms:
    """Matrices and column vectors."""
    m = MATRIX.fullmatch(text)
    if m is None:
        return
    rows = [[e.strip() for e in row.split("&")] for row in m.group(1).split(r"\\")]

    def written(rows: Sequence[Sequence[str]], name: str = "pmatrix", gap: str = " ") -> str:
        return (
            rf"\begin{{{name}}}{gap}"
            + rf"{gap}\\{gap}".join(f"{gap}&{gap}".join(r) for r in rows)
            + rf"{gap}\end{{{name}}}"
        )

    yield from (("matrices", True, written(rows, gap="")), ("matrices", True, written(rows, "bmatrix")))
    quotients = [[re.sub(r"(-?)(\d+)/(\d+)", r"\1\\frac{\2}{\3}", e) for e in r] for r in rows]
    doubled = [[rf"\frac{{{2 * int(e)}}}{{2}}" if SIMPLE.fullmatch(e) else e for e in r] for r in rows]
    yield from (("matrices", True, written(quotients)), ("matrices", True, written(doubled)))
    i, j = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    changed = [[changed_part(e, 2) if (p, q) == (i, j) else e for q, e in enumerate(r)] for p, r in enumerate(rows)]
    yield from (
        ("matrices", False, written(changed)),
        ("matrices", False, written(rows[:-1])),
        ("matrices", False, written([*rows, rows[0]])),
    )
    if rows != rows[::-1]:
        yield "matrices", False, written(rows[::-1])
    if len(rows) != len(rows[0]):
        yield "matrices", False, written([list(c) for c in zip(*rows, strict=True)])


# Formulas

TERMS = re.compile(r"[^+\-{}()\\]+|\\[a-z]+\{[^{}]*\}|\\[a-z]+")
FORMULA = re.compile(r"[-+0-9A-Za-z^{}\\ ()]+")


def terms_of(text: str) -> list[str]:
    """The signed terms of a sum, split outside all brackets."""
    terms, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c in "+-" and depth == 0 and terms[-1].strip() and not terms[-1].rstrip().endswith("^"):
            terms.append("")
        terms[-1] += c
    return ["".join(t.split()) if t.strip()[:1] in {"+", "-"} else t.strip() for t in terms]


def formula_forms(text: str, rng: random.Random) -> Forms:
    """Roots, multiples of pi, polynomials, complex numbers."""
    plain = FORMULA.fullmatch(text) and not re.search(
        r"\d ?\\frac|\\(?:text|mbox|begin|pm|circ|cup|in|left|infty)", text
    )
    if not plain or INTEGER.fullmatch(text) or FRACTION.fullmatch(text.replace(" ", "")):
        return
    k = rng.randint(2, 9)
    terms = terms_of(text)
    if len(terms) > 1:
        signed = [t if t[0] in "+-" else f"+{t}" for t in terms]
        turned = signed[1:] + signed[:1]
        yield "formulas", True, "".join(turned).removeprefix("+")
        yield "formulas", True, " ".join(reversed(signed)).removeprefix("+")
        yield "formulas", False, "".join(signed[:-1]).removeprefix("+")
        swapped = [*signed[:-1], ("-" if signed[-1][0] == "+" else "+") + signed[-1][1:]]
        yield "formulas", False, "".join(swapped).removeprefix("+")
    for form in (
        rf"\frac{{{k}({text})}}{{{k}}}",
        f"({text})",
        f"1 \\cdot ({text})",
        f"-(-({text}))",
        f"{k} + ({text}) - {k}",
    ):
        yield "formulas", True, form
    for form in (
        f"({text}) + {k}",
        f"{k}({text})",
        f"-({text})",
        f"({text})^2+1",
        rf"\frac{{{text}}}{{{k}}}",
        str(k + 1000),
    ):
        yield "formulas", False, form
    if m := re.search(r"\d+", text):
        yield "formulas", False, f"{text[: m.start()]}{int(m.group()) + k}{text[m.end() :]}"
    letters = re.findall(r"(?<![\\A-Za-z])[a-hj-z](?![A-Za-z])", text)
    if letters:
        cased = re.sub(rf"(?<![\\A-Za-z]){letters[0]}(?![A-Za-z])", letters[0].upper(), text)
        name = "q" if letters[0] != "q" else "w"
        for form in (cased, f"{name} = {cased}", f"{cased} + 0 {name}"):
            yield "case of letters", False, form
        yield "formulas", False, re.sub(rf"(?<![\\A-Za-z]){letters[0]}(?![A-Za-z])", "u", text)
        yield "formulas", False, re.sub(rf"(?<![\\A-Za-z]){letters[0]}(?![A-Za-z])", "3", text)
    yield from spaced(text)


def equation_forms(text: str, rng: random.Random) -> Forms:
    """``y = 2x + 3`` and the like."""
    left, equals, right = text.partition("=")
    if not equals or "," in text:
        return
    left, right = left.strip(), right.strip()
    k = rng.randint(2, 9)
    yield from (("equations", True, f"{left}={right}"), ("equations", True, f"{right} = {left}"))
    yield from (("equations", False, f"{left} = {right} + {k}"), ("equations", False, f"{left} + {k} = {right}"))
    yield "equations", False, f"{left} = {k}({right}) + 1"


def spaced(text: str) -> Forms:
    """The same in other LaTeX: spaces, delimiters, size commands."""
    for form in (
        f"${text}$",
        rf"\({text}\)",
        rf"\[ {text} \]",
        rf"\, {text} \,",
        rf"{{{text}}}",
        rf"\displaystyle {text}",
        rf"\left({text}\right)",
        f"{text}.",
        rf"{text}\!",
        f" {text} \n",
    ):
        yield "LaTeX spacing", True, form


MAKERS: tuple[Callable[[str, random.Random], Forms], ...] = (
    dressed_forms,
    grouped_forms,
    union_forms,
    list_forms,
    plus_minus_forms,
    matrix_forms,
    equation_forms,
)


def forms_of(text: str, rng: random.Random) -> Forms:
    """Every rewriting that this file knows for an answer."""
    if INTEGER.fullmatch(text):
        yield from integer_forms(text, rng)
        yield from trick_forms(text, rng)
    elif DECIMAL.fullmatch(text):
        yield from decimal_forms(text, rng)
    elif FRACTION.fullmatch(text.replace(" ", "")):
        yield from fraction_forms(text, rng)
    else:
        for maker in MAKERS:
            yield from maker(text, rng)
        for form in (
            f"{text}, 997",
            rf"{text} \text{{ or }} 997",
            rf"\{{{text}, 997\}}",
            f"{text} = 997",
            f"997 = {text}",
        ):
            yield "tricks", False, form
        if "=" not in text and "," not in text:
            yield from formula_forms(text, rng)


# Responses

TEMPLATES = (
    "We add them up. \\boxed{{{}}}",
    "So the result is $\\boxed{{{}}}$.",
    "Adding up.\n#### {}",
    "<think>12 of 7</think>\n<answer>{}</answer>",
    "<answer> {} </answer>",
)


def around(answer: str, other: str, rng: random.Random) -> Iterator[tuple[bool, str]]:
    """A gold answer and another one in the text around: which of the two is given last decides."""
    yield True, f"First guess: \\boxed{{{other}}}. That is not it. So \\boxed{{{answer}}}."
    yield False, f"First guess: \\boxed{{{answer}}}. That is not it. So \\boxed{{{other}}}."
    yield True, f"The answer is {other}? No. Therefore, the answer is {answer}."
    yield False, f"The answer is {answer}? No. Therefore, the answer is {other}."
    yield True, f"Of {rng.randint(10, 99)}, the **final answer is: {answer}**"
    yield False, f"It is {answer} at first, but 1 more, so the answer is **{other}**."
    yield True, f"<answer>{other}</answer> is too much.\n<answer>\n${answer}$\n</answer>"
    yield False, f"{answer} {answer} {answer}\n#### {other}"
    yield False, f"\\boxed{{{answer} \\text{{ or }} {other}}}"
    yield False, f"\\boxed{{{answer}, {other}}}"


def build_pairs(answers: Mapping[str, Sequence[str]], seed: int = 0, per_set: int = 60) -> list[Pair]:
    """Rewritten pairs of up to ``per_set`` plain numbers of each set, and of all its other answers; seeded."""
    rng = random.Random(seed)
    pairs: dict[Pair, None] = {}
    for golds in answers.values():
        numbers = sorted({g for g in golds if INTEGER.fullmatch(g)}, key=int)
        chosen = rng.sample(numbers, min(per_set, len(numbers)))
        for gold in [*chosen, *sorted({g for g in golds if not INTEGER.fullmatch(g)})]:
            for kind, same, form in forms_of(gold, rng):
                pairs[Pair(kind, same, gold, rng.choice(TEMPLATES).format(form))] = None
        for gold in chosen:
            for same, response in around(gold, str(int(gold) + rng.randint(1, 9)), rng):
                pairs[Pair("text around", same, gold, response)] = None
        pairs |= dict.fromkeys(percent_pairs(chosen, rng))
        pairs |= dict.fromkeys(unit_pairs(chosen, rng))
        pairs |= dict.fromkeys(several_pairs(chosen, rng))
    return list(pairs)


def percent_pairs(numbers: Iterable[str], rng: random.Random) -> Iterator[Pair]:
    """Where the gold answer is per cent."""
    for n in map(int, numbers):
        gold, k = rf"{n}\%", rng.randint(1, 9)
        for same, form in (
            (True, terminating(Fraction(n, 100))),
            (True, f"{n}%"),
            (True, rf"{n}.0 \%"),
            (True, rf"\frac{{{n}}}{{100}}"),
        ):
            yield Pair("percent", same, gold, f"\\boxed{{{form}}}")
        for words in ("per cent", "percent", r"\text{ per cent}"):
            yield Pair("percent in words", True, gold, f"\\boxed{{{n} {words}}}")
            if n:  # a hundredth of it; where the question asks for per cent, it is the reference that is careless
                yield Pair("percent in words", False, str(n), f"\\boxed{{{n} {words}}}")
            yield Pair("percent in words", False, gold, f"\\boxed{{{n + k} {words}}}")
        for form in (
            rf"{n + k}\%",
            terminating(Fraction(n + k, 100)),
            rf"{n}0\%" if n else r"5\%",
            rf"{-abs(n) - k}\%",
        ):
            yield Pair("percent", False, gold, f"\\boxed{{{form}}}")


UNITS = (("dollars", "cents"), ("hours", "minutes"), ("meters", "cm"), ("feet", "inches"))


def unit_pairs(numbers: Iterable[str], rng: random.Random) -> Iterator[Pair]:
    """A unit behind the answer to a question that asks for it, or for another unit of the kind.

    A convention and no arithmetic: a reference without a unit takes the unit that the question asks for.
    """
    for n in map(int, numbers):
        asked, other = rng.choice(UNITS)
        question = f"It was 7 {other} each day. How many {asked} is that?"
        for form in (f"{n} {asked}", rf"{n} \text{{ {asked}}}", str(n)):
            yield Pair("units asked for", True, str(n), f"\\boxed{{{form}}}", question)
        if n:
            for form in (f"{n} {other}", rf"{n} \text{{ {other}}}", rf"{n} \text{{ {other}}}^2"):
                yield Pair("units not asked for", False, str(n), f"\\boxed{{{form}}}", question)
        yield Pair("units asked for", False, str(n), f"\\boxed{{{n + 1} {asked}}}", question)


def several_pairs(numbers: Iterable[str], rng: random.Random) -> Iterator[Pair]:
    """Two values that are named, and values that stand in a list twice."""
    for n in map(int, numbers):
        m = n + rng.randint(1, 9)
        named = f"x={n},y={m}"
        for form in (f"y={m}, x={n}", f"x = {n}, y = {m}", rf"x={n} \text{{ and }} y={m}"):
            yield Pair("named values", True, named, f"\\boxed{{{form}}}")
        for form in (f"x={m},y={n}", f"{m}, {n}", rf"\{{{m}, {n}\}}", f"x={n}", f"x={n}, x={m}"):
            yield Pair("named values", False, named, f"\\boxed{{{form}}}")
        repeated = f"{n}, {n}, {m}"  # without spaces it may be one number
        for form in (f"{m}, {n}, {n}", f"{n}, {m}, {n}"):
            yield Pair("repeated values", True, repeated, f"\\boxed{{{form}}}")
        for form in (f"{n}, {m}", f"{n}, {m}, {m}", rf"\{{{n}, {m}\}}", f"{n}, {n}, {n}, {m}"):
            yield Pair("repeated values", False, repeated, f"\\boxed{{{form}}}")


QUESTION_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\[(.+?)\\\]", re.DOTALL)
DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)


def restated_pairs(rows: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Every formula of a question, and each side of an equation, as the answer to it, unless the answer looks so.

    Many have the right value: that is what the question asks to work out. None is an answer.
    """
    pairs: dict[Pair, None] = {}
    for row in rows:
        for match in QUESTION_FORMULA.finditer(DRAWING.sub("", row["problem"])):
            formula = next(filter(None, match.groups())).strip().rstrip(".,")
            sides = formula.split("=") if "=" in formula else []
            for part in map(str.strip, (formula, *sides)):
                if part and _bare(part) != _bare(row["answer"]):
                    response = f"<answer>{part}</answer>"
                    pairs[Pair("restated question", False, row["answer"], response, row["problem"])] = None
    return list(pairs)


def solution_pairs(rows: Sequence[Mapping[str, str]], seed: int = 0, others: int = OTHERS_PER_SOLUTION) -> list[Pair]:
    """Worked solutions against their own answer, and against answers of other problems that are not the same text."""
    rng = random.Random(seed)
    pairs = [Pair("solutions, own answer", True, r["answer"], r["solution"], r.get("problem", "")) for r in rows]
    for row in rows:
        candidates = [r for r in rows if _bare(r["answer"]) != _bare(row["answer"])]
        for other in rng.sample(candidates, min(others, len(candidates))):
            asked = other.get("problem", "")
            pairs.append(Pair("solutions, another's answer", False, other["answer"], row["solution"], asked))
    return pairs


def _bare(answer: str) -> str:
    """An answer without what may differ between two spellings of one value in these data."""
    text = re.sub(
        r"\\left|\\right|\\[!,;]|\\text|\\mbox|\\\$|\^\\circ|[\s{}(),]|^[a-z]=", "", answer.replace("dfrac", "frac")
    )
    match = re.fullmatch(r"(-?)\\?frac(\d)(\d)", text)
    return f"{match.group(1)}\\frac{match.group(2)}{match.group(3)}" if match else text


# The table


def verdicts(pairs: Sequence[Pair], verifier: str) -> list[Judgement]:
    """What the verifier of that name says."""
    with open_verifier(verifier) as judge:
        return judge_all(judge, [(Problem(str(i), p.question, p.reference), p.response) for i, p in enumerate(pairs)])


def false_right(pairs: Sequence[Pair], judged: Sequence[Judgement]) -> list[Pair]:
    """The pairs that matter most: not equal, and right for the verifier."""
    return [p for p, j in zip(pairs, judged, strict=True) if j.verdict == "right" and not p.same]


def table(pairs: Sequence[Pair], judged: Sequence[Judgement]) -> str:
    """Verdict by label for every kind, as Markdown."""
    counts = Counter((p.kind, p.same, j.verdict) for p, j in zip(pairs, judged, strict=True))
    kinds = sorted({p.kind for p in pairs})
    lines = [
        "| kind | equal: right | wrong | unknown | unequal: right | wrong | unknown |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in [*kinds, None]:
        cells = [
            sum(c for (k, s, w), c in counts.items() if kind in {k, None} and s is same and w == verdict)
            for same in (True, False)
            for verdict in VERDICTS
        ]
        lines.append(f"| {kind or '**all**'} | {' | '.join(f'{c:,}' for c in cells)} |")
    return "\n".join(lines)


def misses(pairs: Sequence[Pair], judged: Sequence[Judgement]) -> str:
    """Every kind of miss (all but right for equal and wrong for unequal), with its count and its shortest example."""
    found: dict[tuple[bool, str, str, str], list[tuple[Pair, Judgement]]] = {}
    for pair, said in zip(pairs, judged, strict=True):
        if said.verdict != ("right" if pair.same else "wrong"):
            found.setdefault((pair.same, said.verdict, pair.kind, said.why.split(":")[0]), []).append((pair, said))
    lines = ["| label | verdict | kind | why | pairs | gold | answer |", "|---|---|---|---|--:|---|---|"]
    for (same, verdict, kind, _), rows in sorted(found.items(), key=lambda item: (item[0][:3], -len(item[1]))):
        pair, said = min(rows, key=lambda r: len(r[0].reference) + len(r[1].extracted or r[0].response))
        label = "equal" if same else "unequal"
        shown = [_cell(pair.reference), _cell(said.extracted or pair.response[-60:])]
        lines.append(
            f"| {label} | {verdict} | {kind} | {said.why.replace('|', '')} | {len(rows):,} | {shown[0]} | {shown[1]} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return "`` " + " ".join(text.split()).replace("|", "\\|")[:100] + " ``"


def read_answers(data: Path) -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    """The gold answers of every set, and MATH-500's rows."""
    rows = {
        name: [json.loads(line) for line in (data / name / "test.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in SETS
    }
    answers = {
        name: [
            str(r["answer"])
            .rpartition("####")[2]
            .strip()
            .removesuffix(".0")
            .replace(",", "" if name == "gsm8k" else ",")
            for r in found
        ]
        for name, found in rows.items()
    }
    return answers, rows["math500"]


def main() -> None:
    """Build, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--verifier", default="math")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    answers, math500 = read_answers(options.data)
    rewritten, solutions = build_pairs(answers, options.seed), solution_pairs(math500, options.seed)
    texts = []
    restated = restated_pairs(math500)
    sets = (("Rewritten answers", rewritten), ("MATH-500 solutions", solutions), ("MATH-500 questions", restated))
    for title, pairs in sets:
        judged = verdicts(pairs, options.verifier)
        texts += [f"## {title}: {len(pairs):,} pairs, verifier `{options.verifier}`, seed {options.seed}"]
        texts += [table(pairs, judged), "Every kind of miss, with the shortest example:", misses(pairs, judged)]
    text = "\n\n".join(texts) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
