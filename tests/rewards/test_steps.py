"""Scores of steps: what a scorer sees, what of its answers is taken, servers, and rewards of tokens."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import byte_tokenizer
from step_scorers import fake_scorer, free_port, plain_answer, pooled_answer, score_of, serving, slowly

from covrl.errors import EngineError, UserError
from covrl.records import Problem, Request, Rollout, Span
from covrl.rewards import step_server
from covrl.rewards.segmenter import Segmenter
from covrl.rewards.step_server import StepServer
from covrl.rewards.steps import EachTrace, StepsToScore, Tokens, step_metrics, token_rewards, with_step_scores

TOKENIZER = byte_tokenizer()
TOKENS = Tokens(TOKENIZER, Segmenter("lines"), "</think>")
TEXTS = ("6 x 7\n= 42\n</think>", "naïve ☕\nso 数学", "", "one line</think>")


def pair(number: int, text: str) -> tuple[Problem, Rollout]:
    ids = tuple(TOKENIZER.encode(text, add_special_tokens=False))
    request = Request(f"p{number // 2}", number % 2, (1,), "prior")
    return Problem(f"p{number // 2}", f"question {number}?", "42"), Rollout(request, ids, (), "closed", "sampled", text)


PAIRS = [pair(number, text) for number, text in enumerate(TEXTS)]


def share(work: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """Two processes, one after another."""
    return [*work(items[:1]), *work(items[1:])]


def test_rollouts_get_the_spans_of_their_steps_and_a_score_for_each() -> None:
    found = with_step_scores(PAIRS, TOKENS, fake_scorer, share)
    for (problem, before), (_, after) in zip(PAIRS, found, strict=True):
        assert replace(after, steps=(), step_scores=()) == before
        texts = [TOKENIZER.decode(before.trace_ids[a:b]) for a, b in after.steps]
        assert "".join(texts) == before.text
        said = [text.removesuffix("</think>") for text in texts]
        assert after.step_scores == tuple(score_of(problem.question, text) for text in said)
    assert [len(r.steps) for _, r in found] == [2, 2, 0, 1]


@pytest.mark.parametrize("shows", [False, True])
def test_a_scorer_sees_the_answer_only_where_it_is_to(shows: bool) -> None:
    seen: list[StepsToScore] = []

    def scorer(asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
        seen.extend(asked)
        return fake_scorer(asked)

    with_step_scores(PAIRS, TOKENS, scorer, share, shows)
    assert seen[0] == StepsToScore("question 0?", "42" if shows else None, ("6 x 7\n", "= 42\n"))
    assert len(seen) == 3, "a trace without tokens is not asked about"


THIRD = "problem p1, rollout 1 (prior)"


def gives(value: Any) -> Callable[[Sequence[StepsToScore]], Any]:
    """The fake's scores, with ``value`` in the place of the last row."""
    return lambda asked: [*fake_scorer(asked[:-1]), value]


