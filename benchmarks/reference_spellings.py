r"""Whether a verifier knows MATH-500's own references in other spellings: none may come out wrong.

    python benchmarks/reference_spellings.py [--data ../shared/data/math500/test.jsonl] [--verifier math]

Every reference is written down again in every way of this file that applies to it: other LaTeX for the same formula,
other signs and fences around it, its unit in words, its number in other digits, and other places in a response. Prints
verdicts by way, and each answer that was not right; ends with 1 where one was wrong. Skips, and says so, without data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from covrl.records import Problem
from covrl.rewards.judgement import Judgement, judge_all
from covrl.rewards.registry import open_verifier

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "math500" / "test.jsonl"

PLACES: Mapping[str, str] = {
    "boxed in dollars": r"So $\boxed{{{}}}$.",
    "boxed twice": r"\boxed{{\boxed{{{}}}}}",
    "answer tag": "<think>No \\boxed{{17}}.</think>\n<answer>{}</answer>",
    "boxed in a tag": r"<answer>$\boxed{{{}}}$</answer>",
    "answer is": "So the answer is ${}$.",
    "final answer": "\u2705 Final Answer: **${}$**",
    "next line": "The answer is:\n\n$${}$$",
    "hashes": "#### {}",
}
"""Where in a response an answer may stand."""

FENCES: Mapping[str, str] = {
    "dollars": "${}$",
    "two dollars": "$${}$$",
    "round fence": r"\({}\)",
    "square fence": r"\[ {} \]",
    "bold": "**{}**",
    "full stop": "{}.",
    "braces": "{{{}}}",
    "thin spaces": r"\, {} \,",
    "display style": r"\displaystyle {}",
}
"""What may stand around an answer."""

_UNIT = r"\\(?:text|mbox|mathrm) ?\{ ?([a-zA-Z ]+)\}"


def _changed(pattern: str, to: str | Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: compiled.sub(to, text)


def _whole(pattern: str, to: Callable[[re.Match[str]], str]) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: to(m) if (m := compiled.fullmatch(text)) else text


def _spaced(text: str) -> str:
    outside = re.split(r"(\\[A-Za-z]+(?:\{[A-Za-z ]*\})?|\\.|(?<=\d),(?:\\!)? ?(?=\d{3}))", text)
    return "".join(p if i % 2 else re.sub(r"([-+=<>,()])", r" \1 ", p) for i, p in enumerate(outside))


def _grouped(m: re.Match[str]) -> str:
    return f"{int(m[0]):,}"


def _decimal(m: re.Match[str]) -> str:
    value = Fraction(int(m[2]), int(m[3]))
    places = next((p for p in range(7) if (value * 10**p).denominator == 1), None)
    return m[0] if places is None else f"{m[1]}{float(value):.{places}f}"


def _quotient(m: re.Match[str]) -> str:
    value = Fraction(m[0])
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


_FRACTION = r"(-?)\\d?frac\{?(\d+?)\}?\{?(\d+)\}?"

FORMS: Mapping[str, Callable[[str], str]] = {
    "dfrac": _changed(r"\\frac(?![a-z])", r"\\dfrac"),
    "tfrac": _changed(r"\\d?frac(?![a-z])", r"\\tfrac"),
    "frac without braces": _changed(r"\\d?frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
    "frac with braces": _changed(r"\\d?frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
    "slash": _whole(_FRACTION, lambda m: f"{m[1]}{m[2]}/{m[3]}"),
    "decimal": _whole(_FRACTION, _decimal),
    "fraction": _whole(r"-?\d*\.\d+", _quotient),
    "point zero": _whole(r"-?\d+", lambda m: f"{m[0]}.0"),
    "doubled": _whole(r"-?\d+", lambda m: rf"\frac{{{2 * int(m[0])}}}{{2}}"),
    "scientific": _whole(r"([1-9])(0{2,})", lambda m: rf"{m[1]} \times 10^{{{len(m[2])}}}"),
    "named": _whole(r"-?\d+", lambda m: f"x = {m[0]}"),
    "thousands": _whole(r"-?\d{4,}", _grouped),
    "thousands in braces": _whole(r"-?\d{4,}", lambda m: _grouped(m).replace(",", "{,}")),
    "thousands closed up": _whole(r"-?\d{4,}", lambda m: _grouped(m).replace(",", r",\!")),
    "no thousands": _whole(r"(\\\$)?\d{1,3}(,(\\!)? ?\d{3})+", lambda m: re.sub(r",(\\!)? ?", "", m[0])),
    "left and right": lambda t: re.sub(r"(?<!left)\(", r"\\left(", re.sub(r"(?<!right)\)", r"\\right)", t)),
    "no left and right": _changed(r"\\(?:left|right) ?(?=[()\[\]|])", ""),
    "big": lambda t: re.sub(r"\\(?:left|right)(?=[()\[\]])", r"\\big", t),
    "spaces": _spaced,
    "no spaces": lambda t: t if re.search(r"\\(?:text|mbox|begin)|\\[a-z]+ [A-Za-z]", t) else t.replace(" ", ""),
    "powers in braces": _changed(r"\^([0-9a-z])(?![0-9a-z}])", r"^{\1}"),
    "roots in braces": _changed(r"\\sqrt ?(\d)(?!\d)", r"\\sqrt{\1}"),
    "roots without braces": _changed(r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    "pi": _changed(r"\\pi(?![a-z])", "\u03c0"),
    "infinity": _changed(r"\\infty(?![a-z])", "\u221e"),
    "union": _changed(r"\\cup(?![a-z])", "\u222a"),
    "plus or minus": _changed(r"\\pm(?![a-z])", "\u00b1"),
    "at most": _changed(r"\\leq?(?![a-z])", r"\\leqslant "),
    "minus": _changed(r"-", "\u2212"),
    "brackets of matrices": _changed(r"pmatrix", "bmatrix"),
    "imaginary unit": _changed(r"(?<![A-Za-z\\{])i(?![A-Za-z])", r"\\mathrm{i}"),
    "degree in braces": _changed(r"\^\\circ", r"^{\\circ}"),
    "degree sign": _changed(r"\^\\circ", "\u00b0"),
    "degrees": _changed(r"\^\\circ", r" \\text{ degrees}"),
    "no degree": _whole(r"(\d+)\^\\circ", lambda m: m[1]),
    "unit upright": _changed(_UNIT, r"\\mathrm{\1}"),
    "unit in a box": _changed(_UNIT, r"\\mbox{ \1}"),
    "unit in the open": _changed(rf"(?<=\d) ?{_UNIT}", r" \1"),
    "no unit": _whole(rf"([\d.]+) ?{_UNIT}", lambda m: m[1]),
    "words in the open": _whole(r"\\text\{\(?([A-Za-z ]+)\)?\}", lambda m: m[1]),
    "words in bold": _whole(r"\\text\{\(?([A-Za-z ]+)\)?\}", lambda m: rf"\textbf{{{m[1]}}}"),
    "no dollar": _changed(r"\\\$", ""),
    "dollars in words": _whole(r"\\\$([\d.]+)", lambda m: f"{m[1]} dollars"),
    "per cent": _changed(r"\\%", "%"),
    "escaped twice": lambda t: t if "\\\\" in t else t.replace("\\", "\\\\"),
}
"""The same answer in other characters; a form that leaves an answer as it is does not apply to it."""


class Spelled(NamedTuple):
    """A reference in another spelling, in a response."""

    way: str
    reference: str
    response: str
    question: str


def spellings(reference: str, question: str = "") -> Iterator[Spelled]:
    """Every way in which this file writes a reference."""
    for way, place in PLACES.items():
        yield Spelled(way, reference, place.format(reference), question)
    for way, fence in FENCES.items():
        yield Spelled(way, reference, f"<answer>{fence.format(reference)}</answer>", question)
    for way, form in FORMS.items():
        written = form(reference)
        if written != reference:
            yield Spelled(way, reference, f"\\boxed{{{written}}}", question)


def verdicts(rows: Sequence[Spelled], verifier: str) -> list[Judgement]:
    """What the verifier of that name says."""
    with open_verifier(verifier) as judge:
        return judge_all(judge, [(Problem("p", r.question, r.reference), r.response) for r in rows])


def table(rows: Sequence[Spelled], judged: Sequence[Judgement]) -> str:
    """Verdicts by way, as Markdown."""
    counts = Counter((row.way, said.verdict) for row, said in zip(rows, judged, strict=True))
    lines = ["| way | right | unknown | wrong |", "|---|--:|--:|--:|"]
    for way in [*PLACES, *FENCES, *FORMS]:
        cells = [counts[way, verdict] for verdict in ("right", "unknown", "wrong")]
        lines += [f"| {way} | {' | '.join(map(str, cells))} |"] if any(cells) else []
    total = [sum(n for (_, v), n in counts.items() if v == verdict) for verdict in ("right", "unknown", "wrong")]
    return "\n".join([*lines, f"| **all** | {' | '.join(f'{n:,}' for n in total)} |"])


def main() -> int:
    """Spell, judge, print; 1 where a reference is wrong against itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--verifier", default="math")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"skipped: {options.data} is missing")
        return 0
    problems = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    rows = [row for p in problems for row in spellings(str(p["answer"]), p["problem"])]
    judged = verdicts(rows, options.verifier)
    least = min(Counter(i for i, p in enumerate(problems) for _ in spellings(str(p["answer"]))).values())
    print(f"{len(problems):,} references, {len(rows):,} spellings, at least {least} of each\n\n{table(rows, judged)}\n")
    for row, said in zip(rows, judged, strict=True):
        if said.verdict != "right":
            print(f"{said.verdict}  {row.way}  {row.reference!r}  {said.extracted!r}  {said.why}")
    return int(any(said.verdict == "wrong" for said in judged))


if __name__ == "__main__":
    sys.exit(main())
