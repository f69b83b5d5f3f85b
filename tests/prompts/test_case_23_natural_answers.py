"""Case 23: responses whose tags are words and whose answers end at a full stop, which reasoning has too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models import character_tokenizer, save_tiny

from covrl.api import build
from covrl.config import PromptConfig
from covrl.evaluation.accuracy import said_in
from covrl.generation.base import Draw, Sampling
from covrl.generation.outside import Ask, Drawn, OutsideGenerator
from covrl.generation.stop import StopRule
from covrl.generation.trace import Trace
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout
from covrl.training.rollouts import sampling_of

NATURAL = {
    "user": "{question}",
    "prior_open": "",
    "posterior_open": "({hint})",
    "close": "The answer is",
    "answer_prefix": " ",
    "answer_suffix": ".",
}
RESPONSE = "Two and two. That is 4. Check it. The answer is 4. And more."
ANSWERED = RESPONSE.removesuffix(" And more.")
TOKENIZER = character_tokenizer()
PROMPTS = Prompts(TOKENIZER, PromptConfig(**NATURAL))


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text).input_ids)


def response(text: str, prefix: str = "") -> Rollout:
    """``text`` as an engine that samples a response takes it, behind ``prefix``."""
    rule, trace = StopRule(TOKENIZER, ".", PROMPTS.before_answer), Trace(ids_of(prefix))
    for token in ids_of(text):
        trace.take(token, -1.0, rule, frozenset())
    return trace.rollout(Request("p", 0, (5, 6), "prior", prefix_ids=ids_of(prefix)), rule, 0)


def test_case_23_a_response_ends_at_its_answers_end_and_not_at_the_first_full_stop() -> None:
    whole = response(RESPONSE)
    assert (whole.text, whole.finish) == (ANSWERED, "closed")
    assert PROMPTS.said(whole.text) == " 4"
    cut = response("Two and two. That is 4. Check it.")
    assert (cut.finish, cut.valid, PROMPTS.said(cut.text)) == ("length", False, None)


def test_case_23_the_thought_of_a_response_ends_at_the_words_that_close_it() -> None:
    thought = PROMPTS.thought(response(RESPONSE))
    assert thought is not None
    assert thought.text == "Two and two. That is 4. Check it. The answer is"
    assert thought.trace_ids == ids_of(thought.text)
    row = PROMPTS.prior_row(Problem("p", "2+2", "5"), thought)
    span = row.spans["answer"]
    assert TOKENIZER.decode(list(row.ids[span.start : span.stop])) == "5."
    assert TOKENIZER.decode(list(row.ids[: span.start])).endswith("The answer is ")


def test_case_23_words_in_a_prefix_count_as_said() -> None:
    found = response("nswer is 4. And", prefix="Two and two. The a")
    assert (found.text, found.finish) == ("Two and two. The answer is 4.", "closed")
    assert response("4. And", prefix="It is. The answer is").text == "It is. The answer is4."


def test_case_23_a_thought_that_ends_in_the_prefix_is_the_prefix_up_to_there() -> None:
    """Nothing of it was sampled, and what the response says after it is still read from the whole text."""
    found = response(" 4. And", prefix="So. The answer is")
    assert PROMPTS.said(found.text) == " 4"
    for prefix in ("So. The answer is", "So. The answer is in"):
        thought = PROMPTS.thought(response(" 4. And", prefix=prefix))
        assert thought is not None
        assert (thought.text, thought.trace_ids, thought.valid) == ("So. The answer is", (), True)
        row = PROMPTS.prior_row(Problem("p", "2+2", "5"), thought)
        assert str(TOKENIZER.decode(list(row.ids))).endswith("So. The answer is 5.")
        assert row.spans["trace"].start == row.spans["trace"].stop == len(PROMPTS.prior(Problem("p", "2+2", "5"))) + 17


def test_a_response_that_ends_with_its_turn_is_read_from_its_prefix_on() -> None:
    ids, prefix, end = ids_of(" 4"), ids_of("The answer is"), TOKENIZER.eos_token_id
    trace = Trace(prefix)
    for token in (*ids, end):
        trace.take(token, -1.0, StopRule(TOKENIZER, "."), frozenset({end}))
    found = trace.rollout(Request("p", 0, (5, 6), "prior", prefix_ids=prefix), StopRule(TOKENIZER, "."), 0)
    assert (found.finish, found.text) == ("eos", "The answer is 4<eos>")
    assert said_in(found, PROMPTS) == "The answer is 4"


@pytest.mark.parametrize(
    ("opening", "suffix", "text", "said"),
    [
        (" Ans.:", ".", "so END Ans.: 5.", " 5"),
        (" Ans.:", ".", "so END Ans.: 5", None),
        ("\n<a>", "</a>", "so END<a>5</a>", "5"),
        ("\n<a>", "</a>", "so </a> END <a>5</a></a>", "5"),
        ("\n<a>", "</a>", "so END no <a>5</a>", None),
        ("\n<a>", "</a>", "so <a>5</a>", None),
        ("", ".", "so END 5.", " 5"),
        ("", ".", "so. END 5", None),
    ],
)
def test_what_was_said_stands_between_opening_and_end(opening: str, suffix: str, text: str, said: str | None) -> None:
    config = PromptConfig(close="END", answer_prefix=opening, answer_suffix=suffix)
    assert Prompts(TOKENIZER, config).said(text) == said


@pytest.mark.parametrize(("method", "after"), [("grpo", ("The answer is",)), ("covrl", ())])
def test_case_23_a_run_samples_responses_so(
    method: str, after: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen2", "model")
    table = {"model": {"path": "model", "device": "cpu"}, "prompts": NATURAL, "algorithm": {"name": method}}
    table |= {"training": {"problems_per_step": 1}, "evaluation": {"every": 0}}
    from covrl.config import RunConfig

    run = build(RunConfig.model_validate(table), [Problem("p", "2+2", "4")])
    sampling = sampling_of(run)
    assert (sampling.stop, sampling.after) == ((".", after) if after else ("The answer is", ()))


class Scripted:
    """An engine that says what it is told and stops at its stop text as vLLM does, wherever that stands."""

    name, most_top_k, apart = "the script", 0, False

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.asked: list[tuple[str, int]] = []

    def load(self, version: int) -> None:
        del version

    def wake(self) -> None: ...

    def rest(self) -> None: ...

    def draw(
        self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int], top_p: float = 1.0
    ) -> list[Drawn]:
        del temperature, ends, top_p
        self.asked.append((stop, len(rows)))
        return [self._row(row, stop) for row in rows]

    def _row(self, row: Ask, stop: str) -> Drawn:
        which, *sampled = row.ids
        rest = self.texts[which][len(sampled) :]
        cut = rest.find(stop)
        ids = ids_of(rest[: cut + len(stop)] if cut >= 0 else rest)[: row.max_tokens]
        return Drawn(ids, (-1.0,) * len(ids))


def test_case_23_another_engine_is_not_asked_anew_at_every_full_stop() -> None:
    texts = [RESPONSE, "The answer is 7. No.", "One. Two. Three. Four. Five. Six. Seven. Eight. Nine. Ten. 0123456789"]
    model: Any = SimpleNamespace(generation_config=None)
    engine = OutsideGenerator(script := Scripted(texts), model, TOKENIZER)
    asked = [Request(f"p{i}", 0, (i,), "prior") for i in range(3)]
    found = engine.generate(asked, Sampling(60, ".", 1.0, after=PROMPTS.before_answer), Draw(0, 0))
    assert [r.text for r in found] == [ANSWERED, "The answer is 7.", texts[2][:60]]
    assert [r.finish for r in found] == ["closed", "closed", "length"]
    assert script.asked == [(".", 3), ("The answer is", 2), (".", 1)]
    assert engine.wasted == 0
