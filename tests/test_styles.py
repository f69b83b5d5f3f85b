"""``prompts.style``: which wording a style gives, what overrides it, and that runs keep theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from models import character_tokenizer
from prompts.templates import CLOSES, DATED, INST, OPENS, PARTS, PLAIN, PROBLEM, both, tokenizer_with

from covrl.algorithms.covrl import CoVRL
from covrl.api import config_for
from covrl.checkpoints.resuming import check_config
from covrl.config import PromptConfig, RunConfig, check, config_from, read_toml, styles, to_toml
from covrl.config.styles import STYLED, STYLES, TEMPLATES
from covrl.errors import UserError
from covrl.prompt_checks import check_tokens
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout
from covrl.training.rollouts import ended

MODEL = {"model": {"path": "x"}}


def prompts_of(**table: str) -> PromptConfig:
    return check(RunConfig, {**MODEL, "prompts": table}).prompts


def test_tags_are_the_defaults_as_they_were() -> None:
    assert prompts_of(style="tags") == prompts_of() == PromptConfig()
    assert (PromptConfig().close, PromptConfig().answer_prefix) == ("</think>", "\n<answer>")


@pytest.mark.parametrize("style", ["thinking", "plain"])
def test_a_style_fills_what_is_not_set_and_nothing_else(style: str) -> None:
    found = prompts_of(style=style, close="So it is", system="Be brief.")
    wording = dict(STYLES[style])  # ty: ignore
    wording["posterior_open"] = found.prior_open  # the answer is shown in the user's turn, and both openings are equal
    for name in PromptConfig.model_fields.keys() - {"style", "close", "system"}:
        assert getattr(found, name) == wording.get(name, getattr(PromptConfig(), name)), name
    assert (found.close, found.system) == ("So it is", "Be brief.")


def test_a_field_that_is_set_to_the_default_is_set() -> None:
    assert prompts_of(style="plain", close="</think>").close == "</think>"


def test_the_answer_is_shown_in_one_place_which_is_the_one_that_is_set() -> None:
    mine = "Given {hint}, think.\n<think>\n"
    thinking = prompts_of(style="thinking", posterior_open=mine)
    assert (thinking.posterior_user, thinking.posterior_open) == ("", mine)
    told = prompts_of(style="plain", posterior_user="{question} It is {hint}.")
    assert (told.posterior_user, told.posterior_open, told.prior_open) == ("{question} It is {hint}.", "", "")
    opened = prompts_of(style="thinking", prior_open="<thought>")
    assert opened.posterior_open == "<thought>"
    assert "{hint}" in opened.posterior_user


def test_the_checks_see_the_styles_wording_and_the_field_together() -> None:
    with pytest.raises(UserError, match=r"posterior_open has no \{hint\}"):
        prompts_of(style="plain", posterior_user="{question}", posterior_open="because")


@pytest.mark.parametrize("style", STYLES)
def test_every_style_keeps_the_prior_from_the_answer_and_starts_traces_alike(style: str) -> None:
    """A trace begins after the same text under both prompts, and its end can be written by any tokenizer."""
    prompts = Prompts(character_tokenizer(), prompts_of(style=style))
    problem = Problem("p", "How many?", "3.5")
    check_tokens(prompts, [problem])
    prior, posterior = (prompts.tokenizer.decode(ids) for ids in (prompts.prior(problem), prompts.posterior(problem)))
    assert ("3.5" in posterior, "3.5" in prior) == (True, False)
    assert ("How many?" in posterior, "How many?" in prior) == (True, True)
    assert prior[-1] == posterior[-1] == "\n"
    assert prompts.config.answer_suffix not in "3.5", "the suffix must not end an answer early"
    assert prompts.config.answer_suffix not in r"\frac{1}{2}"


@pytest.mark.parametrize(
    "template", [PLAIN, OPENS, INST, PARTS, DATED], ids=["plain", "opens", "inst", "parts", "dated"]
)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_goes_with_every_kind_of_chat_template(style: str, template: str) -> None:
    """The thought opens once where the style has one, and the answer stands before it, in the posterior alone."""
    prompts = Prompts(tokenizer_with(template), prompts_of(style=style))
    check_tokens(prompts, [PROBLEM])
    prior, posterior = both(prompts)
    asked = prompts.config.user.partition("{question}")[2].strip()
    opened = int(prompts.config.prior_open == "<think>\n" or template == OPENS)
    for text in (prior, posterior):
        after = text.replace(asked, "").partition(PROBLEM.question)[2]
        assert after.count("<think>") == opened
    shown = posterior.index(" 4")
    assert " 4" not in prior
    assert not opened or shown < posterior.rindex("<think>")
    assert prior[-1] == posterior[-1]


@pytest.mark.parametrize("style", ["tags", "thinking"])
def test_a_template_that_closes_an_empty_thought_is_refused_and_plain_words_are_not(style: str) -> None:
    with pytest.raises(UserError, match="enable_thinking"):
        Prompts(tokenizer_with(CLOSES), prompts_of(style=style)).prior(PROBLEM)
    assert "<think>\n\n</think>" in both(Prompts(tokenizer_with(CLOSES), prompts_of(style="plain")))[0]


def test_a_run_keeps_its_words_when_a_style_gets_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = check(RunConfig, {**MODEL, "prompts": {"style": "plain"}})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    changed = {**STYLES, "plain": dict.fromkeys(STYLES["plain"], "{question} {hint} new words")}
    monkeypatch.setattr(styles, "STYLES", changed)
    assert check(RunConfig, read_toml(file)) == config


def test_a_checkpoint_of_before_there_were_styles_goes_on(tmp_path: Path) -> None:
    now = check(RunConfig, MODEL)
    before = now.model_dump(mode="json")
    del before["prompts"]["style"], before["prompts"]["posterior_template"], before["evaluation"]["answer_temperature"]
    assert check_config({"config": before, "done": 3}, now, CoVRL, tmp_path) == []
    other = check(RunConfig, {**MODEL, "prompts": {"style": "plain"}})
    with pytest.raises(UserError, match=r"prompts\.\w+ is .*put it back, or begin a new run"):
        check_config({"config": before, "done": 3}, other, CoVRL, tmp_path)


def test_a_style_on_the_command_line_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    """A run's config.toml has the whole wording, which goes before a style."""
    config = check(RunConfig, {**MODEL, "prompts": {"style": "plain"}})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    said = r"--set prompts\.style=tags: the whole wording is in .*config\.toml, .*prompts\.close"
    with pytest.raises(UserError, match=said):
        config_from(file, ["prompts.style=tags"])
    with pytest.raises(UserError, match=said):
        config_for("x", file, ["prompts.style=tags"])
    assert config_from(file, ["prompts.style=plain"]) == config
    part = tmp_path / "part.toml"
    part.write_text('[model]\npath = "x"\n[prompts]\nclose = "Hence"\n', encoding="utf-8")
    found = config_from(part, ["prompts.style=plain"]).prompts
    assert (found.close, found.answer_suffix) == ("Hence", STYLES["plain"]["answer_suffix"])
    assert "close" in STYLED


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_shows_the_answer_in_the_users_turn_and_asks_for_the_same_format(template: str) -> None:
    """Whatever the style: the prior stays as it was, traces begin alike, and the hint alone tells two hints apart."""
    for style in STYLES:
        prompts = Prompts(tokenizer_with(PLAIN), prompts_of(style=style, posterior_template=template))
        plain = Prompts(tokenizer_with(PLAIN), prompts_of(style=style))
        check_tokens(prompts, [PROBLEM])
        assert prompts.prior(PROBLEM) == plain.prior(PROBLEM)
        config = prompts.config
        asked = config.user.partition("{question}")[2]
        prior, posterior = both(prompts)
        assert posterior.endswith(prior[prior.index(PROBLEM.question) + len(PROBLEM.question) :])
        assert asked in posterior
        assert config.posterior_open == config.prior_open
        assert PROBLEM.question in posterior
        shown, foil = (prompts.text(replace(PROBLEM, hint=hint), "posterior") for hint in ("<4711>", "<0815>"))
        assert shown.replace("<4711>", "<0815>") == foil
        assert shown.count("<4711>") == 1


