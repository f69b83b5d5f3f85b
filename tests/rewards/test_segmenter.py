"""Steps of traces: they divide the tokens and the text, whatever ids a trace is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from covrl.errors import UserError
from covrl.records import Span
from covrl.rewards.segmenter import Segmenter, token_starts

REAL = os.environ.get("COVRL_REAL_MODEL", "")
SEGMENTERS = [Segmenter("lines"), Segmenter("paragraphs"), Segmenter("sentences"), Segmenter(pattern=r"(?=Step \d)")]


@lru_cache
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@lru_cache
def pieces() -> PreTrainedTokenizerFast:
    """As of Llama 2: ▁ for spaces, of which decoding loses the first, and bytes for what it does not know."""
    words = ["▁", "▁a", "a", "b", "▁b", ".", "\n", "1", "▁so", "=", "é"]
    vocabulary = {w: i for i, w in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *words])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def real() -> Any:
    if not REAL:
        pytest.skip("COVRL_REAL_MODEL names no folder of a real model")
    return _real()


@lru_cache
def _real() -> Any:
    return AutoTokenizer.from_pretrained(REAL)


TOKENIZERS = {"byte level": byte_level, "sentence pieces": pieces, "real model": real}


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def starts_by_definition(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The longest beginning that the decoded beginning shares with the whole text, for each token anew."""
    text, found = text_of(tokenizer, ids), [0]
    for stop in range(1, len(ids)):
        said = text_of(tokenizer, ids[:stop])
        same = next((i for i, (a, b) in enumerate(zip(said, text, strict=False)) if a != b), min(len(said), len(text)))
        found.append(max(found[-1], same))
    return found


def check_steps(segmenter: Segmenter, tokenizer: Any, ids: Sequence[int], tag: str = "") -> None:
    text = text_of(tokenizer, ids) + tag
    steps = segmenter.steps(tokenizer, ids, text)
    assert [i for s in steps for i in range(*s.span)] == list(range(len(ids))), "each token is in one step"
    assert "".join(s.text for s in steps) == (text if ids else "")
    assert all(s.span.start < s.span.stop and s.text for s in steps) or not text
    starts, at = token_starts(tokenizer, ids, text) if ids else [], 0
    for number, step in enumerate(steps):
        after = at + len(step.text)
        for i in range(*step.span):
            assert at <= starts[i]
            assert starts[i] < after or number == len(steps) - 1, "a token is in the step in which it begins"
        at = after


IDS = st.lists(st.integers(0, 10**6), max_size=90)
TEXTS = st.lists(
    st.sampled_from(
        ["6 x 7\n", "= 42.", " So", "\n\n", "数学", "é", "☕️", "👩‍👧", "Step 1", ". ", "1.\t", "。", "\r\n", "  "]
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(ids=IDS, tag=st.sampled_from(["", "</think>", "\n"]), which=st.integers(0, len(SEGMENTERS) - 1))
def test_steps_divide_any_ids_at_all(name: str, ids: list[int], tag: str, which: int) -> None:
    """Random ids are mostly broken characters, which is what an untrained model samples."""
    tokenizer = TOKENIZERS[name]()
    ids = [i % len(tokenizer) for i in ids]
    check_steps(SEGMENTERS[which], tokenizer, ids, tag)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, which=st.integers(0, len(SEGMENTERS) - 1))
def test_steps_divide_ordinary_text_and_repeat_the_rule(name: str, text: str, which: int) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    check_steps(SEGMENTERS[which], tokenizer, ids)
    parts = SEGMENTERS[which].parts(text)
    assert "".join(parts) == text
    assert all(part.strip() for part in parts) or len(parts) <= 1


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.one_of(IDS, TEXTS), max_size=4))
def test_tokens_begin_where_decoding_from_the_start_says(name: str, parts: list[list[int] | str]) -> None:
    """The windows give what decoding everything for each token gives. The longest lists pass several windows."""
    tokenizer = TOKENIZERS[name]()
    mixed = [
        [i % len(tokenizer) for i in p] if isinstance(p, list) else tokenizer.encode(p, add_special_tokens=False)
        for p in parts
    ]
    ids = [i for part in mixed for i in part]
    if ids:
        assert token_starts(tokenizer, ids, text_of(tokenizer, ids)) == starts_by_definition(tokenizer, ids)


def ids_of(*parts: str) -> list[int]:
    """One token for each byte or merged piece; ``parts`` are encoded apart."""
    return [i for part in parts for i in byte_level().encode(part, add_special_tokens=False)]


def test_a_character_of_several_tokens_begins_where_the_first_of_them_does() -> None:
    ids = ids_of("é") + [
        i for byte in "\U0001f9ee".encode() for i in byte_level().convert_tokens_to_ids([_letter(byte)])
    ]
    ids += ids_of("1")
    starts = token_starts(byte_level(), ids, "é\U0001f9ee1")
    assert starts[-5:] == [1, 1, 1, 1, 2]