def refuses(asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
    raise RuntimeError("out of\nmemory")


FAULTS = {
    "raises": (refuses, "step scorer test_steps:refuses: the batch of 3 from problem p0, rollout 0 (prior) to problem"),
    "too few rows": (lambda asked: [(1.0, 1.0)], ": gave 1 rows of scores for 3 traces; it must give one for each"),
    "too many scores": (gives((1.0, 2.0)), f"{THIRD}: gave 2 scores for 1 steps; it must give one for each, in order"),
    "a number": (gives(1.0), f"{THIRD}: gave 1.0; it must give 1 numbers, one for each step"),
    "nan": (gives((math.nan,)), f"{THIRD}: gave nan for step 1; it must be a finite number"),
    "a text": (gives(("1",)), f"{THIRD}: gave '1' for step 1; it must be a finite number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_scorers_fault_is_one_line(name: str) -> None:
    scorer, said = FAULTS[name]
    with pytest.raises(UserError) as caught:
        with_step_scores(PAIRS, TOKENS, scorer, lambda work, items: work(items))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


async def asks(each: StepsToScore) -> tuple[float, ...]:
    await asyncio.sleep(0.01)
    return fake_scorer([each])[0]


async def hangs_on_the_last(each: StepsToScore) -> tuple[float, ...]:
    await asyncio.sleep(30.0 if each.question == "question 3?" else 0.0)
    return fake_scorer([each])[0]


def raises_on_the_last(each: StepsToScore) -> tuple[float, ...]:
    return fake_scorer([each])[0] if each.question != "question 3?" else 1 / 0  # ty: ignore


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("judge", [asks, lambda each: fake_scorer([each])[0]])
def test_a_judge_may_be_asked_trace_by_trace(judge: Any, at_once: int) -> None:
    found = with_step_scores(PAIRS, TOKENS, EachTrace(judge, 5.0, at_once), share)
    assert found == with_step_scores(PAIRS, TOKENS, fake_scorer, share)


@pytest.mark.parametrize(
    ("judge", "said"),
    [(hangs_on_the_last, "ran into its time limit of 0.2 s (timeout_s)"), (raises_on_the_last, "ZeroDivisionError: ")],
)
def test_a_judge_that_hangs_or_raises_is_named_with_the_trace(judge: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        with_step_scores(PAIRS, TOKENS, EachTrace(judge, 0.2, 2), lambda work, items: work(items))
    assert str(caught.value).startswith(f"step scorer test_steps:{judge.__name__}: {THIRD}: {said}")


def test_scores_may_be_numbers_of_any_kind() -> None:
    last = with_step_scores(PAIRS, TOKENS, gives(np.array([0.5], dtype=np.float32)), lambda work, items: work(items))[
        -1
    ]
    assert last[1].step_scores == (0.5,)
    assert type(last[1].step_scores[0]) is float


def test_what_ends_training_by_itself_passes_through() -> None:
    def scorer(asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
        raise EngineError("the server is gone")

    with pytest.raises(EngineError, match=r"^the server is gone$"):
        with_step_scores(PAIRS, TOKENS, scorer, share)


LENGTHS = st.lists(st.integers(1, 5), min_size=0, max_size=6)


@given(LENGTHS, st.randoms(use_true_random=False))
def test_token_rewards_by_plain_loops(lengths: list[int], draw: Any) -> None:
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    steps = [Span(a, b) for a, b in pairwise(edges)]
    scores = [draw.uniform(-2, 2) for _ in steps]
    last, even, each = (token_rewards(scores, steps, edges[-1], at) for at in ("last", "even", "each"))
    for score, (start, stop) in zip(scores, steps, strict=True):
        for t in range(start, stop):
            assert float(last[t]) == (score if t == stop - 1 else 0.0)
            assert float(even[t]) == score / (stop - start)
            assert float(each[t]) == score
    assert last.shape == even.shape == each.shape == (edges[-1],)
    assert last.dtype == torch.float64
    assert float(last.sum()) == pytest.approx(sum(scores), abs=1e-12)
    assert float(even.sum()) == pytest.approx(sum(scores), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "steps", "length"),
    [
        ([1.0], [], 0),
        ([1.0], [Span(0, 2)], 3),
        ([1.0], [Span(1, 3)], 3),
        ([1.0, 1.0], [Span(0, 1), Span(2, 3)], 3),
        ([1.0, 1.0], [Span(0, 2), Span(1, 3)], 3),
    ],
)
def test_token_rewards_refuse_steps_that_do_not_divide_the_tokens(scores: Any, steps: Any, length: int) -> None:
    with pytest.raises(ValueError, match=r"scores for \d steps|do not divide \d tokens"):
        token_rewards(scores, steps, length)


def test_the_metrics_of_steps() -> None:
    made = [replace(PAIRS[0][1], step_scores=scores) for scores in ((1.0, 0.0), (), (0.5, 0.5, 0.25, 1.0))]
    expected = {"steps/count": 3.0, "steps/score": 3.25 / 6, "steps/lowest_score": 0.125}
    assert step_metrics(made) == pytest.approx(expected)
    assert step_metrics(made[1:2]) == {}


ASKED = [
    StepsToScore(f"q{i}", "42" if i % 2 else None, tuple(f"step {k}" for k in range(1 + i % 4))) for i in range(10)
]
ANSWERS = {"plain": plain_answer, "vllm": pooled_answer}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_server, "FIRST_PAUSE_S", 0.01)


@pytest.mark.parametrize("protocol", ANSWERS)
@pytest.mark.parametrize("at_once", [1, 4])
def test_a_server_scores_each_step_of_each_trace(protocol: Any, at_once: int) -> None:
    with serving(slowly(ANSWERS[protocol], 0.02)) as server:
        scorer = StepServer(server.address, protocol, model="prm", key="k-1", at_once=at_once, traces=3)
        found = scorer(ASKED)
    assert found == fake_scorer(ASKED)
    assert server.most <= at_once
    assert {h.get("Authorization") for h in server.headers} == {"Bearer k-1"}
    assert set(server.paths) == {"/" if protocol == "plain" else "/pooling"}
    if protocol == "plain":
        assert len(server.bodies) == 4
        shown = [item["answer"] for body in server.bodies for item in body["items"]]
        assert sorted(map(str, shown)) == sorted(str(each.answer) for each in ASKED)
    else:
        assert {body["model"] for body in server.bodies} == {"prm"}


def test_a_trace_cannot_mark_steps_of_its_own() -> None:
    asked = [StepsToScore("q", None, ("a<extra_0>b", "c"))]
    with serving(pooled_answer) as server:
        assert StepServer(server.address, "vllm")(asked) == [pytest.approx((score_of("q", "ab"), score_of("q", "c")))]


def test_a_server_that_is_busy_for_a_moment_is_asked_again() -> None:
    left = [(503, {"error": {"message": "loading"}}), "close"]
    with serving(lambda body: left.pop() if left else plain_answer(body)) as server:
        assert StepServer(server.address, retries=2)(ASKED[:1]) == fake_scorer(ASKED[:1])
        assert len(server.bodies) == 3


BROKEN: dict[str, tuple[Any, str, int]] = {
    "busy": (
        (503, {"error": {"message": "still\nloading"}}),
        "refuses the request (503: still loading); tried 3 times",
        3,
    ),
    "refused": ((400, {"error": "no such model"}), "refuses the request (400: no such model)", 1),
    "locked": ((401, b"?"), "refuses the request (401: Unauthorized)", 1),
    "elsewhere": ((302, b""), "refuses the request (302: Found)", 1),
    "no JSON": (b"<html>", "does not answer in JSON", 1),
    "no scores": ({"score": 1}, "answers what is no list of scores: {", 1),
    "a list": ([1], "answers what is no list of scores: [1]", 1),
    "texts": ({"scores": [["good"]]}, "answers what is no list of scores", 1),
    "too many": ({"scores": [[1, 2, 3]]}, "gives [3] scores for [1] steps of 1 trace(s)", 1),
    "too few rows": ({"scores": []}, "gives [] scores for [1] steps of 1 trace(s)", 1),
    "ends": ("close", "does not answer (", 3),
    "hangs": ("hang", "does not answer (timed out); tried 3 times, 0.2 s at most each", 3),
    "dribbles": ("dribble", "does not answer (the answer came too slowly); tried 3 times", 3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_server_that_fails_is_named_in_one_line(name: str) -> None:
    reply, said, times = BROKEN[name]
    start = time.monotonic()
    with serving(lambda body: reply) as server, pytest.raises(EngineError) as caught:
        StepServer(server.address, timeout_s=0.2)(ASKED[:1])
    line = str(caught.value)
    assert line.startswith(f"the process reward model at {server.address} {said}")
    assert "\n" not in line
    assert len(server.bodies) == times, "a request is repeated where that may help, and not for ever"
    assert time.monotonic() - start < 10.0


def test_a_dead_server_ends_the_whole_lot_at_once() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        EngineError, match=rf"^the process reward model at {address} does not answer .*refused.*3 times"
    ):
        StepServer(address, "vllm", at_once=2)(ASKED * 20)


@pytest.mark.parametrize(
    ("given_to", "said"),
    [
        ({"address": "127.0.0.1:8000"}, "is no address; expected http://HOST:PORT"),
        ({"address": "http://user:secret@h:1"}, "is no address"),
        ({"protocol": "grpc"}, "known are plain and vllm"),
        ({"timeout_s": 0}, "timeout_s = 0: it must be at least 0.001"),
        ({"retries": -1}, "retries = -1: it must be at least 0"),
        ({"at_once": 0}, "at_once = 0: it must be at least 1"),
    ],
)
def test_wrong_settings_are_told(given_to: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        StepServer(**{"address": "http://127.0.0.1:1", **given_to})