def test_the_default_template_is_the_styles_own_words() -> None:
    assert prompts_of(posterior_template="style") == PromptConfig()
    own = prompts_of(user="Solve: {question} Be brief.", posterior_template="bare")
    assert own.posterior_user == "Solve: Answer: {hint}\n\n{question} Be brief."
    with pytest.raises(UserError, match=r"prompts\.posterior_template: Input should be 'style', 'neutral'"):
        prompts_of(posterior_template="today")
    with pytest.raises(UserError, match="posterior_open must be prior_open: leave it out"):
        prompts_of(posterior_template="check", posterior_open="Given {hint}.")


def test_a_template_that_would_change_nothing_is_refused_and_a_run_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = check(RunConfig, {**MODEL, "prompts": {"posterior_template": "plan"}})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"--set prompts\.posterior_template=bare: .* so a template changes nothing"):
        config_from(file, ["prompts.posterior_template=bare"])
    monkeypatch.setattr(styles, "TEMPLATES", dict.fromkeys(TEMPLATES, "{question} {hint} new words"))
    assert check(RunConfig, read_toml(file)) == config


def test_the_shipped_base_says_that_its_words_are_its_own() -> None:
    with pytest.raises(UserError, match=r"whole wording is in the settings of covrl:digits, so a style"):
        config_for("covrl:digits", None, ["prompts.style=plain"])


@pytest.mark.parametrize(
    ("style", "text", "said"),
    [
        ("plain", "4 + 3 = 7. The answer is 7.", "7"),  # the end of the text in the place of the line break
        ("plain", "4 + 3 = 7. The answer is 3.5.", "3.5"),
        ("plain", "4 + 3 = 7. The answer is 7", None),
        ("plain", "4 + 3 = 7.", None),
        ("tags", "4 + 3</think>\n<answer>7", None),  # a closing tag that is missing stays missing
    ],
)
def test_a_response_may_end_where_the_white_space_of_its_suffix_is_due(style: str, text: str, said: str | None) -> None:
    prompts = Prompts(character_tokenizer(), prompts_of(style=style))
    eos = prompts.tokenizer.eos_token_id
    ids = (*prompts.tokenizer(text).input_ids, eos)
    response = Rollout(Request("p", 0, (), "prior"), ids, (0.0,) * len(ids), "eos", "none", f"{text}<eos>")
    found = prompts.said(ended(response, prompts))
    assert (found and found.strip()) == said
    cut = Rollout(Request("p", 0, (), "prior"), ids[:-1], (0.0,) * len(ids[:-1]), "length", "none", text)
    assert prompts.said(ended(cut, prompts)) is None
