r"""Which part of a response is its answer. Pure text, linear time, never a guess.

Only the text after the last ``</think>`` is searched, because a thought may try out answers. The default order is the
last ``\boxed{}``, the last ``<answer>``, the last ``####``, the last "answer is" or "Answer:"; the first of these that
is found counts. There is no further fallback: "the last number" would turn an unfinished sentence into an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from covrl.errors import UserError

Extractor = Callable[[str], str | None]
"""Text -> the answer in it, stripped; None if there is none. A blank answer counts as none."""

_BOX_TOKENS = re.compile(r"(?<!\\)\\++(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BLANKS = re.compile(r"\s*")
_TAGS = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)([^\n]*)")
_ANSWER_IS = re.compile(
    r"\bans(?:wer)?(?:\s{1,9}to\s[^.?!:\n]{1,80}?)?"
    r"(?:\s{1,9}(?:is|equals)\b(?:[ \t]{0,9}:)?|[ \t]{0,9}[*_]{0,3}[ \t]{0,9}[:=\uff1a])",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^[ \t#*_\u2705]*(?:the[ \t])?(?:final[ \t])?answer[ \t*_]*$", re.IGNORECASE | re.MULTILINE)
_SENTENCE_END = re.compile(r"\.(?=\s)|\n|\Z")
_SKIPPED = re.compile(r"[ \t]*(?:\*\*|__)?[ \t]*\n[\s>]*")  # from the end of a heading to the line below it
_DISPLAY = re.compile(r"\s*(\$\$|\\\[)")
_DISPLAY_END = {"$$": "$$", r"\[": r"\]"}
_THOUGHT = re.compile(
    r"[<\u25c1](/?)(?:think|thinking|thought|reasoning|seed:think)[>\u25b7]|\[(/?)THINK\]", re.IGNORECASE
)
_LEAD = re.compile(
    r"[\s$*_`]*(?:(?:so|thus|hence|therefore|then),?\s)?(?:(?:the|my)\s)?(?:final\s)?answer(?:\s+is)?\s*:?\s*"
    r"|[\s$*_`]*(?:\\[(\[]\s*)?[A-Za-z]\s*=\s*",
    re.IGNORECASE,
)
_EDGE = re.compile(r"(?:[\s$*_`.,;:]|\\[()\[\]]|\\displaystyle(?![A-Za-z]))*")
_EMPHASIS = ("**", "__", "*", "`")
_BOLD_START = re.compile(r"^\*\*([^*]+)\*\*(?=\s)")  # "**72** clips"


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer as written in the response, and the name of the extractor that found it."""

    text: str
    how: str


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}`` (or ``\fbox{}``) that is closed and not blank.

    Braces must balance; ``\{`` and ``\}`` are not braces. Of nested boxes the outermost counts;
    a box that contains only another box is unwrapped, so that ``\boxed{\boxed{5}}`` is ``5``.
    """
    found = _last_box(text)
    return None if found is None else text[found.start : found.stop].strip()


def _last_box(text: str) -> _Box | None:
    opened: list[tuple[int, int] | None] = []  # one entry per open brace: where a box and its content start, or None
    found: _Box | None = None
    for token in _BOX_TOKENS.finditer(text):
        mark = token.group()
        if mark == "{":
            opened.append(None)
        elif mark == "}":
            box = opened.pop() if opened else None
            if box is not None and not _blank(text, box[1], token.start()):
                found = _close(text, box, token, found)
        elif len(mark) > 2:
            opened.append((token.start(), token.end()))
    return found


class _Box(NamedTuple):
    """The content of a box, and the whole box with the command and its closing brace."""

    start: int
    stop: int
    whole_start: int
    whole_stop: int


def _close(text: str, opened: tuple[int, int], brace: re.Match[str], before: _Box | None) -> _Box:
    """The box that this brace closes, or the one that is all of its content."""
    first, start = opened
    stop = brace.start()
    only = (
        before is not None
        and before.whole_start >= start
        and _blank(text, start, before.whole_start)
        and _blank(text, before.whole_stop, stop)
    )
    content = (before.start, before.stop) if before is not None and only else (start, stop)
    return _Box(*content, first, brace.end())


def _blank(text: str, start: int, stop: int) -> bool:
    match = _BLANKS.match(text, start, stop)
    return match is not None and match.end() == stop


def answer_tag(text: str) -> str | None:
    """The content of the last closed ``<answer>…</answer>`` that is not blank, in any case of letters."""
    start: int | None = None
    found: str | None = None
    for tag in _TAGS.finditer(text):
        if not tag.group(1):
            start = tag.end()
        elif start is not None:
            found = text[start : tag.start()].strip() or found
            start = None
    return found


def hashes(text: str) -> str | None:
    """The rest of the line after the last ``####`` that is followed by anything: how GSM8K marks its answers."""
    found: str | None = None
    for match in _HASHES.finditer(text):
        found = match.group(1).strip() or found
    return found