def _letter(byte: int) -> str:
    """The letter that stands for a byte in a byte-level vocabulary (GPT-2's table, VERIFIED by decoding)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in visible else chr(256 + [b for b in range(256) if b not in visible].index(byte))


def test_a_token_across_a_cut_belongs_to_the_earlier_step() -> None:
    tokenizer = byte_level()
    merged = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) == ">\n"][:1]
    assert merged, "the tokenizer merges > with a line break"
    before, after = ids_of("a"), ids_of("b")
    steps = Segmenter(pattern="(?<=>)").steps(tokenizer, [*before, *merged, *after], "a>\nb")
    assert [(tuple(s.span), s.text) for s in steps] == [((0, 2), "a>"), ((2, 3), "\nb")]


def test_a_part_without_a_token_of_its_own_is_one_step_with_the_part_before() -> None:
    tokenizer = byte_level()
    merged = [i for i in range(len(tokenizer)) if tokenizer.decode([i]) == "</think>"]
    if not merged:
        merged = [next(i for i in range(len(tokenizer)) if len(tokenizer.decode([i])) > 2)]
    text = tokenizer.decode(merged)
    steps = Segmenter(pattern="").steps(tokenizer, [*merged, *merged], text * 2)
    assert [(s.span, s.text) for s in steps] == [(Span(0, 1), text), (Span(1, 2), text)]


RULES = [
    ("lines", "a\nb\n\n\nc", ["a\n", "b\n\n\n", "c"]),
    ("lines", "\n\na\n", ["\n\na\n"]),
    ("lines", "", []),
    ("lines", " \n ", [" \n "]),
    ("paragraphs", "a\nb\n\nc\n \t\nd", ["a\nb\n\n", "c\n \t\n", "d"]),
    ("sentences", "It is 3.14. So x > 2! Why? Because.", ["It is 3.14.", " So x > 2!", " Why?", " Because."]),
    ("sentences", "1. Add 2.\n2. Stop.", ["1. Add 2.\n", "2. Stop."]),
    ("sentences", 'He said "no." Then left.', ['He said "no."', " Then left."]),
    ("sentences", "它是二。所以是三！", ["它是二。", "所以是三！"]),
    ("sentences", "x = 1\ny = 2", ["x = 1\n", "y = 2"]),
]


@pytest.mark.parametrize(("rule", "text", "parts"), RULES)
def test_the_rules(rule: Any, text: str, parts: list[str]) -> None:
    assert Segmenter(rule).parts(text) == parts


def test_a_pattern_of_ones_own_ends_steps_or_begins_them() -> None:
    assert Segmenter(pattern=r";\s*").parts("a; b;c") == ["a; ", "b;", "c"]
    assert Segmenter(pattern=r"(?=Step \d)").parts("Plan. Step 1: a Step 2: b") == ["Plan. ", "Step 1: a ", "Step 2: b"]


def test_a_prefix_that_the_text_has_belongs_to_the_first_step() -> None:
    prefix, ids = ids_of("given\nso"), ids_of("far\nand\n", "on")
    for text in ("given\nsofar\nand\non</think>", "far\nand\non</think>"):
        steps = Segmenter("lines").steps(byte_level(), ids, text, prefix)
        assert "".join(s.text for s in steps) == text
        assert [s.text for s in steps] == [text.partition("and")[0], "and\n", "on</think>"]
        assert [i for s in steps for i in range(*s.span)] == list(range(len(ids)))
    assert token_starts(byte_level(), ids, "given\nsofar\nand\non", prefix)[0] == len("given\nso")


def test_the_closing_tag_is_no_step_of_its_own() -> None:
    for text in ("a\nb\n</think>", "a\nb</think>", "a\nb\n"):
        steps = Segmenter("lines").steps(byte_level(), ids_of(text), text, close="</think>")
        assert [s.text for s in steps] == ["a\n", text[2:]]
    (only,) = Segmenter("lines").steps(byte_level(), ids_of("</think>"), "</think>", close="</think>")
    assert only.text == "</think>"


def test_a_trace_without_tokens_has_no_steps_and_another_text_is_refused() -> None:
    assert Segmenter().steps(byte_level(), [], "</think>") == []
    with pytest.raises(ValueError, match="the ids decode to 'abc', and the text is 'abd'"):
        Segmenter().steps(byte_level(), ids_of("abc"), "abd")


def test_wrong_rules_are_told() -> None:
    with pytest.raises(UserError, match="unknown rule 'words': known are lines, paragraphs, sentences"):
        Segmenter("words")  # ty: ignore
    with pytest.raises(UserError, match=r"steps: '\(' is no regular expression: missing \)"):
        Segmenter(pattern="(")


def test_decoding_work_grows_with_the_length_and_not_with_its_square() -> None:
    """Counted in tokens that are decoded, as no test compares times."""

    class Counting:
        decoded = 0

        def decode(self, ids: Sequence[int], **named: Any) -> str:
            self.decoded += len(ids)
            return str(byte_level().decode(ids, **named))

    def work(lines: int) -> int:
        counting, text = Counting(), "so 6 x 7 = 42, naïve ☕\n" * lines
        ids = byte_level().encode(text, add_special_tokens=False)
        token_starts(counting, ids, text)
        return counting.decoded

    assert work(80) < 2.5 * work(40)


def test_a_long_trace_of_the_real_tokenizer() -> None:
    tokenizer = real()
    text = "Let x = 6. Then 6 × 7 = 42, naïvely ☕. So:\n\n" * 150
    ids = tokenizer.encode(text, add_special_tokens=False)
    steps = Segmenter("paragraphs").steps(tokenizer, ids, text)
    assert [s.text for s in steps] == ["Let x = 6. Then 6 × 7 = 42, naïvely ☕. So:\n\n"] * 150
    assert all(text_of(tokenizer, ids[s.span.start : s.span.stop]) == s.text for s in steps)
