"""The CountDown base: its supervised rows, its tokenizer, its recipe and the folder that is shipped."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_base import Example, build_model, build_tokenizer
from make_countdown_base import BASE_FOLDER, MOST_BRANCHES, VOCABULARY, countdown_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from covrl.config import RunConfig, check, read_toml
from covrl.problems.countdown import Habit, expression, questions, read_question, read_trace, solution
from covrl.rewards.countdown import read_expression

TOKENIZER = build_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    rng = random.Random(7)
    return [row for _ in range(12) for row in countdown_rows(rng)]


def test_rows_use_base_questions_only(rows: list[Example]) -> None:
    held_out = {str(question) for split in ("train", "dev", "test") for question in questions(split)}
    used = {row.question for row in rows}
    assert used.isdisjoint(held_out)
    assert used <= set(map(str, questions("base")))


def test_every_trace_is_true_and_searches_give_up_after_a_few_branches(rows: list[Example]) -> None:
    gave_up = 0
    for row in rows:
        trace = row.target.partition("</think>")[0]
        found = read_trace(row.question, trace)
        assert not found.false_step
        assert found.sound or (row.habit is Habit.SEARCH and trace.count(" no") <= MOST_BRANCHES)
        gave_up += not found.sound
    assert 0.15 < gave_up / len(rows) < 0.6


def test_prior_rows_mostly_answer_what_the_trace_came_to(rows: list[Example]) -> None:
    prior = [row for row in rows if row.hint is None]
    agree = 0
    for row in prior:
        trace, _, said = row.target.removesuffix("</answer><eos>").partition("</think><answer>")
        value, numbers = read_expression(said)
        ends = int(trace.removesuffix(" no").rpartition("=")[2])
        agree += value == ends and list(numbers) == sorted(read_question(row.question).numbers)
    assert 0.95 < agree / len(prior) < 1


def test_posterior_rows_hold_no_answer_and_mostly_lead_to_the_hint(rows: list[Example]) -> None:
    posterior = [row for row in rows if row.hint is not None]
    own = [row for row in posterior if row.hint == expression(solution(read_question(row.question)))]
    assert len(own) / len(posterior) == pytest.approx(0.8, abs=0.05)
    assert all("<answer>" not in row.target for row in posterior)
    assert all(read_trace(row.question, row.target).sound for row in own)


@given(st.lists(st.sampled_from([t for t in VOCABULARY if not t.isdigit()]), max_size=40), st.integers(0, 160))
def test_tokenizer_round_trips(tokens: list[str], number: int) -> None:
    text = str(number).join(tokens)
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.unk_token_id not in ids or "<unk>" in tokens
    assert len(ids) == max(2 * len(tokens) - 1, 0)  # a token a number
    assert TOKENIZER.decode(ids) == text


def test_rows_fit_the_recipe(rows: list[Example]) -> None:
    recipe = check(RunConfig, read_toml(BASE_FOLDER.parent / "countdown.toml"))
    for row in rows:
        assert TOKENIZER.unk_token_id not in TOKENIZER(row.prompt + row.target)["input_ids"]
        trace, _, said = row.target.partition("</think>")
        assert len(TOKENIZER(trace + "</think>")["input_ids"]) <= recipe.generation.max_trace_tokens
        assert len(TOKENIZER(said)["input_ids"]) <= recipe.generation.max_answer_tokens + 2  # its tags


def test_the_shipped_base_is_small_and_of_this_vocabulary() -> None:
    assert sum(file.stat().st_size for file in BASE_FOLDER.iterdir()) <= 2_000_000
    assert AutoTokenizer.from_pretrained(BASE_FOLDER).get_vocab() == TOKENIZER.get_vocab()
    model = AutoModelForCausalLM.from_pretrained(BASE_FOLDER)
    assert model.num_parameters() == build_model(TOKENIZER).num_parameters() < 400_000