def answer_is(text: str) -> str | None:
    """What follows the last "answer is" or "Answer:" up to the end of its sentence or line, without full stop
    and emphasis. If nothing follows on the line, and after a heading "Answer", it is the next line that is not blank,
    or the displayed formula there.
    """
    marks = [m.end() for pattern in (_ANSWER_IS, _HEADING) for m in pattern.finditer(text)]
    for start in sorted(marks, reverse=True):
        found = _bare(_sentence(text, start))
        if found:
            return found
    return None


def _sentence(text: str, start: int) -> str:
    skipped = _SKIPPED.match(text, start)
    start = skipped.end() if skipped else start
    display = _DISPLAY.match(text, start)
    if display:
        end = text.find(_DISPLAY_END[display[1]], display.end())
        if end >= 0:
            return text[start : end + 2]
    end = _SENTENCE_END.search(text, start)
    return text[start : end.start() if end else len(text)]


def _bare(sentence: str) -> str:
    text = sentence.strip()
    for mark in _EMPHASIS:  # "answer is:** 5" leaves the closing half of an emphasis that began before
        if text.startswith(mark) and text.count(mark) == 1:
            text = text[len(mark) :].lstrip()
    text = text.removeprefix(":").strip()
    for _ in range(3):
        text = text.removesuffix(".").rstrip() if not text.endswith("..") else text
        for mark in _EMPHASIS:
            inside = text[len(mark) : -len(mark)]
            if text.startswith(mark) and text.endswith(mark) and inside and mark not in inside:
                text = inside.strip()
        text = _BOLD_START.sub(r"\1", text)
        if text.endswith("**") and text.count("**") == 1:  # the emphasis began before: "the **answer is 5**"
            text = text.removesuffix("**").rstrip()
    return text


def whole(text: str) -> str | None:
    """The whole text: for responses that are nothing but the answer."""
    return text.strip() or None


EXTRACTORS: Mapping[str, Extractor] = {
    "boxed": boxed,
    "answer_tag": answer_tag,
    "hash": hashes,
    "answer_is": answer_is,
    "none": whole,
}
"""Every extractor by the name that settings and problem files use; ``none`` takes the whole text."""

DEFAULT_ORDER = ("boxed", "answer_tag", "hash", "answer_is")


def after_thought(response: str) -> str:
    """The text after the last closed thought; empty if a thought is still open at the end."""
    marks = list(_THOUGHT.finditer(response))
    if not marks:
        return response
    closes = bool(marks[-1][1] or marks[-1][2])
    return response[marks[-1].end() :] if closes else ""


def unboxed(text: str) -> str:
    r"""The content of a box that is all of an answer: ``$\boxed{5}$`` is ``5``, as is ``The answer is \boxed{5}.``

    ``x = \boxed{5}`` is ``5`` too. If there is anything else around the box, or a second box, the text is unchanged.
    """
    found = _last_box(text)
    if found is None:
        return text
    lead = _LEAD.match(text, 0, found.whole_start)
    before = _EDGE.match(text, lead.end() if lead else 0, found.whole_start)
    after = _EDGE.fullmatch(text, found.whole_stop)
    alone = before is not None and before.end() == found.whole_start and after is not None
    return text[found.start : found.stop].strip() if alone else text


def extract_answer(response: str, order: Sequence[str] = DEFAULT_ORDER) -> Extracted | None:
    """The answer of a response, after its thought and without its box; None if there is none.

    Raises:
        UserError: ``order`` names an extractor that does not exist.
    """
    return find_answer(after_thought(response), order)


def find_answer(text: str, order: Sequence[str] = DEFAULT_ORDER) -> Extracted | None:
    """The answer in a text without a thought, by the first extractor of ``order`` that finds one.

    Raises:
        UserError: as :func:`extract_answer`.
    """
    for name in order:
        if name not in EXTRACTORS:
            raise UserError(f"unknown extractor {name}: known are {', '.join(EXTRACTORS)}")
        found = EXTRACTORS[name](text)
        if found is not None:
            return Extracted(unboxed(found), name)
    return None
