"""Held-out accuracy and leak rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from models import character_tokenizer

from covrl.api import build_evaluation, config_for
from covrl.config import PromptConfig
from covrl.evaluation.accuracy import Evaluator
from covrl.evaluation.evaluate import evaluate
from covrl.evaluation.metrics import figures
from covrl.generation.base import Draw, Sampling
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout
from covrl.rewards.graders import make_grader
from covrl.rewards.leak import leak_rates, states_early

PROMPTS = Prompts(character_tokenizer(), PromptConfig())
PROBLEMS = [Problem("p0", "1+1", "2"), Problem("p1", "2+2", "4", accepted=("four",)), Problem("p2", "3+3", "6")]


class Scripted:
    """A generator that thinks and answers by script, and keeps what it was asked."""

    def __init__(self, answers: Sequence[str | None]) -> None:
        self.answers = answers
        self.asked: list[tuple[list[Request], Sampling, Draw]] = []

    def publish(self, version: int) -> None: ...

    def answer(self, request: Request) -> str | None:
        return self.answers[int(request.problem_id[1:])]

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        self.asked.append((list(requests), sampling, draw))
        thinking = sampling.stop == "</think>"
        said = [self.answer(r) for r in requests]
        texts = ["hm</think>" if thinking else f"{a}</answer>" for a in said]
        ids = [tuple(PROMPTS.tokenizer(t).input_ids) for t in texts]
        return [
            Rollout(r, i, (0.0,) * len(i), "length" if a is None else "closed", "none" if a is None else "sampled", t)
            for r, i, t, a in zip(requests, ids, texts, said, strict=True)
        ]


def test_accuracy_counts_accepted_answers_and_traces_without_an_end() -> None:
    generator = Scripted(["2", " four ", None])
    found = Evaluator(generator, PROMPTS, 50, 5, make_grader("text"))(PROBLEMS, 0.0, Draw(0, 0))
    assert [g.verdict for g in found.graded] == ["right", "right", "wrong"]
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.sound is None


def test_only_the_prior_prompt_is_used_and_the_answer_follows_the_trace() -> None:
    generator = Scripted(["2", "4", "6"])
    Evaluator(generator, PROMPTS, 50, 5, None)(PROBLEMS, 0.7, Draw(3, 9))
    (thoughts, thinking, first), (replies, answering, second) = generator.asked
    assert [r.prompt_ids for r in thoughts] == [PROMPTS.prior(p) for p in PROBLEMS]
    assert (thinking.max_tokens, thinking.temperature, answering.max_tokens) == (50, 0.7, 5)
    decoded = PROMPTS.tokenizer.decode(list(replies[0].prompt_ids))
    assert str(decoded).endswith("<think>\nhm</think>\n<answer>")
    assert first.purpose != second.purpose, "trace and answer must not share random numbers"


@pytest.mark.parametrize(
    ("temperature", "own", "answer"),
    [(0.7, None, 0.7), (0.7, 0.0, 0.0), (0.7, 0.3, 0.3), (0.0, None, 0.0), (0.0, 1.0, 0.0)],
)
def test_the_answer_has_a_temperature_of_its_own_unless_the_trace_is_greedy(
    temperature: float, own: float | None, answer: float
) -> None:
    generator = Scripted(["2", "4", "6"])
    Evaluator(generator, PROMPTS, 50, 5, None, answer_temperature=own)(PROBLEMS, temperature, Draw(3, 9))
    (_, thinking, _), (_, answering, _) = generator.asked
    assert (thinking.temperature, answering.temperature) == (temperature, answer)


def test_a_runs_evaluator_has_the_answers_temperature_of_its_settings() -> None:
    for settings, expected in (([], None), (["evaluation.answer_temperature=0"], 0.0)):
        run = build_evaluation(config_for("covrl:digits", None, settings), "digits:dev")
        assert run.evaluator is not None
        assert run.evaluator.answer_temperature == expected


def test_an_answer_that_ends_the_text_is_what_stands_before_its_end() -> None:
    """A chat model ends "The answer is 7." by its end of turn; the name of that token is none of the answer."""
    eos = PROMPTS.tokenizer.eos_token_id

    class Ending(Scripted):
        def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
            found = super().generate(requests, sampling, draw)
            if sampling.stop == "</think>":
                return found
            ids = (*PROMPTS.tokenizer("4.").input_ids, eos)
            found[1] = Rollout(requests[1], ids, (0.0,) * 3, "eos", "none", f"4.{PROMPTS.tokenizer.eos_token}")
            return found

    found = Evaluator(Ending(["2", "4", "5"]), PROMPTS, 50, 5, make_grader("text"))(PROBLEMS, 0.0, Draw(0, 0))
    assert [(g.answer, g.verdict) for g in found.graded] == [("2", "right"), ("4.", "right"), ("5", "wrong")]


def test_without_a_grader_every_answer_is_unknown_and_counted_apart() -> None:
    found = Evaluator(Scripted(["2", "4", None]), PROMPTS, 50, 5, make_grader("none"))(PROBLEMS, 0.0, Draw(0, 0))
    assert found.accuracy == 0.0
    assert found.unknown == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "said", "verdict"),
    [
        ("exact", " 2\n", "right"),
        ("exact", "2.0", "wrong"),
        ("text", "2.0", "right"),
        ("math", "\\frac{4}{2}", "right"),
    ],
)
def test_graders_by_name(name: str, said: str, verdict: str) -> None:
    grade = make_grader(name)
    assert grade is not None
    assert list(grade([(PROBLEMS[0], said), (PROBLEMS[0], "3")])) == [verdict, "wrong"]


def test_leaks_are_early_and_held_against_another_problems_answer() -> None:
    assert states_early("42 is what we want, so let us see what gives it", "42")
    assert not states_early("let us see what we get when we add it all up: 42", "42")
    leaking = [(f"{a} it is, as we will now derive in a few words", a) for a in ("17", "23", "99")]
    assert leak_rates(leaking) == (1.0, 0.0)
    chatty = [("17 23 99 are the numbers in question, so let us add them", a) for a in ("17", "23", "99")]
    own, other = leak_rates(chatty)
    assert own == other == 1.0


def test_without_two_answers_there_is_no_rate() -> None:
    assert all(math.isnan(rate) for rate in leak_rates([("x", "1"), ("y", "1")]))


class Sampling3(Scripted):
    """Greedy is always right at p0 alone; of three samples p0 is right in all, p1 in one, p2 in none."""

    def answer(self, request: Request) -> str | None:
        sample = request.index  # 0 is the greedy one's, too
        return {"p0": "2", "p1": "4" if sample == 1 else "no", "p2": None if sample == 2 else "no"}[request.problem_id]


def test_avg_and_pass_at_k_are_over_problems_and_samples() -> None:
    generator = Sampling3([])
    found = evaluate(Evaluator(generator, PROMPTS, 50, 5, make_grader("text")), PROBLEMS, 3, 1.0, 0).record()
    assert len(generator.asked) == 4, "greedy traces, their answers; all samples' traces at once, their answers"
    assert found["greedy"] == pytest.approx(1 / 3)
    assert found["n"] == 3
    assert found["avg@n"] == found["pass@1"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["pass@2"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert "pass@4" not in found
    assert set(found["intervals"]) == {"greedy", "avg@n", "pass@1", "pass@2"}
    low, high = found["intervals"]["avg@n"]
    assert (low, high) == (0.0, 1.0), "three problems: some resamples hold one problem alone"
    assert "sound" not in found


def test_both_kinds_of_evaluation_have_the_same_figures() -> None:
    """`covrl compare` keeps no answers in normal form, so it has no majorities; all else is what `covrl eval` says."""
    report = evaluate(Evaluator(Sampling3([]), PROMPTS, 50, 5, make_grader("text")), PROBLEMS, 3, 1.0, 0)
    short, whole = report.record(), figures(report.solved(), [1, 2])
    assert {"unknown", "truncated", "no_closing_tag", "trace_tokens", "pass@2"} < short.keys()
    assert short["truncated"] == pytest.approx(1 / 12)
    shared = short.keys() - {"intervals"}
    assert {name: short[name] for name in shared} == {name: whole[name] for name in shared}
    assert short["intervals"] == {name: whole["intervals"][name] for name in short["intervals"]}
    assert whole["intervals"].keys() - short["intervals"].keys() == {"maj@2"}


def test_without_samples_there_is_greedy_alone() -> None:
    found = evaluate(Evaluator(Sampling3([]), PROMPTS, 50, 5, make_grader("text")), PROBLEMS, 0, 1.0, 0).record()
    assert set(found["intervals"]) == {"greedy"}
    assert not {"n", "avg@n", "pass@1"} & found.keys()
