"""Where a trace ends, by text, whatever tokens spell the tag."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TOKENIZERS

from covrl.generation.stop import Stop, StopRule, StopRules

TAG = "</think>"


def run_through(name: str, ids: list[int]) -> tuple[int, Stop] | None:
    """Feed tokens one by one, as the engine does; (tokens read, stop)."""
    rule = StopRule(TOKENIZERS[name](), TAG)
    for n in range(1, len(ids) + 1):
        stop = rule.check(ids[:n])
        if stop:
            return n, stop
    return None


def test_a_tag_that_ends_with_a_token_belongs_to_the_trace() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    ids = [*tokenizer("6 x 7 = 42").input_ids, *tokenizer(TAG).input_ids]
    assert run_through("bytes", ids) == (len(ids), Stop(len(ids), "sampled"))


def test_a_tag_that_ends_inside_a_token_is_left_to_the_template() -> None:
    """The BPE merges ``>`` and newline: the trace ends before the tag, and canonical ids are appended."""
    tokenizer = TOKENIZERS["bytes"]()
    head = tokenizer("so 42").input_ids
    merged = tokenizer.convert_tokens_to_ids(">\n")
    ids = [*head, *tokenizer("</think").input_ids, merged]
    assert tokenizer.decode(ids) == "so 42</think>\n"
    assert run_through("bytes", ids) == (len(ids), Stop(len(head), "appended"))


def test_a_tag_that_begins_and_ends_inside_tokens_drops_the_first_token_too() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    rule = StopRule(tokenizer, "x>")
    ids = [*tokenizer("ab").input_ids, tokenizer.convert_tokens_to_ids("x"), tokenizer.convert_tokens_to_ids(">\n")]
    assert rule.check(ids) == Stop(len(ids) - 2, "appended")


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(alphabet="abc 42<>/thinké数\n", max_size=30))
def test_the_first_tag_in_the_text_is_where_it_stops(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    rule = StopRule(tokenizer, TAG)
    ids = tokenizer(text, add_special_tokens=False).input_ids + tokenizer(TAG, add_special_tokens=False).input_ids
    found = run_through(name, ids)
    assert found is not None
    read, stop = found
    before = rule.text(ids[: read - 1]) if read > 1 else ""
    assert TAG not in before
    kept = rule.text(ids[: stop.kept]) if stop.kept else ""
    if stop.closing == "sampled":
        assert kept.count(TAG) == 1
        assert kept.endswith(TAG)
    else:
        assert TAG not in kept
        assert rule.text(ids[:read]).startswith(kept + TAG) or stop.kept < read - 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_tokens_that_could_end_the_tag_are_looked_at(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    rule = StopRule(tokenizer, TAG)
    assert len(rule.may_end) < len(tokenizer) / 4
    for token in range(len(tokenizer)):
        assert (">" not in rule.text([token])) or token in rule.may_end


@pytest.mark.parametrize("name", [n for n in TOKENIZERS if n != "characters"])
@pytest.mark.parametrize("tag", ["完数", "naïve é", "so ☕"])
@given(text=st.text(alphabet="ab 完数学é☕\n", max_size=8))
def test_a_tag_that_does_not_end_in_ascii_is_found_too(name: str, tag: str, text: str) -> None:
    """Also where its last character is spread over several tokens; few tokens are looked at."""
    tokenizer = TOKENIZERS[name]()
    rule = StopRule(tokenizer, tag)
    ids = tokenizer(text + tag, add_special_tokens=False).input_ids
    every = range(1, len(ids) + 1)
    ends = [n for n in every if tag in rule.text(ids[:n])]
    assert next(n for n in every if rule.check(ids[:n])) == ends[0]
    assert len(rule.may_end) < len(tokenizer)


def test_a_tag_that_ends_in_space_looks_at_every_token() -> None:
    tokenizer = TOKENIZERS["bytes"]()
    rule = StopRule(tokenizer, "so\n")
    assert len(rule.may_end) == len(tokenizer)
    ids = tokenizer("x so\n").input_ids
    assert rule.check(ids) == Stop(len(ids), "sampled")


def ends(rule: StopRule, ids: list[int], prefix: list[int] | None = None) -> tuple[int, Stop] | None:
    """(tokens read, stop), as an engine would find it behind ``prefix``."""
    found = ((n, rule.check(ids[:n], prefix or [])) for n in range(1, len(ids) + 1))
    return next(((n, stop) for n, stop in found if stop), None)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(alphabet="ab.:", max_size=24))
def test_case_23_a_tag_counts_only_behind_the_texts_before_it(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    rule = StopRule(tokenizer, ".", after=("a:", "b"))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    written = [rule.text(ids[:n]) for n in range(1, len(ids) + 1)]
    ended = re.compile(r"(?s:.*?a:.*?b.*?\.)")
    first = next((n for n, so_far in enumerate(written, start=1) if ended.match(so_far)), None)
    found = ends(rule, ids)
    assert (found and found[0]) == first
    if found and found[1].closing == "sampled":
        assert ended.fullmatch(rule.text(ids[: found[1].kept]))


def test_case_23_what_has_to_come_next_is_the_first_text_that_is_missing() -> None:
    tokenizer = TOKENIZERS["characters"]()
    rule = StopRule(tokenizer, ".", after=("answer:", "<"))
    awaited = {text: rule.awaited(tokenizer(text).input_ids) for text in ("", "so. <", "the answer: 1", "answer: < 4")}
    assert list(awaited.values()) == ["answer:", "answer:", "<", "."]
    assert rule.awaited(tokenizer(": <").input_ids, tokenizer("the answer").input_ids) == "."


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(alphabet="ab </think>\n", max_size=12), cut=st.integers(0, 40))
def test_a_prefix_and_what_is_sampled_behind_it_end_as_the_whole_does(name: str, text: str, cut: int) -> None:
    """Also where a tag, or what has to come before it, begins in the prefix."""
    tokenizer = TOKENIZERS[name]()
    for rule in (StopRule(tokenizer, TAG), StopRule(tokenizer, "b", after=(TAG,))):
        ids = tokenizer(f"{text}{TAG}a b", add_special_tokens=False).input_ids
        whole = ends(rule, ids)
        assert whole is not None
        read, stop = whole
        if cut >= read:
            continue
        found = ends(rule, ids[cut:], ids[:cut])
        assert found is not None
        assert found[0] == read - cut
        if stop.kept >= cut:
            assert found[1] == Stop(stop.kept - cut, stop.closing)
        else:  # the tag began in the prefix and ended inside a token
            assert found[1] == Stop(read - cut, "sampled")


def test_a_rule_is_made_once() -> None:
    rules = StopRules(TOKENIZERS["characters"]())
    assert rules[".", ()] is rules[".", ()]
    assert rules[".", ("a",)].after == ("a",)
