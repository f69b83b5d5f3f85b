"""Multiple choice: a letter, or the text of an option.

A problem says which letter is right in ``answer`` (``B``, ``(B)``), or the right option's text. The options are read
from the question where it lists them, by consecutive letters from A: ``(A) 3 (B) 4``, or one per line ``A. 3``.
Without such a list, ``accepted`` may hold the right option's text beside its letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from covrl.records import Problem
from covrl.rewards.extract import DEFAULT_ORDER, extract_answer
from covrl.rewards.judgement import Judgement, judgement, nothing, references
from covrl.rewards.normalise import normalise, plain_number
from covrl.rewards.workers import Reply

LETTERS = "ABCDEFGHIJ"
MAX_QUESTION_CHARS = 100_000

_LETTER = re.compile(r"(?:(?:option|choice|answer)\s{1,3})?\(?([A-Ja-j])(?:\)|[.:])?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-J])\)|([A-J])[).:])\s{1,9}(\S.*)", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{((?:[^{}])*)\}")
_IN_BRACKETS = re.compile(r"\(([A-J])\)")
_ON_A_LINE = re.compile(r"^[ \t]*\(?([A-J])[).:](?=\s)", re.MULTILINE)


def choice(problem: Problem, response: str, order: Sequence[str] = DEFAULT_ORDER) -> Judgement:
    """Right if the answer is the right option's letter or text, wrong if another's; anything else is unknown."""
    found = extract_answer(response, order)
    if found is None:
        return nothing(order)
    listed = options(problem.question)
    right = {letter for r in references(problem) if (letter := _named(r, listed)) is not None}
    texts = [normalise(r) for r in references(problem) if _letter(r) is None and normalise(r)]
    return judgement(found, _judge(found.text, right, texts, listed))


def letter_of(problem: Problem, answer: str) -> str | None:
    """The letter of the option that an answer means; None if it means none, or more than one."""
    said = _said(answer, options(problem.question), [])
    return said if isinstance(said, str) else None


def options(question: str) -> dict[str, str]:
    """The options that a question lists, by letter; empty if it lists none, or has a gap in the letters from A on."""
    for pattern in (_ON_A_LINE, _IN_BRACKETS):
        every = list(pattern.finditer(question[:MAX_QUESTION_CHARS]))
        first = max((i for i, m in enumerate(every) if m.group(1) == "A"), default=0)  # the list is what comes last
        marks = every[first:]
        found = [m.group(1) for m in marks]
        if len(found) >= 2 and found == list(LETTERS[: len(found)]):
            ends = [m.start() for m in marks[1:]] + [len(question)]
            parts = {m.group(1): question[m.end() : end] for m, end in zip(marks, ends, strict=True)}
            last = LETTERS[len(found) - 1]
            parts[last] = re.split(r"\n\s*\n", parts[last].strip(), maxsplit=1)[0]  # what follows the list
            return {letter: normalise(_WRAPPED.sub(r"\1", text)) for letter, text in parts.items()}
    return {}


def _judge(answer: str, right: set[str], texts: Sequence[str], listed: Mapping[str, str]) -> Reply:
    said = _said(answer, listed, texts)
    if isinstance(said, Reply):
        return said
    if said is None:
        if any(_same(normalise(answer), text) for text in texts):
            return Reply("right", "the option's text")
        return Reply("unknown", "neither a letter nor the text of one option")
    if listed and said not in listed:
        return Reply("wrong", "a letter that is no option")
    if not right:
        return Reply("unknown", "the reference is no option: neither a letter nor the text of one")
    return Reply("right", "the same option") if said in right else Reply("wrong", "another option")


def _said(answer: str, listed: Mapping[str, str], texts: Sequence[str]) -> str | Reply | None:
    """The letter that an answer means; None if it means none; a reply where it contradicts itself."""
    letter = _letter(answer)
    by_text = _with_text(normalise(_WRAPPED.sub(r"\1", answer)), listed)
    if letter is not None:
        if by_text and by_text != [letter]:  # options that are letters themselves
            return Reply("unknown", "a letter, and the text of another option")
        return letter
    both = _LETTER_AND_TEXT.fullmatch(_WRAPPED.sub(r"\1", answer.strip()))
    if both:
        letter = both.group(1) or both.group(2)
        stated = normalise(both.group(3))
        if not any(_same(stated, text) for text in ([listed.get(letter, "")] if listed else texts)):
            return Reply("unknown", "a letter with a text that is not the option's")
        return letter
    return by_text[0] if len(by_text) == 1 else None


def _named(reference: str, listed: Mapping[str, str]) -> str | None:
    """The letter that a reference means."""
    letter = _letter(reference)
    if letter is not None:
        return letter
    found = _with_text(normalise(_WRAPPED.sub(r"\1", reference)), listed)
    return found[0] if len(found) == 1 else None


def _letter(text: str) -> str | None:
    plain = normalise(_WRAPPED.sub(r"\1", text.strip()[:200])) if len(text) < 200 else ""
    match = _LETTER.fullmatch(plain)
    return match.group(1).upper() if match else None


def _with_text(text: str, listed: Mapping[str, str]) -> list[str]:
    return [letter for letter, option in listed.items() if text and _same(text, option)]


def _same(one: str, other: str) -> bool:
    number = plain_number(one)
    return one == other or (number is not None and number == plain_number(other))
