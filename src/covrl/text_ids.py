"""Texts as token ids: those of the settings, which may name any token, and those that somebody else wrote.

A text that a data set has is mere text: a control token that it spells is encoded letter by letter, so that it never
ends a turn or a thought.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from covrl.chat_template import tokenizer_name
from covrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

_TAG = re.compile(r"\s*(?:<[^<>\s]+>|\[[A-Z_]+\])\s*")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""What an added token looks like that steers a model, and one that only spells a byte."""

CACHED = 16_384
"""Texts whose ids are kept."""


class TextIds:
    """Encodes texts with one tokenizer.

    Example:
        >>> TextIds(tokenizer).literal("</think>")  # the ids of "<", "/think>": no control token
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.plain = lru_cache(CACHED)(self._tokenize)
        """Ids of a text as the tokenizer gives them, without those that it puts around a text."""

    @cached_property
    def start_ids(self) -> Ids:
        """What the tokenizer itself puts before every text: a beginning-of-sequence id, which may be its end too.

        What it puts after a text, an end of sequence, is no part of it.
        """
        for text in ("a", "0", "\n"):
            alone, whole = self.plain(text), tuple(self.tokenizer(text).input_ids)
            for start in range(len(whole) if alone else 0):
                if whole[start : start + len(alone)] == alone:
                    return whole[:start]
        return tuple(i for i in self.tokenizer("").input_ids if i != self.tokenizer.eos_token_id)

    def encode(self, text: str) -> Ids:
        """Ids of a text that continues another one, without a beginning of sequence.

        A sentencepiece-like tokenizer puts a space before whatever it encodes; behind a line break it does not.
        """
        ids = self.plain(text)
        first = str(self.tokenizer.convert_ids_to_tokens(list(ids[:1]))[0]) if ids else ""
        if not first.startswith("▁") or text.startswith((" ", "▁")):
            return ids
        line_break, behind = self.plain("\n"), self.plain("\n" + text)
        return behind[len(line_break) :] if behind[: len(line_break)] == line_break else ids

    def literal(self, text: str, before: Ids | None = None) -> Ids:
        """Ids of a text that somebody else wrote: a control token that it spells is encoded letter by letter.

        ``before`` says that it stands in a prompt behind these ids (``()``: at the beginning); else it continues one.

        Raises:
            UserError: the text is no Unicode text, or holds a control token that is a single character.
        """
        first = self.plain if before == () else self.encode
        pieces = [text]
        while any(found := [self._control_spans(piece) for piece in pieces]):
            pieces = [part for piece, spans in zip(pieces, found, strict=True) for part in self._cut(piece, spans)]
        ids: Ids = ()
        for piece in pieces:
            ids += self.encode(piece) if ids else first(piece)
        return ids

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has by itself, all counted in one go; one that spells a control token has more."""
        if not texts:
            return []
        try:
            found = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        except (TypeError, UnicodeEncodeError):
            found = [self._tokenize(text) for text in texts]  # which says what is wrong with the one that is no text
        apart = [
            bool(self.controls(tuple(ids))) or (self.spelt_unknown or "\0") in text
            for ids, text in zip(found, texts, strict=True)
        ]
        return [len(self.literal(t)) if spelt else len(ids) for t, ids, spelt in zip(texts, found, apart, strict=True)]

    def spells(self, text: str) -> bool:
        """Whether the text spells a control token."""
        return bool(self.controls(self.plain(text))) or (self.spelt_unknown or "\0") in text

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        """From where to where the text spells a control token."""
        unknown, controls = self.spelt_unknown, self._control_ids
        spelt = [found.span() for found in re.finditer(re.escape(unknown), text)] if unknown else []
        if not self.controls(self.plain(text)):
            return spelt
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            return sorted({*spelt, *((start, stop) for i, (start, stop) in spans if i in controls)})
        names = [re.escape(str(self.tokenizer.convert_ids_to_tokens(i))) for i in sorted(controls)]
        names += [re.escape(unknown)] if unknown else []
        return [found.span() for found in re.finditer("|".join(names), text)] or [(0, len(text))]

    def _cut(self, text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
        """The text in pieces: it is cut behind the first character of each span."""
        for start, stop in spans:
            if stop - start < 2:
                raise UserError(
                    f"{text[start:stop]!r} is a control token of the tokenizer {tokenizer_name(self.tokenizer)}"
                )
        edges = [0, *(start + 1 for start, _ in spans), len(text)]
        return [text[a:b] for a, b in pairwise(edges)]

    def controls(self, ids: Ids) -> Ids:
        return tuple(i for i in ids if i in self._control_ids)

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Tokens that steer a model: those marked special, and added ones that look like a tag (``<think>``).

        A token for what is unknown is none of them where any text may hold it; unless it has another office too.
        """
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.items()
        tags = {i for i, t in added if not _BYTE.fullmatch(t.content) and (t.special or _TAG.fullmatch(t.content))}
        offices = {i for name, i in _offices(tokenizer) if name != "unk_token"}
        unknown = {tokenizer.unk_token_id} - offices if self._meets_unknown else set()
        return frozenset((tags | offices | set(tokenizer.all_special_ids)) - unknown)

    @cached_property
    def _meets_unknown(self) -> bool:
        """Whether ordinary text gets the unknown token. Byte-level tokenizers know every text."""
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and unknown in self.plain("\ue000\u05d0数☃é\U0001f984")

    @cached_property
    def spelt_unknown(self) -> str | None:
        """The unknown token's own text, where its id does not tell whether a text spells it."""
        text = str(self.tokenizer.unk_token)
        return text if self._meets_unknown and len(text) > 1 else None

    def reads_back(self, text: str) -> str:
        """What the ids of a text that continues another one decode to, as the stop rule decodes a trace.

        A sentencepiece-like decoder drops a space at the very beginning, so a text that does not come back by itself
        is tried behind a line break too.
        """
        ids, line_break = self.encode(text), self.plain("\n")
        alone, start = self._decoded(ids), self._decoded(line_break)
        behind = self._decoded(line_break + ids)
        return behind.removeprefix(start) if alone != text and behind.startswith(start) else alone

    def _decoded(self, ids: Ids) -> str:
        kept = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **kept)) if ids else ""

    def _tokenize(self, text: str) -> Ids:
        if not text:
            return ()
        try:
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        except (TypeError, UnicodeEncodeError):
            lone = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
            if lone is None:
                raise
        raise UserError(
            f"a text holds \\u{ord(lone):04x}, half of a surrogate pair, which is no character: {text[:60]!r}"
        )


def _offices(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """The tokenizer's special tokens by what they are for."""
    vocabulary = tokenizer.get_vocab()
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    return [(name, vocabulary[token]) for name, token in named.items() if token in vocabulary]
