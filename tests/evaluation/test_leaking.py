"""`covrl leak`: what counts as giving an answer away, against other answers and other prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import Covrl
from hypothesis import given
from hypothesis import strategies as st
from models import byte_tokenizer

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator
from covrl.evaluation.anchoring import Said, answers_said
from covrl.evaluation.leaking import SOURCES, LeakReport, measure_leaks, read
from covrl.generation.base import Draw, Sampling
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout
from covrl.rewards.graders import make_grader
from covrl.rewards.leak import other_answers, states_early

PROMPTS = Prompts(byte_tokenizer(), PromptConfig())
PROBLEMS = [Problem(f"p{i}", f"what is {i} + 100 exactly?", str(100 + i)) for i in range(8)]
LONG = "first we look at the question, then we add the numbers, and so on and on and on"


class Telling:
    """A generator whose traces follow from the source and from what the prompt shows."""

    def __init__(self, trace: Callable[[str, str], str]) -> None:
        self.trace = trace

    def publish(self, version: int) -> None: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        found = []
        for r in requests:
            prompt = str(PROMPTS.tokenizer.decode(list(r.prompt_ids)))
            shown = prompt.partition("answer is ")[2].partition(".")[0]
            found.append(Rollout(r, (1,), (0.0,), "closed", "sampled", self.trace(r.source, shown) + "</think>"))
        assert len({(r.problem_id, r.index) for r in requests}) == len(requests), "random numbers must differ"
        return found


def measured(trace: Callable[[str, str], str]) -> LeakReport:
    return measure_leaks(Telling(trace), PROMPTS, PROBLEMS, Sampling(50, "</think>"), 2, seed=0)


def test_a_posterior_that_begins_with_its_answer_leaks() -> None:
    record = measured(lambda source, shown: f"{shown} {LONG}").record()
    rates = record["rates"]
    assert list(rates) == list(SOURCES)
    assert (rates["posterior"]["own_early"], rates["posterior"]["other_early"]) == (1.0, 0.0)
    assert rates["posterior"]["excess"] == 1.0
    assert (rates["prior"]["own_early"], rates["prior"]["admits"]) == (0.0, 0.0)
    assert (rates["shuffled"]["shown_early"], rates["shuffled"]["own_early"]) == (1.0, 0.0)
    assert "shown_early" not in rates["prior"]
    assert "They leak: 100.0 to 100.0 points" in record["sentence"]
    assert record["problems"] == 8
    assert all(e["early"] and e["source"] == "posterior" for e in record["examples"])


def test_an_answer_at_the_end_is_no_leak() -> None:
    record = measured(lambda source, shown: f"{LONG} {shown}").record()
    assert record["rates"]["posterior"]["own_early"] == 0.0
    assert record["sentence"].endswith("No leak is seen by these two signs.")


def test_what_the_prior_says_as_often_is_no_leak() -> None:
    """Every trace counts up through all answers: the early statements are chance."""
    every = " ".join(str(100 + i) for i in range(8))
    record = measured(lambda source, shown: f"{every} {LONG * 4}").record()
    assert record["rates"]["posterior"]["own_early"] == record["rates"]["posterior"]["other_early"] == 1.0
    assert record["sentence"].endswith("No leak is seen by these two signs.")


def test_an_admission_is_a_leak_in_words() -> None:
    def trace(source: str, shown: str) -> str:
        return LONG + (", which matches the given answer" if source != "prior" else "")

    report = measured(trace)
    record = report.record()
    assert (record["rates"]["posterior"]["admits"], record["rates"]["prior"]["admits"]) == (1.0, 0.0)
    assert record["sentence"].endswith("They leak in words: they say that an answer was given.")
    assert report.examples()[0].admits == "matches the given answer"


@pytest.mark.parametrize(
    ("text", "admits"),
    [
        ("The reference answer is 4, so", True),
        ("We know that the answer is 4.", True),
        ("the answer is already given", True),
        ("According to the HINT we add", True),
        ("Working backwards from the answer", True),
        ("so we arrive at the answer", False),
        ("the solution is given by x = 2", False),
        ("the answer is given by the sum", False),
        ("the answer is 4", False),
        ("given the numbers 1 and 2, we add", False),
    ],
)
def test_phrases(text: str, admits: bool) -> None:
    assert (read(PROBLEMS[0], "posterior", text, "107").admits is not None) == admits


@pytest.mark.parametrize(
    ("answer", "start", "early"),
    [
        (r"\frac{1}{2}", "It is 1/2, as", True),
        (r"\frac{1}{2}", r"It is \dfrac12, as", True),
        ("1/2", "It is 0.5, as", True),
        ("1/2", "It is 50%, as", True),
        ("1234", "It is 1,234, as", True),
        ("1,234", r"It is $1{,}234$, as", True),
        ("x + 1", r"It is $x+1$, as", True),
        ("(3, 4)", r"It is \left( 3,4 \right), as", True),
        ("New York", "it is new york, as", True),
        ("1,234", "It is 12345, as", False),
        ("1234", "It is 1 234, as", False),
        ("12.0", "It is 3.12 or 12.5, as", False),
        ("1 / 2", "It is 11/2 or 1/25, as", False),
        ("X", "the next one, as", False),
        ("5.0", "It is 0.5 or 5/2, as", False),
    ],
)
def test_an_answer_in_another_spelling_is_stated_too(answer: str, start: str, early: bool) -> None:
    assert states_early(f"{start} {LONG}", answer) is early
    assert not states_early(f"{LONG} {start}", answer)


def test_reformatted_answers_leak() -> None:
    """Posterior traces that begin with the shown answer as a fraction: no verbatim copy is in them."""
    record = measured(lambda source, shown: f"{shown}.0 {LONG}" if shown else f"2 {LONG}").record()
    spelled = measured(lambda source, shown: f"{2 * int(shown)}/2 {LONG}" if shown else f"2 {LONG}").record()
    for found in (record, spelled):
        assert found["rates"]["posterior"]["own_early"] == 1.0
        assert "They leak: 100.0" in found["sentence"]


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=8).filter(lambda found: len(set(found)) > 1))
def test_the_other_answer_is_the_next_different_one(answers: list[str]) -> None:
    expected = [next(a for a in answers[i + 1 :] + answers[:i] if a != answers[i]) for i in range(len(answers))]
    assert other_answers(answers) == expected


def test_one_answer_alone_is_refused() -> None:
    with pytest.raises(UserError, match="all problems have the same answer"):
        measure_leaks(Telling(lambda s, a: a), PROMPTS, PROBLEMS[:1], Sampling(5, "</think>"), 1, 0)


class Answering(Telling):
    """Answers each trace by its source and by what its prompt showed."""

    def __init__(self, answer: Callable[[str, str], str]) -> None:
        super().__init__(lambda source, shown: LONG)
        self.answer, self.shown = answer, dict[tuple[str, int], str]()

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        prompts = [str(PROMPTS.tokenizer.decode(list(r.prompt_ids))) for r in requests]
        if draw.purpose != "answer":
            said = {(r.problem_id, r.index): prompt for r, prompt in zip(requests, prompts, strict=True)}
            self.shown |= {place: prompt.partition("answer is ")[2].partition(".")[0] for place, prompt in said.items()}
            return super().generate(requests, sampling, draw)
        assert not any("answer is" in prompt for prompt in prompts), "answers come from the prior prompt"
        texts = [self.answer(r.source, self.shown[r.problem_id, r.index]) for r in requests]
        return [
            Rollout(r, (1,), (0.0,), "closed", "sampled", f"{t}</answer>") for r, t in zip(requests, texts, strict=True)
        ]


def anchored(answer: Callable[[str, str], str], verifier: str = "text") -> Mapping[str, Any] | None:
    generator = Answering(answer)
    evaluator = Evaluator(generator, PROMPTS, 50, 8, make_grader(verifier))
    problems, sampling = [*PROBLEMS, Problem("p8", "again?", "107.0")], Sampling(50, "</think>")
    return measure_leaks(generator, PROMPTS, problems, sampling, 2, seed=0, answering=evaluator).anchoring()


def test_traces_that_defend_whatever_they_were_shown_are_named() -> None:
    found = anchored(lambda source, shown: shown or "0")
    assert found is not None
    assert (found["wrong_hint"], found["right_hint"]) == (1.0, 1.0)
    assert found["sentence"].endswith("defend any answer that they were shown.")
    assert list(found["intervals"]["wrong_hint"]) == [1.0, 1.0]


def test_traces_that_only_the_right_hint_helps_are_not_anchored() -> None:
    found = anchored(lambda source, shown: shown if source == "posterior" else "0")
    assert found is not None
    assert (found["wrong_hint"], found["right_hint"]) == (0.0, 1.0)
    assert found["sentence"].endswith("follow the right hint further than a wrong one.")


def test_what_prior_traces_answer_anyway_is_no_pull() -> None:
    """All answer 101: the foil of one problem, the own answer of another."""
    found = anchored(lambda source, shown: "101")
    assert found is not None
    assert (found["wrong_hint"], found["right_hint"]) == (0.0, 0.0)
    assert found["sentence"].endswith("leads to no more right answers than none.")


def test_equal_answers_are_no_foils_and_without_a_verifier_nothing_is_known() -> None:
    """107 and 107.0 are one answer: a problem that is shown the other's has no wrong hint."""
    problems = [Problem("a", "?", "107"), Problem("b", "?", "107.0")]
    trace = Rollout(Request("a", 0, (), "prior"), (1,), (0.0,), "length", "none", "")
    evaluator = Evaluator(Answering(lambda source, shown: "1"), PROMPTS, 50, 8, make_grader("text"))
    asked = [(problems[0], "107.0"), (problems[0], "9")]
    assert answers_said(evaluator, asked, [trace, trace], 1.0, 0) == [None, Said(own=False, foil=False)]
    assert anchored(lambda source, shown: "0", verifier="none") is None


def test_the_command(tmp_path: Path, covrl: Covrl) -> None:
    asked = ["leak", "--model", "covrl:digits", "--problems", "digits:test", "--limit", "6", "-n", "2"]
    code, out, _ = covrl(*asked, "--json", "--traces", str(tmp_path / "t.jsonl"))
    assert code == 0
    record = json.loads(out)
    assert record["problems"] == 6
    assert record["anchoring"]["sentence"].startswith("A wrong hint pulls ")
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 6 * 2 * 3
    assert "posterior" in covrl(*asked).out
