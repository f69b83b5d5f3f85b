"""Token alignment and independence of the answer, over random texts and several tokenizers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TOKENIZERS
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.prompt_checks import check_tokens
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout

TEXT = st.text(alphabet="ab 42+<>/{}\\nxé数\n", min_size=1, max_size=25)
MADE = {name: Prompts(make(), PromptConfig()) for name, make in TOKENIZERS.items()}
BY_TOKENIZER = pytest.mark.parametrize("name", MADE)


def rollout(prompts: Prompts, problem: Problem, trace: str, closing: str) -> Rollout:
    """A trace as sampled: with ``sampled`` its own ids spell the closing tag, with ``appended`` they do not."""
    tag = prompts.config.close if closing == "sampled" else ""
    ids = tuple(prompts.tokenizer(trace + tag, add_special_tokens=False).input_ids)
    request = Request(problem.id, 0, prompts.prior(problem), "prior")
    return Rollout(request, ids, (0.0,) * len(ids), "closed", closing, trace + prompts.config.close)  # ty: ignore


def decode(prompts: Prompts, ids: tuple[int, ...]) -> str:
    return str(prompts.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@BY_TOKENIZER
@given(question=TEXT, answer=TEXT, trace=TEXT, closing=st.sampled_from(["sampled", "appended"]))
def test_a_trace_has_the_same_ids_in_every_context(
    name: str, question: str, answer: str, trace: str, closing: str
) -> None:
    prompts, problem = MADE[name], Problem("p", question, answer)
    taken = rollout(prompts, problem, trace, closing)
    for row in (prompts.prior_row(problem, taken), prompts.posterior_row(problem, taken)):
        span = row.spans["trace"]
        assert row.ids[span.start : span.stop] == taken.trace_ids


@BY_TOKENIZER
@given(question=TEXT, trace=TEXT, cut=st.integers(0, 30), closing=st.sampled_from(["sampled", "appended"]))
def test_a_prefix_stands_in_every_row_and_in_no_span(
    name: str, question: str, trace: str, cut: int, closing: str
) -> None:
    """The rows are those of the whole trace, and the span "trace" begins after what was given."""
    prompts, problem = MADE[name], Problem("p", question, "42")
    whole = rollout(prompts, problem, trace, closing)
    split = replace(
        whole.first(0),
        request=replace(whole.request, prefix_ids=whole.trace_ids[:cut]),
        trace_ids=whole.trace_ids[cut:],
        log_probs=whole.log_probs[cut:],
    )
    for render in (prompts.prior_row, prompts.posterior_row, prompts.response_row):
        before, after = render(problem, whole), render(problem, split)
        assert (after.ids, after.prompt) == (before.ids, before.prompt)
        assert after.spans["trace"].stop == before.spans["trace"].stop
        assert after.spans["trace"].start == before.spans["trace"].start + min(cut, len(whole.trace_ids))
        assert {n: s for n, s in after.spans.items() if n != "trace"} == {
            n: s for n, s in before.spans.items() if n != "trace"
        }
    assert prompts.answer_prompt(problem, split) == prompts.answer_prompt(problem, whole)


@BY_TOKENIZER
@given(question=TEXT, answer=TEXT, other=TEXT, trace=TEXT)
def test_before_the_answer_span_nothing_depends_on_the_answer(
    name: str, question: str, answer: str, other: str, trace: str
) -> None:
    prompts = MADE[name]
    rows = []
    for y in (answer, other):
        problem = Problem("p", question, y)
        rows.append(prompts.prior_row(problem, rollout(prompts, problem, trace, "sampled")))
    starts = [row.spans["answer"].start for row in rows]
    assert starts[0] == starts[1]
    assert rows[0].ids[: starts[0]] == rows[1].ids[: starts[1]]


@BY_TOKENIZER
def test_both_closings_give_the_same_text_and_the_tag_carries_loss_only_if_it_was_sampled(name: str) -> None:
    prompts, problem = MADE[name], Problem("p", "What is 12 + 30?", "42")
    rows = {c: prompts.prior_row(problem, rollout(prompts, problem, "add them", c)) for c in ("sampled", "appended")}
    assert decode(prompts, rows["sampled"].ids) == decode(prompts, rows["appended"].ids)
    for closing, row in rows.items():
        span, answer = row.spans["trace"], row.spans["answer"]
        assert ("</think>" in decode(prompts, row.ids[span.start : span.stop])) is (closing == "sampled")
        assert decode(prompts, row.ids[: answer.start]).endswith("add them</think>\n<answer>")
        assert decode(prompts, row.ids[answer.start : answer.stop]) == "42</answer>"
        assert answer.stop == len(row.ids)


@BY_TOKENIZER
@given(question=TEXT, answer=TEXT, other=TEXT)
def test_the_prior_prompt_is_blind_to_the_answer_and_the_posterior_prompt_is_not(
    name: str, question: str, answer: str, other: str
) -> None:
    prompts = MADE[name]
    a, b = Problem("p", question, answer), Problem("p", question, other)
    assert prompts.prior(a) == prompts.prior(b)
    if answer.strip() != other.strip():
        assert (prompts.posterior(a) != prompts.posterior(b)) or decode(prompts, prompts.posterior(a)) == decode(
            prompts, prompts.posterior(b)
        )


def test_question_and_hint_are_taken_literally() -> None:
    prompts = MADE["characters"]
    problem = Problem("p", "{hint} {question} {0}", "{question}")
    assert "{hint} {question} {0}" in decode(prompts, prompts.prior(problem))
    assert "The reference answer is {question}." in decode(prompts, prompts.posterior(problem))


def test_a_hint_replaces_the_answer_in_the_posterior_prompt_only() -> None:
    prompts = MADE["characters"]
    problem = Problem("p", "q?", "right", hint="wrong")
    assert "wrong" in decode(prompts, prompts.posterior(problem))
    assert "right" not in decode(prompts, prompts.posterior(problem))
    assert decode(prompts, prompts.answer(problem)) == "right</answer>"


def test_the_tokenizers_own_beginning_is_kept_once() -> None:
    prompts = MADE["bytes with bos"]
    ids = prompts.prior(Problem("p", "q", "a"))
    assert ids.count(prompts.tokenizer.bos_token_id) == 1
    assert ids[0] == prompts.tokenizer.bos_token_id


def test_an_invalid_trace_has_no_answer() -> None:
    prompts, problem = MADE["characters"], Problem("p", "q", "a")
    cut = Rollout(Request("p", 0, prompts.prior(problem), "prior"), (5, 6), (0.0, 0.0), "length", "none", "xy")
    assert set(prompts.prior_row(problem, cut).spans) == {"trace"}


def test_an_empty_answer_names_its_problem() -> None:
    with pytest.raises(UserError, match="problem law/7: the answer is empty"):
        MADE["characters"].answer(Problem("law/7", "q", ""))


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_chat_template_frames_the_question_and_the_openings_follow_it() -> None:
    tokenizer = TOKENIZERS["characters"]()
    tokenizer.chat_template = CHAT
    config = PromptConfig(
        system="Be brief.", user="{question}?", prior_open="<think>", posterior_open="({hint})<think>"
    )
    problem = Problem("p", "2+2", "4")
    prompts = Prompts(tokenizer, config)
    assert decode(prompts, prompts.prior(problem)) == "<|system|>Be brief.\n<|user|>2+2?\n<|assistant|><think>"
    assert decode(prompts, prompts.posterior(problem)).endswith("<|assistant|>(4)<think>")
    plain = Prompts(tokenizer, config.model_copy(update={"chat": "never"}))
    assert decode(plain, plain.prior(problem)) == "Be brief.2+2?<think>"


def test_a_template_that_writes_the_beginning_of_sequence_gets_no_second_one() -> None:
    tokenizer = TOKENIZERS["bytes with bos"]()
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    ids = Prompts(tokenizer, PromptConfig()).prior(Problem("p", "q", "a"))
    assert ids.count(tokenizer.bos_token_id) == 1


# What a tokenizer cannot write


def words(known: str, unknown: str | None = "<unk>", drops: str = "") -> PreTrainedTokenizerFast:
    """One token a character of ``known``; anything else is ``unknown`` (or nothing), ``drops`` is normalised away."""
    special = [unknown] if unknown else []
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate([*special, *known])}, [], unk_token=unknown))
    if drops:
        inner.normalizer = normalizers.Replace(drops, "")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=unknown, clean_up_tokenization_spaces=False)


TAGS = "</think>\n<answer>"


@BY_TOKENIZER
@pytest.mark.parametrize("tag", ["</think>", " </t>", "\n\nAnswer: ", ">\n", "\n", " ."])
def test_tags_survive_every_usual_tokenizer(name: str, tag: str) -> None:
    assert MADE[name].reads_back(tag) == tag
    check_tokens(MADE[name], [Problem("p", "q", "42 > 41, a b")])


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (words("answer<>\n"), "prompts.close: the tokenizer .* cannot write '</think>': its tokens read '<<unk>"),
        (words("answer<>\n", None), "prompts.close: .* cannot write '</think>': its tokens read '<n>'"),
        (words("/x", None), "prompts.close: .* cannot write '</think>': its tokens read '/'"),
        (words("xy", None), "prompts.close: .* has no tokens for '</think>'; are its files in the model's folder"),
        (words(TAGS, drops="\n"), r"prompts.answer_prefix: .* cannot write '\\n<answer>': its tokens read '<answer>'"),
        (words(TAGS, drops="er>"), r"prompts.answer_prefix: .* cannot write '\\n<answer>': its tokens read '\\n<answ'"),
    ],
)
def test_a_tag_that_the_tokenizer_loses_is_named_with_its_setting(
    tokenizer: PreTrainedTokenizerFast, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        check_tokens(Prompts(tokenizer, PromptConfig()), [Problem("p", "q", "42")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_an_answer_without_tokens_is_named_with_what_is_lost(unknown: str | None) -> None:
    prompts = Prompts(words(TAGS + "42 ", unknown), PromptConfig())
    check_tokens(prompts, [Problem("p", "questions are not looked at: é", "4 2")])
    with pytest.raises(UserError, match=r"problem law/7: the tokenizer .* has no token for '7é' of the answer '4 7é'"):
        check_tokens(prompts, [Problem("a", "q", "4"), Problem("law/7", "q", "4 7é")])
    with pytest.raises(UserError, match="problem law/8: the answer is empty"):
        check_tokens(prompts, [Problem("a", "q", "4"), Problem("law/8", "q", " ")])


def test_a_tokenizer_may_change_letter_case_and_unicode_form() -> None:
    tokenizer = words("</think>\n<answer>ab1/2⁄")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    check_tokens(Prompts(tokenizer, PromptConfig()), [Problem("p", "q", "AB½")])
