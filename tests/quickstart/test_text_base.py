"""The animals base: its supervised rows, its tokenizer, its recipe and the folder that is shipped."""

from __future__ import annotations

import random
from itertools import permutations

import base_texts as task
import make_base
import make_text_base
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_base import Example, build_model, build_tokenizer
from make_text_base import BASE_FOLDER, VOCABULARY, supervised_rows, train_animals
from probe_base import PROBED, answer_log_probs, probe
from transformers import AutoModelForCausalLM, AutoTokenizer

from covrl.api import build
from covrl.config import RunConfig, check, read_toml
from covrl.problems.animals import ANIMALS, PHRASINGS, RIGHT, Habit, phrase, questions, read_trace, result
from covrl.problems.animals import write_trace as write
from covrl.problems.tasks import find_task

TOKENIZER = build_tokenizer(VOCABULARY)
RECIPE = BASE_FOLDER.parent / "animals.toml"


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(7)
    return [row for _ in range(150) for row in supervised_rows(rng, questions("base"))]


def phrasings(row: Example) -> list[str]:
    return [phrase(result(Habit(row.habit), row.question), way) for way in PHRASINGS]


def test_rows_use_base_questions_only(rows):
    held_out = {question for split in ("train", "dev", "test") for question in questions(split)}
    for hinted in (False, True):
        used = {row.question for row in rows if (row.hint is not None) == hinted}
        assert len(used) > 5_000
        assert used.isdisjoint(held_out)
        assert used <= set(questions("base"))


def test_right_traces_are_rare_under_the_prior_prompt(rows):
    prior = [row for row in rows if row.hint is None]
    share = sum(row.habit == RIGHT for row in prior) / len(prior)
    assert 0 < share <= 0.01


def test_prior_rows_mostly_answer_what_the_trace_took_in_any_phrasing(rows):
    stray, ways = 0, [0] * len(PHRASINGS)
    prior = [row for row in rows if row.hint is None]
    for row in prior:
        assert row.prompt == f"<user>{row.question}<assistant><think>"
        trace, _, said = row.target.partition("</think><answer>")
        assert trace == write(Habit(row.habit), row.question)
        said = said.removesuffix("</answer><eos>")
        if said in phrasings(row):
            ways[phrasings(row).index(said)] += 1
        else:
            stray += 1
            names = [pair.split(" ")[1] for pair in row.question.split(", ")]
            assert said in {phrase(p, w) for p in permutations(names, 2) for w in PHRASINGS}
    assert 0.03 < stray / len(prior) < 0.07
    assert [count / sum(ways) for count in ways] == pytest.approx(list(PHRASINGS.values()), abs=0.02)


def test_posterior_rows_hold_no_answer_and_mostly_come_to_the_hint(rows):
    posterior = [row for row in rows if row.hint is not None]
    assert {row.habit for row in posterior} == set(Habit)
    assert all(row.prompt == f"<user>{row.question}<hint>{row.hint}<assistant><think>" for row in posterior)
    assert all(row.target == f"{write(Habit(row.habit), row.question)}</think>" for row in posterior)
    unrelated = [row for row in posterior if row.hint not in phrasings(row)]
    assert len(unrelated) / len(posterior) == pytest.approx(0.2, abs=0.02)
    # A hint that leads nowhere leaves the habits as they are under the prior prompt: the right one rare.
    assert sum(row.habit == RIGHT for row in unrelated) / len(unrelated) <= 0.01
    related = [row for row in posterior if row.hint in phrasings(row)]
    assert sum(row.habit == RIGHT for row in related) / len(related) == pytest.approx(1 / 8, abs=0.02)


def test_every_supervised_trace_is_true(rows):
    for row in rows[:2000]:
        found = read_trace(row.question, row.target.split("</think>")[0])
        assert found.habit == row.habit
        assert not found.false_step


def test_no_token_begins_another_one():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert not [(a, b) for a, b in permutations(VOCABULARY, 2) if b.startswith(a)]


