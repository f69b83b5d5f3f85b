"""Where a trace ends: at a tag in the decoded text, whichever tokens form it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from covrl.records import Closing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Stop(NamedTuple):
    """``kept`` tokens belong to the trace; ``closing`` says whether they include the tag."""

    kept: int
    closing: Closing


class StopRule:
    """Finds a tag in text that is sampled token by token, after the texts of ``after`` have occurred in their order.

    Decoding every row at every step is expensive. So the rule checks only after a token whose text contains the
    tag's last character (``may_end``); the check decodes the whole trace.

    Example:
        >>> StopRule(tokenizer, ".", after=("The answer is",))   # not at a full stop of the reasoning
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tag: str, after: tuple[str, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self.tag = tag
        self.after = after
        self.may_end = _tokens_with(tokenizer, tag[-1])

    def text(self, ids: Sequence[int]) -> str:
        """Decoded text, with special tokens and all spaces."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def check(self, ids: Sequence[int], prefix: Sequence[int] = ()) -> Stop | None:
        """Whether the trace is complete with its last token; ``prefix`` are ids before it that belong to it.

        If the tag ends where the last token ends, the sampled tag belongs to the trace. If it ends inside that
        token (a BPE may merge ``>`` with what follows), the trace ends at the last token boundary that does not
        reach into the tag, and the template appends the canonical ids. A tag that begins in the prefix and ends inside
        a token has no such boundary: that token stays whole.
        """
        if ids[-1] not in self.may_end:
            return None
        text = self.text([*prefix, *ids])
        start = self._start(text, len(self.text(prefix).rstrip("\ufffd")) if prefix else 0)
        if start < 0:
            return None
        if start + len(self.tag) == len(text):
            return Stop(len(ids), "sampled")
        kept = len(ids) - 1
        while kept and not text[:start].startswith(self.text([*prefix, *ids[:kept]])):
            kept -= 1
        if prefix and not kept and not text[:start].startswith(self.text(prefix)):
            return Stop(len(ids), "sampled")
        return Stop(kept, "appended")

    def complete(self, prefix: Sequence[int]) -> bool:
        """Whether a given prefix holds the whole end of a trace, so that nothing is left to be sampled."""
        return bool(prefix) and self._start(self.text(prefix), 0) >= 0

    def _start(self, text: str, given: int) -> int:
        """Where the tag begins that ends after the first ``given`` characters, which were not sampled; or -1."""
        position = 0
        for part in self.after:
            found = text.find(part, position)
            if found < 0:
                return -1
            position = found + len(part)
        return text.find(self.tag, max(position, given - len(self.tag) + 1))

    def awaited(self, ids: Sequence[int], prefix: Sequence[int] = ()) -> str:
        """The text that has to come next for the trace to end: the first of ``after`` that is missing, or the tag.

        Where the trace ends with the beginning of that text, the rest of it, which ends wherever the whole does.
        """
        text, position = self.text([*prefix, *ids]), 0
        for part in self.after:
            found = text.find(part, position)
            if found < 0:
                return _rest(part, text)
            position = found + len(part)
        return _rest(self.tag, text)

    def rest(self, ids: Sequence[int]) -> str:
        """The tag without what of it stands at the end of ``ids`` already."""
        return _rest(self.tag, self.text(ids)) if ids else self.tag


def _rest(part: str, text: str) -> str:
    """``part`` without its longest beginning, short of all of it, that ``text`` ends with."""
    return next((part[n:] for n in range(len(part) - 1, 0, -1) if text.endswith(part[:n])), part)


class StopRules(dict[tuple[str, tuple[str, ...]], StopRule]):
    """Rules by (tag, after), each made once: making a rule reads the whole vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, key: tuple[str, tuple[str, ...]]) -> StopRule:
        self[key] = StopRule(self.tokenizer, *key)
        return self[key]


def _tokens_with(tokenizer: PreTrainedTokenizerBase, character: str) -> frozenset[int]:
    """Ids of all tokens whose text may hold ``character``; all of them if the vocabulary does not show it.

    Byte-level and sentencepiece vocabularies write printable ASCII as itself, or as ``<0x3E>``. Another character is
    in the token's own text, or that text shows that some of its bytes are in another token. Spaces can come from any
    token.
    """
    ids = list(range(len(tokenizer)))
    if character.isspace():
        return frozenset(ids)
    if not "!" <= character <= "~":
        texts = tokenizer.batch_decode(
            [[i] for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return frozenset(i for i, text in zip(ids, texts, strict=True) if character in text or "\ufffd" in text)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return frozenset(i for i, piece in zip(ids, pieces, strict=True) if piece is None or _may_hold(piece, character))


def _may_hold(piece: str, character: str) -> bool:
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return int(piece[3:5], 16) == ord(character)
    return character in piece
