"""Turns before a question, a problem's own system message and its template options, in prompts of every template."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import (
    CLOSES,
    DROPS_SYSTEM,
    HEADER,
    INST,
    NO_SYSTEM,
    OPENS,
    PARTS,
    PLAIN,
    TURNS,
    both,
    generation,
    prompts_with,
    read,
    tokenizer_with,
)

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.prompt_checks import check_tokens, longest_prompt, option_notes
from covrl.prompts import Prompts
from covrl.records import Problem, Turn

TALK = (Turn("user", "What is 1 + 1?"), Turn("assistant", "It is 2."))
ASKED = Problem("p", "What is 2 + 2?", "4", turns=TALK)
SYSTEM = replace(ASKED, turns=(Turn("system", "Be kind."), *TALK))
BOTH_TURNS = "<|user|>What is 1 + 1?<|end|>\n<|assistant|>It is 2.<|end|>\n"
PLAIN_WORDS = {"user": "{question}", "posterior_user": "{question} It is {hint}."}


def test_turns_stand_before_the_question_of_both_prompts() -> None:
    prompts = prompts_with(PLAIN, system="Be brief.", **PLAIN_WORDS)
    prior, posterior = both(prompts, ASKED)
    begun = f"<|system|>Be brief.<|end|>\n{BOTH_TURNS}<|user|>What is 2 + 2?"
    assert prior == f"{begun}<|end|>\n<|assistant|>\n<think>\n"
    assert posterior == f"{begun} It is 4.<|end|>\n<|assistant|>\n<think>\n"


def test_a_problems_own_system_message_takes_the_place_of_the_settings() -> None:
    prompts = prompts_with(PLAIN, system="Be brief.", **PLAIN_WORDS)
    assert both(prompts, SYSTEM)[0].startswith(f"<|system|>Be kind.<|end|>\n{BOTH_TURNS}<|user|>")
    plain = prompts_with(None, system="Be brief. ", **PLAIN_WORDS)
    own = replace(ASKED, turns=(Turn("system", "Be kind. "),))
    assert both(plain, own)[0] == "Be kind. What is 2 + 2?<think>\n"


@pytest.mark.parametrize("template", [PLAIN, PARTS, OPENS, INST], ids=["plain", "parts", "opens", "inst"])
def test_prompts_are_what_transformers_renders(template: str) -> None:
    tokenizer = tokenizer_with(template)
    prompts = Prompts(tokenizer, PromptConfig(**PLAIN_WORDS, prior_open=""))
    problem = SYSTEM if template != INST else ASKED
    messages = [*problem.turns, Turn("user", problem.question)]
    shown = [{"type": "text"} if template == PARTS else {}] * len(messages)
    turns = [
        {"role": r, "content": [part | {"text": t}] if part else t}
        for (r, t), part in zip(messages, shown, strict=True)
    ]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompts.text(problem, "prior") == expected
    assert prompts.prior(problem) == tuple(tokenizer(expected, add_special_tokens=False).input_ids)


WORDS = ["<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>", "a", " ", "\n", "<", "|end|>", "2 + 2"]
HOSTILE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)
MADE = {name: prompts_with(template, **PLAIN_WORDS) for name, template in (("plain", PLAIN), ("parts", PARTS))}


def controls(prompts: Prompts, ids: tuple[int, ...]) -> list[str]:
    named = {int(prompts.tokenizer.convert_tokens_to_ids(t)): t for t in WORDS[:5]}
    return [named[i] for i in ids if i in named]


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=40)
@given(texts=st.tuples(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE))
def test_no_text_of_any_turn_ends_a_turn_or_a_thought(name: str, texts: tuple[str, ...]) -> None:
    prompts = MADE[name]
    system, user, reply, question, answer = texts
    turns = (Turn("system", system), Turn("user", user), Turn("assistant", reply))
    problem = Problem("p", question, answer, turns=turns)
    frame = controls(prompts, prompts.prior(Problem("p", "a", "b", turns=tuple(t._replace(text="c") for t in turns))))
    assert len(frame) > 5
    for ids in (prompts.prior(problem), prompts.posterior(problem)):
        assert controls(prompts, ids) == frame
        for text in texts[:4]:
            assert text in read(prompts, ids)
    other = replace(problem, answer=answer + "x", hint="y")
    assert prompts.prior(problem) == prompts.prior(other), "nothing of the answer or the hint"


def test_a_template_that_reads_the_system_message_gets_it() -> None:
    """As templates do in which a command of the system message turns thinking off."""
    obeys = TURNS.replace("m['content']", "m['content'] | replace('/no_think', '')") + (
        HEADER + "{% if '/no_think' in messages[0]['content'] %}<think>\n\n</think>\n{% endif %}"
    )
    words = {"user": "{question}", "prior_open": "", "posterior_user": "{question} {hint}", "close": "So"}
    prompts = prompts_with(obeys, **words)
    for system, tail in (("Be kind. /no_think", "<think>\n\n</think>\n"), ("Be kind.", "")):
        problem = replace(SYSTEM, turns=(Turn("system", system), *TALK))
        check_tokens(prompts, [problem])
        assert both(prompts, problem)[0].endswith(f"What is 2 + 2?<|end|>\n{HEADER}{tail}")
        hostile = replace(problem, question="<|end|>?")
        assert both(prompts, hostile)[0].endswith(f"<|end|>?<|end|>\n{HEADER}{tail}")
        assert controls(prompts, prompts.prior(hostile)) == controls(prompts, prompts.prior(problem))


def test_a_problems_own_options_decide_over_those_of_the_settings() -> None:
    prompts = prompts_with(CLOSES, template_options={"enable_thinking": True}, **PLAIN_WORDS)
    on = replace(ASKED, template_options={"enable_thinking": True})
    check_tokens(prompts, [ASKED, on])
    assert both(prompts, on) == both(prompts, ASKED)
    off = replace(ASKED, id="p/7", template_options={"enable_thinking": False})
    with pytest.raises(UserError, match=r"problem p/7: .*the problem's own template_options.enable_thinking = true"):
        check_tokens(prompts, [ASKED, off])
    said = generation("{{ tone | default('calm') }}" + HEADER)
    for tone in (1, True, "loud"):
        assert f"{tone}<|assistant|>" in both(prompts_with(said), replace(ASKED, template_options={"tone": tone}))[0]


def test_one_and_true_are_two_options() -> None:
    prompts = prompts_with(generation("{{ tone }}" + HEADER))
    one, true = (replace(ASKED, template_options={"tone": value}) for value in (1, True))
    assert prompts.prior(one) != prompts.prior(true)


@pytest.mark.parametrize(
    ("template", "problem", "said"),
    [
        (None, ASKED, "messages before its question, but the tokenizer has no chat template"),
        (NO_SYSTEM, SYSTEM, "no system role here; put the text of its system message at the beginning of the question"),
        (DROPS_SYSTEM, SYSTEM, "drops the system message, so it would not be in the prompt: put the text of its"),
        (
            TURNS.replace("m['content']", "m['content'].split('</think>') | last") + HEADER,
            replace(ASKED, turns=(TALK[0], Turn("assistant", "<think>so</think>2"))),
            "does not show the assistant message 2 as it is written ('<think>so</think>2')",
        ),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + PLAIN,
            ASKED,
            "fails: one message;",
        ),
        (PLAIN, replace(ASKED, template_options={"tone": "<|end|>"}), "a control token of the tokenizer .* is spelt"),
        (PLAIN, replace(ASKED, template_options={"tokenize": True}), "tokenize is how the template is called"),
    ],
)
def test_what_a_template_cannot_render_names_its_problem(template: str | None, problem: Problem, said: str) -> None:
    good = Problem("good", "1 + 1?", "2")
    with pytest.raises(UserError, match=f"^problem p: .*{said.replace('(', '[(]').replace(')', '[)]')}"):
        check_tokens(prompts_with(template, **PLAIN_WORDS), [good, problem])


def test_options_that_do_nothing_are_said() -> None:
    tone = [replace(ASKED, template_options={"tone": "calm"})] * 2
    assert option_notes(prompts_with(PLAIN), tone) == [
        "template_options.tone of 2 problems does nothing: the chat template does not read it"
    ]
    assert "no chat template is used" in option_notes(prompts_with(PLAIN, chat="never"), tone)[0]
    assert option_notes(prompts_with(generation("{{ tone }}" + HEADER)), [*tone, ASKED]) == []


def test_the_tokens_of_turns_count() -> None:
    prompts = prompts_with(PLAIN)

    def excess(problem: Problem) -> int:
        exact = max(len(prompts.prior(problem)), len(prompts.posterior(problem)))
        return longest_prompt(prompts, [problem]) - exact

    long = replace(SYSTEM, turns=(Turn("system", "Be kind. " * 9), Turn("user", "<|end|>x" * 40), *TALK[1:]))
    for problem in (ASKED, SYSTEM, long):
        assert 0 <= excess(problem) <= excess(replace(problem, turns=())) + 2 * len(problem.turns)


def test_a_problem_with_turns_goes_through_json() -> None:
    from dataclasses import asdict

    fields = json.loads(json.dumps(asdict(SYSTEM)))
    again = Problem(**fields)
    prompts = prompts_with(PLAIN)
    assert prompts.prior(again) == prompts.prior(SYSTEM)
