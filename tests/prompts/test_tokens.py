"""What tokenizers do at their edges: a beginning that is an end, an unknown that steers, tokens without a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import byte_tokenizer, character_tokenizer, metaspace_tokenizer
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from covrl.config import PromptConfig, RunConfig
from covrl.errors import UserError
from covrl.evaluation.exam import Exam, check_room
from covrl.prompt_checks import check_lengths, check_rows, check_tokens, may_exceed, most_tokens
from covrl.prompts import ROLES, Prompts
from covrl.records import Problem

PLAIN = PromptConfig(user="{question}", prior_open="=", posterior_open="({hint})=", chat="never")
TEXT = st.text(alphabet="ab 42<+>é数\n", min_size=1, max_size=12).map(lambda t: f"x{t}<eos>"[: len(t) + 3])
MADE = {make: Prompts(make(), PLAIN) for make in (byte_tokenizer, metaspace_tokenizer, character_tokenizer)}


def framed(single: str, bos: str, eos: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts tokens around every text, as ``single`` says."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    named = [(t, tokenizer.convert_tokens_to_ids(t)) for t in dict.fromkeys((bos, eos))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=named)
    return tokenizer


@pytest.mark.parametrize(
    ("single", "bos", "begins"),
    [
        ("<eos> $A", "<eos>", ["<eos>"]),
        ("<eos> $A <eos>", "<eos>", ["<eos>"]),
        ("<bos> $A <eos>", "<bos>", ["<bos>"]),
        ("$A <eos>", "<bos>", []),
        ("$A <eos>", "<eos>", []),
    ],
)
def test_case_6_what_begins_a_text_is_kept_also_where_it_ends_texts_too(
    single: str, bos: str, begins: list[str]
) -> None:
    prompts = Prompts(framed(single, bos, "<eos>"), PLAIN)
    ids = prompts.prior(Problem("p", "2+2", "4"))
    expected = prompts.tokenizer.convert_tokens_to_ids(begins)
    assert ids == (*expected, *prompts.tokenizer("2+2=", add_special_tokens=False).input_ids)


def with_unknown(unknown: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer one of whose control tokens is its unknown token, which no text needs."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(unknown, special=True, normalized=False)], special_tokens=True)
    tokenizer.unk_token = unknown
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [with_unknown("<|endoftext|>"), character_tokenizer(), metaspace_tokenizer()],
    ids=["bytes", "characters", "metaspace"],
)
def test_case_7_an_unknown_token_that_a_text_spells_is_spelt_out(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts, spelt = Prompts(tokenizer, PLAIN), str(tokenizer.unk_token)
    problem = Problem("p", f"a{spelt}b", f"4{spelt}", hint=f"{spelt}5")
    for ids in (prompts.prior(problem), prompts.posterior(problem), prompts.answer(problem)):
        assert tokenizer.unk_token_id not in ids
        assert spelt in str(tokenizer.decode(list(ids))).replace(" ", "")
    check_tokens(prompts, [problem])


def test_case_7_a_character_that_is_unknown_stays_unknown() -> None:
    tokenizer = character_tokenizer()
    ids = Prompts(tokenizer, PLAIN).prior(Problem("p", "é<unk>é", "4"))
    assert ids.count(tokenizer.unk_token_id) == 2
    assert ids == tuple(tokenizer.convert_tokens_to_ids(t) for t in ("<unk>", *"<unk>", "<unk>", "="))


def grown(token: str) -> tuple[Prompts, int]:
    """Prompts of a tokenizer that got one more token than the model has rows, and the rows."""
    tokenizer = byte_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return Prompts(tokenizer, PLAIN), rows


@pytest.mark.parametrize(
    ("token", "problem", "where"),
    [
        ("apples", Problem("p/1", "apples", "4"), "the prompt of problem p/1"),
        ("apples", Problem("p/1", "q", "4 apples", hint="h"), "the answer of problem p/1"),
        ("apples", Problem("p/1", "q", "4", hint="apples"), "the prompt of problem p/1"),
        ("apples", Problem("p/1", "q", "4", solution="four apples"), "the solution of problem p/1"),
        ("</think>", Problem("p/1", "q", "4"), "prompts.close"),
    ],
)
def test_case_8_a_token_without_a_row_is_named_where_it_is_used(token: str, problem: Problem, where: str) -> None:
    prompts, rows = grown(token)
    said = rf"^{where}: the token '{token}' has the id {rows}, but the model's embedding has {rows} rows"
    with pytest.raises(UserError, match=said):
        check_rows(prompts, rows, [Problem("p/0", "q", "1"), problem])
    check_rows(prompts, rows + 1, [problem])


def test_case_8_a_token_that_nothing_uses_needs_no_row() -> None:
    prompts, rows = grown("<unused>")
    check_rows(prompts, rows, [Problem("p", "What is <unus", "4", solution="four")])


LATIN = Problem("latin", "the contract is void " * 12, "42")  # merged by this tokenizer
OTHER = Problem("other", "ދިވެހި" * 12, "42")  # fewer letters, six tokens a character and more


def config(trace: int) -> RunConfig:
    return RunConfig.model_validate(
        {"model": {"path": "-"}, "generation": {"max_trace_tokens": trace}, "prompts": PLAIN.model_dump()}
    )


def test_case_9_the_longest_problem_is_the_one_with_the_most_tokens() -> None:
    prompts = Prompts(byte_tokenizer(), PLAIN)
    assert len(OTHER.question) < len(LATIN.question)
    need = {p.id: len(prompts.posterior(p)) + len(prompts.answer(p)) for p in (LATIN, OTHER)}
    assert need["other"] > need["latin"]
    tags = len(prompts.close_ids) + len(prompts.answer_prefix_ids)
    fits = need["other"] + tags + 10
    check_lengths(prompts, fits, config(10), [LATIN, OTHER, LATIN])
    for problems in ([OTHER, LATIN], [LATIN, OTHER]):
        with pytest.raises(UserError, match=f"problem other: .* exceed the model's context of {fits - 1};"):
            check_lengths(prompts, fits - 1, config(10), problems)
    check_lengths(prompts, None, config(10), [OTHER])
    check_lengths(prompts, 1, config(10), [])


def test_case_9_a_long_answer_counts_too() -> None:
    prompts = Prompts(byte_tokenizer(), PLAIN)
    long = Problem("long", "q", "ދިވެހި" * 12, hint="h")
    least = len(prompts.posterior(LATIN)) + len(prompts.close_ids) + len(prompts.answer_prefix_ids) + 10
    assert len(prompts.answer(LATIN)) < 20 < len(prompts.answer(long))
    check_lengths(prompts, least + 20, config(10), [LATIN])
    with pytest.raises(UserError, match=rf"problem long: .* exceed the model's context of {least + 20}"):
        check_lengths(prompts, least + 20, config(10), [LATIN, long])


def test_case_9_the_same_in_an_exam() -> None:
    prompts = Prompts(byte_tokenizer(), PLAIN)
    exam = Exam("e", "file", (LATIN, OTHER), 0, 1.0, trace_tokens=10, answer_tokens=4, verifier="text")
    after = len(prompts.close_ids) + len(prompts.answer_prefix_ids) + 4
    fits = len(prompts.prior(OTHER)) + after + 10
    check_room(exam, prompts, fits, "model")
    with pytest.raises(UserError, match="problem other: "):
        check_room(exam, prompts, fits - 1, "model")
    check_room(dataclasses.replace(exam, problems=(LATIN,)), prompts, fits - 1, "model")


@pytest.mark.parametrize("make", [byte_tokenizer, metaspace_tokenizer, character_tokenizer])
@pytest.mark.parametrize("text", ["", "a", "2 + 2", "ދިވެހި", "數学 ½ ﷺ", "\U0001f984 é", "<unk><eos>", " " * 9])
def test_no_text_has_more_tokens_than_its_bound(make: Any, text: str) -> None:
    prompts = Prompts(make(), PLAIN)
    assert max(len(prompts.encode(text)), len(prompts.literal(text))) <= most_tokens(text)


class Watched(Prompts):
    """Prompts that note which texts were counted apart, and which prompts in full."""

    def counts(self, texts: Sequence[str]) -> list[int]:
        self.apart = list(texts)
        return super().counts(texts)

    def prior(self, problem: Problem) -> tuple[int, ...]:
        self.whole = problem.id
        return super().prior(problem)


def test_case_9_what_is_far_below_the_context_is_not_tokenized() -> None:
    """Ten thousand problems are looked at in a second or two: by bytes, then by their parts, then in full."""
    for context, apart, whole in ((4096, 0, False), (550, 2, False), (170, 3, True)):
        prompts = Watched(byte_tokenizer(), PLAIN)
        check_lengths(prompts, context, config(10), [LATIN, OTHER])
        assert (len(prompts.apart), hasattr(prompts, "whole")) == (apart, whole), context


@pytest.mark.parametrize("make", [byte_tokenizer, metaspace_tokenizer, character_tokenizer])
@given(question=TEXT, answer=TEXT)
def test_no_problem_that_exceeds_is_passed_over(make: Any, question: str, answer: str) -> None:
    prompts, problem = MADE[make], Problem("p", question, answer)
    need = {role: len(getattr(prompts, role)(problem)) for role in ("prior", "posterior")}
    for role in ROLES:
        assert may_exceed(prompts, [problem], need[role] - 1, (role,), answers=False) == [problem]
    whole = max(need.values()) + len(prompts.answer(problem))
    assert may_exceed(prompts, [problem], whole - 1, ROLES, answers=True) == [problem]
    assert may_exceed(prompts, [problem], 2 * whole + 9999, ROLES, answers=True) == []
