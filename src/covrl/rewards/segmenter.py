"""The steps of a trace: where its text falls into parts, and which tokens belong to each.

A rule cuts the text. Each token then belongs to the step that holds the character with which it begins, so a token
that reaches across a cut belongs to the earlier step. Every token is in exactly one step, and the steps' texts, one
after another, are the whole text.

Nothing is tokenised again: the ids are those that were sampled, which need not be how a tokenizer would spell the text.
Where a token begins is read off what its predecessors decode to. In a byte-level vocabulary a character may be spelt by
several tokens, each of which decodes to a replacement character alone; all of them begin at that character.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

from covrl.errors import UserError
from covrl.records import Span

Rule = Literal["lines", "paragraphs", "sentences"]

CUTS: dict[str, re.Pattern[str]] = {
    "lines": re.compile(r"\n"),
    "paragraphs": re.compile(r"\n[^\S\n]*\n"),
    "sentences": re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n"""),
}
"""By rule: what ends a step. Paragraphs have a blank line between them; a line break ends a sentence too."""

NUMBERED = re.compile(r"\s*(?:\d+|[A-Za-z])[.!?…]+\s*")
"""A mark of a list, ``2.`` or ``b.``, which is no sentence of its own."""

REPLACEMENT = "\ufffd"
"""What bytes that are no whole character decode to."""

WINDOW = 32
"""Tokens that are decoded together, at most, as long as the text grows token by token."""

CONTEXT = 4
"""Tokens at least that are decoded before a window, as the first token of a text may lose its space."""


class Step(NamedTuple):
    """One step of a trace: its tokens, as a span of the trace's ids, and its text."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Segmenter:
    """Cuts traces into steps by a rule, or by a regular expression of one's own, ``pattern``.

    Example:
        >>> Segmenter("lines").parts("6 x 7\\n= 42\\n\\nso 42")
        ['6 x 7\\n', '= 42\\n\\n', 'so 42']

    A step ends where a match of the pattern ends. One that matches no character cuts where it stands, so
    ``(?=Step \\d)`` begins a step at each "Step 1". Parts that are white space alone belong to the step before them.

    Raises:
        UserError: no such rule, or a pattern that is none.
    """

    rule: Rule = "paragraphs"
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is None and self.rule not in CUTS:
            raise UserError(f"steps: unknown rule {self.rule!r}: known are {', '.join(CUTS)}, or give a pattern")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise UserError(f"steps: {self.pattern!r} is no regular expression: {error}") from None

    def parts(self, text: str) -> list[str]:
        """The steps' texts, none of them empty; together they are ``text``."""
        cuts = CUTS[self.rule] if self.pattern is None else re.compile(self.pattern)
        found: list[str] = []
        for start, stop in pairwise([0, *_ends(cuts, text), len(text)]):
            part = text[start:stop]
            if found and (not part.strip() or not found[-1].strip() or self._is_number(found[-1])):
                found[-1] += part
            elif part:
                found.append(part)
        return found

    def _is_number(self, part: str) -> bool:
        return self.pattern is None and self.rule == "sentences" and NUMBERED.fullmatch(part) is not None

    def steps(
        self, tokenizer: Any, ids: Sequence[int], text: str, prefix: Sequence[int] = (), close: str = ""
    ) -> list[Step]:
        """The steps of a trace with the token ids ``ids`` ``[T]`` and the text ``text``.

        ``text`` is what the ids decode to, and what follows them (a closing tag that was appended), which the last step
        has; it may begin with what ``prefix``, ids before them, decodes to, which the first step has. The tag ``close``
        at its end belongs to the last step, whatever the rule says. A part that begins inside a token of the step
        before it, with no token of its own, is one step with it. Without ids there are no steps.

        Raises:
            ValueError: the text is not that of the ids.
        """
        if not ids:
            return []
        begins = token_starts(tokenizer, ids, text, prefix)
        body = text.removesuffix(close)
        parts = self.parts(body) or [""]
        parts[-1] += text[len(body) :]
        ends = list(accumulate(map(len, parts)))
        owner = [min(bisect_right(ends, at), len(parts) - 1) for at in begins]
        firsts = [0, *(i for i in range(1, len(ids)) if owner[i] != owner[i - 1])]
        steps: list[Step] = []
        for i, (start, stop) in enumerate(pairwise([*firsts, len(ids)])):
            first = owner[start] if i else 0
            last = owner[firsts[i + 1]] if i + 1 < len(firsts) else len(parts)
            steps.append(Step(Span(start, stop), "".join(parts[first:last])))
        return steps


def _ends(cuts: re.Pattern[str], text: str) -> list[int]:
    """Where the matches end, without what ends the text anyway."""
    return [m.end() for m in cuts.finditer(text) if 0 < m.end() < len(text)]


def token_starts(tokenizer: Any, ids: Sequence[int], text: str, prefix: Sequence[int] = ()) -> list[int]:
    """For each of ``ids`` the index in ``text`` of the character that it begins or goes on with, ``[T]``.

    Never decreasing, from 0 on (behind the prefix's text where ``text`` has it), at most ``len(text)``: a token that
    spells nothing begins where the next one does.

    Raises:
        ValueError: the text is not that of the ids.
    """

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    whole = ""
    for before in dict.fromkeys([tuple(prefix), ()]):
        whole = decode([*before, *ids])
        if text.startswith(whole):
            ends = _text_ends(decode, [*before, *ids], whole)
            begun = ends[len(before) - 1] if before else 0
            return [begun, *ends[len(before) : -1]]
    raise ValueError(f"the ids decode to {whole[:60]!r}, and the text is {text[:60]!r}")


def _text_ends(decode: Callable[[Sequence[int]], str], ids: Sequence[int], text: str) -> list[int]:
    """How many characters of ``text``, which ``ids`` decode to, are spelt after each token, ``[T]``.

    By definition the longest beginning that what is decoded so far shares with ``text``. Decoding all of it for each
    token would cost T², so only the tokens since an ``anchor`` are decoded, and a few before it, from where all
    characters are whole (byte fallback gives replacement characters for a whole run of bytes if one fits nowhere).
    Where that does not fit the text, as a tokenizer may look further back, all of it is decoded after all.
    """
    ends: list[int] = []
    anchor, at = 0, 0
    lead, known = 0, ""
    whole = [0]
    for stop in range(1, len(ids) + 1):
        said = decode(ids[lead:stop])
        piece = said[len(known) :]
        shared = _shared(piece, text, at)
        done, is_whole = at + shared, shared == len(piece)
        fits = said.startswith(known) and not piece[shared:].strip(REPLACEMENT)
        if not fits:
            piece = decode(ids[:stop])
            done = _shared(piece, text, 0)
            is_whole = done == len(piece)
        ends.append(max(done, ends[-1] if ends else 0))
        if is_whole and not piece.endswith(REPLACEMENT):
            whole.append(stop)
            if stop - anchor >= WINDOW or not fits:
                anchor, at = stop, done
                lead = whole[bisect_right(whole, max(0, stop - CONTEXT)) - 1]
                known = decode(ids[lead:stop])
    ends[-1] = len(text)
    return ends


def _shared(piece: str, text: str, at: int) -> int:
    """How many characters ``piece`` and ``text[at:]`` have in common at their beginning."""
    if text.startswith(piece, at):
        return len(piece)
    low, high = 0, len(piece)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if text.startswith(piece[:middle], at) else (low, middle)
    return low
