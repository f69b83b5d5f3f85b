"""Chat templates that fail, lose a text, open or close a thought, or read the clock: one line, or the right prompt."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from templates import (
    CLOSES,
    DATED,
    DROPS_SYSTEM,
    HEADER,
    INST,
    NO_GENERATION,
    NO_SYSTEM,
    OPENS,
    PARTS,
    PLAIN,
    PROBLEM,
    TURNS,
    both,
    generation,
    prompts_with,
    read,
    tokenizer_with,
)

from covrl.chat_template import date_values
from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.prompt_checks import check_tokens
from covrl.prompts import Prompts, dated
from covrl.records import Problem

HINT_IN_TURN = {"posterior_user": "{question} It is {hint}.", "user": "{question}"}
KINDS = {"plain": PLAIN, "opens": OPENS, "closes": CLOSES, "parts": PARTS, "inst": INST, "dated": DATED}
THINKS = {"closes": {"template_options": {"enable_thinking": True}}}


def refusal(template: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        check_tokens(prompts_with(template, **settings), [PROBLEM])
    assert "\n" not in str(error.value)
    assert "problem p" not in str(error.value), "the template is at fault, and no problem"
    return str(error.value)


# Case 1: failures


def test_case_1_a_refused_system_role_is_one_line_with_the_remedy() -> None:
    assert "fails: no system role here; leave prompts.system empty" in refusal(NO_SYSTEM, system="Be brief.")
    assert both(prompts_with(NO_SYSTEM))[0].startswith("<|user|>What is 2 + 2?")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n{% for m in messages %}{{ m['content'] }", "fails in line 2: unexpected '}'; mend it"),
        ("{{ messages.nothing.at_all }}", "fails: "),
        ({"rag": PLAIN, "tool_use": PLAIN}, "several chat templates (rag, tool_use) and none is called default"),
    ],
)
def test_case_1_what_cannot_be_rendered_is_one_line_with_the_remedy(template: Any, said: str) -> None:
    found = refusal(template)
    assert said in found
    assert 'prompts.chat = "never"' in found


def test_a_template_that_is_called_default_is_used() -> None:
    named = prompts_with({"default": OPENS, "rag": PLAIN})
    assert both(named) == both(prompts_with(OPENS))


# Case 2: the system message


def test_case_2_a_dropped_system_message_is_refused_and_one_that_commands_is_not() -> None:
    assert "drops the system message" in refusal(DROPS_SYSTEM, system="Be brief.")
    obeys = TURNS.replace("m['content']", "m['content'] | replace('/no_think', '')") + HEADER
    check_tokens(prompts_with(obeys, system="/no_think"), [PROBLEM])


# Case 3: parts, and a question that is not there


def test_case_3_a_template_that_wants_parts_gets_them() -> None:
    settings = {"system": "Be brief."}
    assert both(prompts_with(PARTS, **settings)) == both(prompts_with(PLAIN, **settings))


def test_case_3_a_question_that_the_template_never_shows_is_refused() -> None:
    assert "does not show the user's message" in refusal("<|user|>Hello<|end|>\n" + HEADER)


def test_case_3_every_problem_is_looked_at() -> None:
    """This template cuts at a slash, so one question in three is not what it was."""
    cuts = TURNS.replace("m['content']", "(m['content'].split('//') | first)") + HEADER
    prompts = prompts_with(cuts, user="{question}", posterior_user="{hint}? {question}")
    good = Problem("good", "1 / 2", "3")
    check_tokens(prompts, [good])
    with pytest.raises(
        UserError, match=r"problem bad/1: the chat template .* does not show the question as it is .*7 //"
    ):
        check_tokens(prompts, [good, Problem("bad/1", "7 // 2", "3"), good])
    with pytest.raises(UserError, match=r"problem bad/2: the chat template .* does not show the (question|hint)"):
        check_tokens(prompts, [good, Problem("bad/2", "7", "3 // 2")])


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_prompt_never_depends_on_the_hint_and_both_prompts_end_alike(kind: str) -> None:
    for extra in ({}, HINT_IN_TURN):
        prompts = prompts_with(KINDS[kind], **extra, **THINKS.get(kind, {}))
        one, other = (Problem("p", "{hint} 2 + 2?", "4", hint=hint) for hint in ("4", "five {question}"))
        assert prompts.prior(one) == prompts.prior(other)
        assert prompts.posterior(one) != prompts.posterior(other)
        prior, posterior = both(prompts, other)
        assert "five {question}" in posterior
        assert "five" not in prior
        assert "{hint} 2 + 2?" in prior
        assert posterior.endswith(prior[prior.rindex("<think>") :])


# Case 4: thoughts


@pytest.mark.parametrize(
    ("opened", "prior_open", "close"),
    [
        ("<think>\n", "<think>\n", "</think>"),
        ("<think>", "<think>\n", "</think>"),
        ("<think>\n", "", "</think>"),
        ("<thought>\n", "<thought>\n", "</thought>"),
        ("[PLAN]", "[PLAN]", "[/PLAN]"),
        ("<|START_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("<seed:think>", "", "</seed:think>"),
    ],
)
def test_case_4_a_thought_that_the_template_opens_is_opened_once(opened: str, prior_open: str, close: str) -> None:
    posterior_open = f"The answer is {{hint}}.\n{prior_open}"
    prompts = prompts_with(
        generation(HEADER + opened),
        user="{question}",
        prior_open=prior_open,
        posterior_open=posterior_open,
        close=close,
    )
    prior, posterior = both(prompts)
    begun = f"<|end|>\n{HEADER}{opened}"
    assert prior == f"<|user|>What is 2 + 2?{begun}"
    assert posterior == f"<|user|>What is 2 + 2?\n\nThe answer is 4.{begun}", "the hint is context, before the thought"
    assert any("at the end of the user's turn" in note for note in prompts.notes)
    assert any("does not open it again" in note for note in prompts.notes) is bool(prior_open)


def test_case_4_with_the_hint_in_the_users_turn_nothing_is_moved() -> None:
    prompts = prompts_with(OPENS, **HINT_IN_TURN)
    assert both(prompts)[1] == "<|user|>What is 2 + 2? It is 4.<|end|>\n<|assistant|>\n<think>\n"
    assert not any("hint" in note for note in prompts.notes)


def test_case_4_words_after_the_tag_stay_in_the_thought_of_both_prompts() -> None:
    words = {"prior_open": "<think>\nOkay, ", "posterior_open": "It is {hint}.\n<think>\nOkay, ", "user": "{question}"}
    prior, posterior = both(prompts_with(OPENS, **words))
    assert prior.endswith("<think>\nOkay, ")
    assert posterior == "<|user|>What is 2 + 2?\n\nIt is 4.<|end|>\n<|assistant|>\n<think>\nOkay, "


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"posterior_open": "<think>\nI know: {hint}"},
            "the hint would stand inside the thought as .* prompts.posterior_user",
        ),
        ({"prior_open": "Okay.\n<think>\n"}, "'Okay.' stands before <think>"),
        ({"prior_open": "<reasoning>"}, 'opens another one with <reasoning>: set prompts.prior_open = "" and'),
    ],
)
def test_case_4_words_that_do_not_go_with_an_opened_thought_are_refused(settings: dict[str, str], said: str) -> None:
    assert re.search(said, refusal(OPENS, **settings))


def test_case_4_a_closed_empty_thought_is_refused_with_the_option_that_keeps_it_open() -> None:
    assert "set prompts.template_options.enable_thinking = true" in refusal(CLOSES)
    prompts = prompts_with(CLOSES, template_options={"enable_thinking": True})
    check_tokens(prompts, [PROBLEM])
    assert both(prompts) == both(prompts_with(PLAIN))
    assert "opens a second one with <think>" in refusal(generation(HEADER + "<think></think>\n"), **HINT_IN_TURN)


def test_case_4_plain_words_may_follow_a_closed_empty_thought() -> None:
    plain = {"prior_open": "", "close": "The answer is", "answer_prefix": " ", "answer_suffix": "."} | HINT_IN_TURN
    prompts = prompts_with(CLOSES, **plain)
    check_tokens(prompts, [PROBLEM])
    assert prompts.notes == ()
    assert both(prompts)[0].endswith("<think>\n\n</think>\n\n")
    again = prompts_with(CLOSES, prior_open="", **HINT_IN_TURN)
    assert "end at a second </think>: set prompts.template_options.enable_thinking = true" in again.notes[0]


def test_case_4_an_assistants_header_is_no_thought() -> None:
    for header in ("<|assistant|>", "<start_of_turn>model\n", "[/INST]", "<|header|>assistant<|header_end|>\n\n"):
        prompts = prompts_with(generation(header))
        assert both(prompts)[0].endswith(f"{header}<think>\n")
        assert prompts.notes == ()


def test_an_option_reaches_the_template_the_same_in_both_prompts_and_an_idle_one_is_said() -> None:
    template = generation("{{ tone | default('calm') }}" + HEADER)
    prompts = prompts_with(template, template_options={"tone": "loud", "colour": "red"})
    assert all("loud<|assistant|>" in text for text in both(prompts))
    assert prompts.notes == ("prompts.template_options.colour does nothing: the chat template does not read it",)
    same = prompts_with(template, template_options={"tone": "calm"})
    assert same.notes == ("prompts.template_options.tone does nothing: the prompt is the same without it",)
    never = prompts_with(template, template_options={"tone": "loud"}, chat="never", date="2026-01-31")
    assert [note.partition(" does")[0] for note in never.notes] == ["prompts.template_options.tone", "prompts.date"]


# Case 5: the date


def test_case_5_a_date_is_the_settings_own_whatever_the_day() -> None:
    for day, said in (("2026-01-05", "5 January 2026, 100%"), ("2024-12-29", "29 December 2024, 100%")):
        for text in both(prompts_with(DATED, date=day)):
            assert text.startswith(f"<|system|>Today is {said}<|end|>\n<|user|>")


def test_case_5_the_day_on_which_a_run_begins_is_kept_where_the_template_reads_it() -> None:
    day = date(2026, 1, 31)
    assert dated(PromptConfig(), tokenizer_with(DATED), day).date == "2026-01-31"
    assert dated(PromptConfig(date="2020-02-29"), tokenizer_with(DATED), day).date == "2020-02-29"
    unread = "{% if dated %}{{ strftime_now('%Y') }}{% endif %}" + PLAIN
    for template in (PLAIN, unread, None):
        assert dated(PromptConfig(), tokenizer_with(template), day).date == ""
    assert dated(PromptConfig(template_options={"dated": True}), tokenizer_with(unread), day).date == "2026-01-31"
    assert dated(PromptConfig(chat="never"), tokenizer_with(DATED), day).date == ""
    assert "reads no date" in prompts_with(PLAIN, date="2026-01-31").notes[0]


def test_case_5_a_template_with_a_date_is_otherwise_what_transformers_renders() -> None:
    template = "\n  {%- set now = strftime_now('%d %b %Y') -%}\n{% if now %}\n" + DATED + "{% endif %}"
    tokenizer = tokenizer_with(template)
    turns = [{"role": "user", "content": "2 + 2?"}]
    today = date.today()
    own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ours = Prompts(tokenizer, PromptConfig(user="{question}", prior_open="", date=today.isoformat()))
    assert ours.text(Problem("p", "2 + 2?", "4"), "prior") == own


@pytest.mark.parametrize("form", ["%d %b %Y", "%A, %-d %B %y %j", "%%d %d%%", "%Y-%m-%d", "no directive"])
def test_case_5_dates_are_written_as_by_strftime(form: str) -> None:
    for day in (date(2026, 1, 5), date(1999, 12, 31)):
        text = form
        for directive, value in date_values(day):
            text = text.replace(directive, value)
        assert text == day.strftime(form)


# Case 24: the assistant's header


def test_case_24_a_missing_header_is_said_with_what_to_set() -> None:
    (note,) = prompts_with(NO_GENERATION).notes
    assert '"<|assistant|>" is missing, so the model goes on in the user\'s turn' in note
    remedy = '"<|assistant|><think>\\n"'
    assert f"prompts.prior_open = {remedy}" in note
    mended = json.loads(remedy)
    prompts = prompts_with(NO_GENERATION, prior_open=mended, posterior_open="<|assistant|>It is {hint}.\n<think>\n")
    assert prompts.notes == ()
    assert both(prompts)[0].endswith("<|end|>\n<|assistant|><think>\n")


def test_case_24_a_template_that_always_begins_the_assistants_turn_is_well() -> None:
    for template in (DROPS_SYSTEM, INST, PLAIN, OPENS.replace("if add_generation_prompt", "if true")):
        assert not any("generation prompt" in note for note in prompts_with(template).notes)
    users = "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\n{% endif %}{% endfor %}"
    assert "does not begin the assistant's" in prompts_with(users).notes[0]


# All templates of the collection, where it is


COLLECTED = ("r1", "nothink", "qwen3", "nosystem", "dropsystem", "parts", "date", "nogen", "broken", "dict")
REFUSED = {
    "nothink": "set prompts.template_options.enable_thinking = true",
    "nosystem": "leave prompts.system empty",
    "dropsystem": "drops the system message",
    "broken": 'prompts.chat = "never"',
    "dict": 'prompts.chat = "never"',
}


@pytest.mark.parametrize("name", COLLECTED)
def test_each_collected_template_gives_right_prompts_or_one_line(name: str, request: pytest.FixtureRequest) -> None:
    file = Path(request.config.rootpath).parent / "shared" / "cases" / "chat_templates.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    template = json.loads(file.read_text())[name]
    if name in REFUSED:
        assert REFUSED[name] in refusal(template, system="Be brief.")
        return
    prompts = prompts_with(template, system="Be brief.")
    check_tokens(prompts, [PROBLEM])
    prior, posterior = both(prompts)
    assert "Be brief." in prior
    assert PROBLEM.question in prior
    assert prior.count("<think>\n") == posterior.count("<think>\n") == 1
    assert posterior.index("answer is 4.") < posterior.rindex("<think>\n")


def test_read_is_the_inverse_of_the_prompts_tokens() -> None:
    prompts = prompts_with(PLAIN)
    assert read(prompts, prompts.prior(PROBLEM)) == prompts.text(PROBLEM, "prior")
