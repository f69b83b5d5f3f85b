"""RLPR's rewards and its filter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from algorithms.scored import PROMPTS, Pair, credits, group_of, method, response, said, weights

from covrl.records import Problem, Request, Rollout

DIRECT = [0.1, 0.3]  # mean .2


def test_rewards_are_gains_in_mean_probability_plus_format() -> None:
    pairs = [
        response(said("a"), [0.6, 0.8], 0, DIRECT),  # .9 x (.7 - .2) + .1
        response("b</think>\n<answer>", [0.4, 0.4], 1, finish="length"),  # .9 x .2
        response(said("c"), [0.1, 0.1], 2),  # below the baseline: the format alone
        response("d", None, 3, finish="length"),
    ]
    found = credits("rlpr", *pairs, filter=0.0)
    rewards = [0.55, 0.18, 0.1, 0.0]
    assert [c.reward for c in found] == pytest.approx(rewards)
    mean = sum(rewards) / 4
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 3)
    assert weights(found, "policy") == pytest.approx([(r - mean) / (std + 1e-6) for r in rewards])


def test_a_users_reward_adds_to_the_score() -> None:
    rollout, scores = response(said("a"), [0.6, 0.8], 0, DIRECT)
    found = credits("rlpr", (replace(rollout, reward=2.0), scores), response("b", None, 1, finish="length"))
    assert [c.reward for c in found] == pytest.approx([2.55, 0.0])


def test_the_baseline_is_read_once_a_question_from_the_frozen_base() -> None:
    algorithm = method("rlpr")
    direct = next(c for c in algorithm.contexts if c.name == "direct")
    problem = Problem("p", "q?", "7")
    rollouts = [
        Rollout(Request("p", i, PROMPTS.prior(problem), "prior"), (5,), (0.0,), "length", "none", "x") for i in (0, 1)
    ]
    assert direct.model == "reference"
    row = direct.render(problem, rollouts[0])
    assert row is not None
    assert PROMPTS.tokenizer.decode(list(row.ids)).endswith("<think>\n</think>\n<answer>7</answer>")
    assert direct.render(problem, rollouts[1]) is None


def test_the_answer_is_scored_behind_the_sampled_thought_alone() -> None:
    algorithm = method("rlpr")
    answer = next(c for c in algorithm.contexts if c.name == "answer")
    problem = Problem("p", "q?", "7")
    ids = PROMPTS.encode(said("think", "123"))
    made = Rollout(
        Request("p", 0, PROMPTS.prior(problem), "prior"),
        ids,
        (0.0,) * len(ids),
        "closed",
        "sampled",
        said("think", "123"),
    )
    row = answer.render(problem, made)
    assert row is not None
    assert PROMPTS.tokenizer.decode(list(row.ids)).endswith("<think>\nthink</think>\n<answer>7</answer>")


def flat(value: float, width: float) -> list[Pair]:
    """A question whose two rewards have a sample deviation of ``width``·.9/√2."""
    return [
        response("a</think>", [value], 0, [0.1], finish="length"),
        response("b</think>", [value + width], 1, finish="length"),
    ]


def test_questions_whose_rewards_hardly_differ_are_left_out() -> None:
    algorithm = method("rlpr")
    wide, narrow = group_of(*flat(0.2, 0.4)), group_of(*flat(0.2, 0.02))
    assert algorithm.admit([wide, narrow]).kept == [wide]
    unit = 0.9 / math.sqrt(2)
    first = unit * 0.21  # the first batch's own mean
    assert algorithm.state_dict()["usual_std"] == pytest.approx(first)
    middle = group_of(*flat(0.2, 0.11))  # above half of .21
    assert algorithm.admit([middle, narrow]).kept == [middle]
    assert algorithm.state_dict()["usual_std"] == pytest.approx(0.99 * first + 0.01 * unit * 0.065)


def test_the_filter_goes_on_where_a_checkpoint_left_it() -> None:
    first, second = method("rlpr"), method("rlpr")
    first.admit([group_of(*flat(0.2, 0.4))])
    second.load_state_dict(first.state_dict())
    narrow = [group_of(*flat(0.2, 0.1))]
    assert first.admit(narrow).kept == second.admit(narrow).kept == []
    assert method("rlpr").admit(narrow).kept == narrow


def test_a_filter_of_zero_keeps_all() -> None:
    groups = [group_of(*flat(0.2, w)) for w in (0.0, 0.4)]
    assert method("rlpr", filter=0.0).admit(groups).kept == groups


def test_metrics_show_the_baseline_and_the_filter() -> None:
    algorithm = method("rlpr")
    groups = [group_of(response(said("a"), [0.6, 0.8], 0, DIRECT), response("b", None, 1, finish="length"))]
    metrics = algorithm.monitors(algorithm.admit(groups).kept, algorithm.credit(groups))
    assert metrics["probability/without_thought"] == pytest.approx(0.2)
    assert metrics["probability/reference_answer"] == pytest.approx(0.35)
    assert metrics["probability/below_baseline_share"] == pytest.approx(0.5)
    assert metrics["format/answered_share"] == pytest.approx(0.5)