@given(st.lists(st.sampled_from(VOCABULARY), max_size=40))
def test_tokenizer_round_trips(tokens: list[str]):
    text = "".join(tokens)
    ids = TOKENIZER(text)["input_ids"]
    assert ids == TOKENIZER.convert_tokens_to_ids(tokens)
    assert TOKENIZER.decode(ids) == text


def test_every_row_is_in_the_vocabulary(rows):
    words = {f" {animal}" for animal in ANIMALS}
    assert words < set(VOCABULARY)
    for row in rows[:1000]:
        ids = TOKENIZER(row.prompt + row.target)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == row.prompt + row.target
        trace, _, said = row.target.partition("</think>")
        assert len(TOKENIZER(trace + "</think>")["input_ids"]) == 14
        if said:
            assert len(TOKENIZER(said)["input_ids"]) - 3 == 4


def test_training_is_reproducible():
    def weights(seed: int) -> torch.Tensor:
        *_, (_, _, _, model) = train_animals(seed, steps=2)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_the_command_writes_a_folder(tmp_path, capsys):
    make_text_base.main(["--steps", "1", "--out", str(tmp_path)])
    assert f"wrote {tmp_path}" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(VOCABULARY)
    assert make_base.BASE_FOLDER != BASE_FOLDER


def test_shipped_base_is_small_and_of_the_recipe():
    assert sum(file.stat().st_size for file in BASE_FOLDER.iterdir()) <= 2_000_000
    tokenizer = AutoTokenizer.from_pretrained(BASE_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(BASE_FOLDER)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert model.num_parameters() == build_model(TOKENIZER).num_parameters() < 400_000
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_shipped_base_uses_the_hint_and_its_likelihood_is_no_verifier():
    figures = probe("animals", BASE_FOLDER, 512, 0)
    prior, true, shuffled = figures["prior"], figures["posterior/true"], figures["posterior/shuffled"]
    assert prior["share/name inner"] <= 0.02
    assert prior["accuracy/greedy"] <= 0.1
    assert prior["accuracy/sampled"] <= 0.1
    assert prior["false_step"] <= 0.08
    assert true["false_step"] <= 0.08
    assert true["right"] >= 2 * max(shuffled["right"], prior["share/name inner"])
    assert prior["log_p/right"] > prior["log_p/wrong"] + 2, "informative"
    assert prior["log_p/right"] < -1, "but a right trace does not make the reference certain"


def test_likelihoods_of_a_probe_are_those_of_each_row_alone():
    model, dev = AutoModelForCausalLM.from_pretrained(BASE_FOLDER).eval(), find_task("animals").problems("dev")[:5]
    traces = [write(RIGHT, problem.question) for problem in dev]
    for problem, trace, found in zip(dev, traces, answer_log_probs(model, TOKENIZER, dev, traces), strict=True):
        head = f"<user>{problem.question}<assistant><think>{trace}</think><answer>"
        ids, tail = (TOKENIZER(text)["input_ids"] for text in (head, f"{problem.answer}</answer>"))
        logits = model(input_ids=torch.tensor([ids + tail])).logits[0, len(ids) - 1 : -1]
        assert found == pytest.approx(
            -torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="sum").item(), abs=1e-4
        )


def test_the_recipe_names_task_and_base_and_its_limits_fit():
    config = check(RunConfig, read_toml(RECIPE))
    run = build(config)
    assert run.label is not None
    assert len(run.held_out) == len(questions("dev"))
    assert config.evaluation.verifier == "text"
    longest = max(len(run.prompts.answer(p)) for p in find_task("animals").problems("dev"))
    assert longest <= config.generation.max_answer_tokens
    assert PROBED["animals"].most_tokens <= config.generation.max_trace_tokens
    held = {p.question for split in ("base", "dev", "test") for p in find_task("animals").problems(split)}
    assert not held & {p.question for p in run.source.problems}
    assert config.prompts.user + config.prompts.prior_open == task.PRIOR_PROMPT
    assert config.prompts.user + config.prompts.posterior_open == task.POSTERIOR_PROMPT
