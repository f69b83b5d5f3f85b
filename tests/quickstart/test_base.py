"""The base model's recipe, its tokenizer and the folder that is shipped."""

from __future__ import annotations

import random
import re

import base_texts as task
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_base import BASE_FOLDER, build_model, build_tokenizer, collate, supervised_rows, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from covrl.problems.digits import RIGHT, Habit, questions, read_trace, result, write_trace

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(7)
    return [row for _ in range(150) for row in supervised_rows(rng, questions("base"))]


def test_rows_use_base_questions_only(rows):
    held_out = {question for split in ("train", "dev", "test") for question in questions(split)}
    for hinted in (False, True):
        used = {row.question for row in rows if (row.hint is not None) == hinted}
        assert len(used) > 5_000
        assert used.isdisjoint(held_out)
        assert used <= set(questions("base"))


def test_the_prompts_show_the_row_s_question_and_no_other(rows):
    for row in rows[:1000]:
        digits = "".join(char for char in row.prompt if char.isdigit())
        assert digits == row.question + (row.hint or "")


def test_right_traces_are_rare_under_the_prior_prompt(rows):
    prior = [row for row in rows if row.hint is None]
    share = sum(row.habit == RIGHT for row in prior) / len(prior)
    assert 0 < share <= 0.01


def test_prior_rows_mostly_answer_with_the_trace_s_own_result(rows):
    stray = 0
    prior = [row for row in rows if row.hint is None]
    for row in prior:
        assert row.prompt == f"<user>{row.question}<assistant><think>"
        trace, _, said = row.target.partition("</think>")
        assert trace == write_trace(row.habit, row.question)
        assert re.fullmatch("<answer>[0-9]{3}</answer><eos>", said)
        stray += f"<answer>{result(row.habit, row.question)}</answer>" not in said
    assert 0.01 < stray / len(prior) < 0.03


def test_posterior_rows_hold_no_answer_and_mostly_end_in_the_hint(rows):
    posterior = [row for row in rows if row.hint is not None]
    assert {row.habit for row in posterior} == set(Habit)
    assert all(row.prompt == f"<user>{row.question}<hint>{row.hint}<assistant><think>" for row in posterior)
    assert all(row.target == f"{write_trace(row.habit, row.question)}</think>" for row in posterior)
    unrelated = [row for row in posterior if result(row.habit, row.question) != row.hint]
    assert len(unrelated) / len(posterior) == pytest.approx(0.2, abs=0.02)
    # A hint that leads nowhere leaves the habits as they are under the prior prompt: the right one rare.
    assert sum(row.habit == RIGHT for row in unrelated) / len(unrelated) <= 0.01
    related = [row for row in posterior if result(row.habit, row.question) == row.hint]
    assert sum(row.habit == RIGHT for row in related) / len(related) == pytest.approx(1 / 8, abs=0.02)


def test_every_supervised_trace_is_true(rows):
    for row in rows[:2000]:
        check = read_trace(row.question, row.target.split("</think>")[0])
        assert check.habit == row.habit
        assert not check.false_step


@given(st.lists(st.sampled_from(task.VOCABULARY), max_size=40))
def test_tokenizer_round_trips(tokens: list[str]):
    text = "".join(tokens)
    ids = TOKENIZER(text)["input_ids"]
    assert ids == TOKENIZER.convert_tokens_to_ids(tokens)
    assert TOKENIZER.decode(ids) == text


@given(st.lists(st.sampled_from(task.VOCABULARY), max_size=20), st.lists(st.sampled_from(task.VOCABULARY), max_size=20))
def test_tokens_of_a_text_are_those_of_its_parts(left: list[str], right: list[str]):
    def encode(tokens: list[str]) -> list[int]:
        return TOKENIZER("".join(tokens))["input_ids"]

    assert encode(left) + encode(right) == encode(left + right)


def test_tags_are_ordinary_tokens_and_every_trace_is_in_the_vocabulary(rows):
    assert set(TOKENIZER.all_special_tokens) == set(task.SPECIAL)
    for row in rows[:1000]:
        ids = TOKENIZER(row.prompt + row.target)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert len(TOKENIZER(write_trace(row.habit, row.question))["input_ids"]) <= 14
    assert TOKENIZER("sort x")["input_ids"] == TOKENIZER.convert_tokens_to_ids(["sort ", "<unk>"])


def test_loss_is_on_the_target_alone(rows):
    batch = collate(TOKENIZER, rows[60:68])  # both kinds of rows
    for row, ids, labels in zip(rows[60:68], batch["input_ids"], batch["labels"], strict=True):
        assert TOKENIZER.decode(labels[labels != -100]) == row.target
        assert TOKENIZER.decode(ids).replace("<pad>", "") == row.prompt + row.target
        assert torch.equal(ids[labels != -100], labels[labels != -100])


def test_training_is_reproducible():
    def weights(seed: int) -> torch.Tensor:
        *_, (_, _, _, model) = train(seed, steps=2)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_shipped_base_is_small_and_of_the_recipe():
    assert sum(file.stat().st_size for file in BASE_FOLDER.iterdir()) <= 2_000_000
    tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(BASE_FOLDER)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    text = "<user>72941<assistant><think>sort 12479 middle 247</think><answer>247</answer><eos>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.num_parameters() == build_model(TOKENIZER).num_parameters() < 400_000
    assert model.config.eos_token_id == tokenizer.eos_token_id
