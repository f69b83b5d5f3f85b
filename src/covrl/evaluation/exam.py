"""One exam of one model: greedy and sampled traces of every problem, made once, kept as plain records.

All figures come from these records (:mod:`covrl.evaluation.metrics`), so nothing is generated twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator, Graded
from covrl.evaluation.answer_clusters import Said, classes
from covrl.generation.base import Draw
from covrl.prompt_checks import longest_beyond, longest_prompt
from covrl.prompts import Prompts
from covrl.records import Finish, Grader, Problem, TraceLabel, Verdict
from covrl.rewards.choice import letter_of
from covrl.rewards.extract import extract_answer
from covrl.rewards.graders import make_grader
from covrl.rewards.normalise import spelling


@dataclass(frozen=True, slots=True)
class Exam:
    """Problems, and how traces of them are sampled and graded.

    ``extraction`` are the extractors that read what stands between the answer tags; ``choice`` says that answers are
    letters of options. ``prompts`` are settings of ``[prompts]`` for models that have none of their own, ``notes``
    what a reader of the results must know. ``protocol`` is the benchmark's record, if the exam is a benchmark.
    ``answer_temperature`` is that of the answers after sampled traces; None: the trace's own.
    """

    name: str
    source: str
    problems: tuple[Problem, ...]
    samples: int
    temperature: float
    trace_tokens: int
    answer_tokens: int
    verifier: str
    extraction: tuple[str, ...] = ("none",)
    choice: bool = False
    chance: float | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    protocol: Mapping[str, Any] | None = None
    label: TraceLabel | None = None
    top_p: float = 1.0
    answer_temperature: float | None = None

    def settings(self) -> dict[str, Any]:
        """What must be equal for records to belong to the same exam."""
        names = ("samples", "temperature", "top_p", "trace_tokens", "answer_tokens", "verifier", "extraction", "choice")
        names += ("answer_temperature",)
        return {name: getattr(self, name) for name in names} | {"extraction": list(self.extraction)}

    def answer(self, said: str) -> str:
        """The answer in the text between the tags; empty if there is none."""
        found = extract_answer(said, self.extraction)
        return found.text if found else ""

    def spelled(self, problem: Problem, said: str) -> str | None:
        """A normal form of the answer: the letter of an option, else the normalised text or the number."""
        answer = self.answer(said)
        return (letter_of(problem, answer) if self.choice else None) or spelling(answer)

    def grader(self) -> Grader | None:
        """Grades the text between the tags."""
        grade = self.equality
        return None if grade is None else lambda rows: grade([(p, self.answer(said)) for p, said in rows])

    @property
    def equality(self) -> Grader | None:
        """Grades answers as they are."""
        return _grader(self.verifier)


@dataclass(frozen=True, slots=True)
class Sample:
    """One trace with its answer.

    ``answer`` is its normal form (None: no answer), the same for samples of a problem whose answers are equal
    (:mod:`covrl.evaluation.answer_clusters`), ``nats`` the sum of −log p over the trace's tokens as sampled,
    ``answer_cut`` whether the answer reached its token limit.
    """

    trace: str
    said: str
    answer: str | None
    verdict: Verdict
    finish: Finish
    trace_tokens: int
    answer_tokens: int
    answer_cut: bool
    nats: float
    label: str | None = None

    @property
    def right(self) -> bool:
        return self.verdict == "right"


@dataclass(frozen=True, slots=True)
class Solved:
    """A problem with its greedy and its sampled traces."""

    problem: str
    question: str
    reference: str
    digest: str
    greedy: Sample
    samples: tuple[Sample, ...]

    @property
    def marks(self) -> list[bool]:
        return [sample.right for sample in self.samples]


@cache
def _grader(verifier: str) -> Grader | None:
    """One grader, with one set of processes, for all exams with the same verifier."""
    return make_grader(verifier)


def to_json(solved: Solved) -> str:
    """One line."""
    return json.dumps(asdict(solved), ensure_ascii=True)


_SOLVED = TypeAdapter(Solved)


def from_json(line: str | bytes) -> Solved:
    """The record of a line of :func:`to_json`; the line may come from somebody else.

    Raises:
        ValueError, RecursionError: it is none.
    """
    return _SOLVED.validate_python(json.loads(line))


def digest(problem: Problem) -> str:
    """A hash that shows whether a problem has changed since it was sampled."""
    around = [repr(tuple(turn)) for turn in problem.turns] + [repr(o) for o in sorted(problem.template_options.items())]
    text = "\x00".join((problem.question, problem.answer, *problem.accepted, *around))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_room(exam: Exam, prompts: Prompts, context: int | None, model: str) -> None:
    """Every prompt, a whole trace and a whole answer must fit the model's context (None: it has no limit).

    Raises:
        UserError: the longest problem does not fit; the message names it and shows the sum.
    """
    if context is None:
        return
    after = len(prompts.close_ids) + len(prompts.answer_prefix_ids) + exam.answer_tokens
    left = context - exam.trace_tokens - after
    if found := longest_beyond(prompts, exam.problems, left, ("prior",), answers=False):
        prompt, _, longest = found
        room = context - prompt - after
        advice = f"--max-tokens {room} or less" if room > 0 else "a model with a longer context"
        raise UserError(
            f"{exam.name}: problem {longest.id}: {prompt} prompt tokens + {exam.trace_tokens} trace tokens + {after} "
            f"answer tokens exceed the context of {model}, {context}; use {advice}"
        )


def row_needed(exam: Exam, prompts: Prompts) -> int:
    """Tokens of the exam's longest row: prompt, whole trace, tags and answer."""
    tags = len(prompts.close_ids) + len(prompts.answer_prefix_ids)
    return longest_prompt(prompts, exam.problems, ("prior",)) + exam.trace_tokens + tags + exam.answer_tokens


def sit(
    exam: Exam, evaluator: Evaluator, problems: Sequence[Problem], seed: int, rows_per_pass: int
) -> Iterator[list[Solved]]:
    """Sample and grade ``problems`` of the exam, a few at a time, and yield them as they are finished.

    A sample's random numbers depend only on (seed, problem, its number), so the batch does not affect them.
    """
    together = max(evaluator.world.size * rows_per_pass // max(exam.samples, 1), 1)
    for start in range(0, len(problems), together):
        part = problems[start : start + together]
        greedy = evaluator.examine([(p, 0) for p in part], 0.0, Draw(seed, 0))
        every = [(p, index) for p in part for index in range(exam.samples)]
        sampled = iter(evaluator.examine(every, exam.temperature, Draw(seed, 1)) if every else [])
        answers = [[_sample(exam, next(sampled)) for _ in range(exam.samples)] for _ in part]
        yield [
            Solved(p.id, p.question, p.answer, digest(p), _sample(exam, g), samples)
            for p, g, samples in zip(part, greedy, _one_name(exam, part, answers), strict=True)
        ]


def _one_name(exam: Exam, problems: Sequence[Problem], every: Sequence[Sequence[Sample]]) -> list[tuple[Sample, ...]]:
    """The samples, with the same ``answer`` if their answers are equal."""
    rows = [
        (p, [Said(s.answer, exam.answer(s.said), s.verdict) for s in samples])
        for p, samples in zip(problems, every, strict=True)
    ]
    names = classes(rows, exam.verifier, exam.equality)
    return [
        tuple(replace(s, answer=name) for s, name in zip(samples, mine, strict=True))
        for samples, mine in zip(every, names, strict=True)
    ]


def _sample(exam: Exam, graded: Graded) -> Sample:
    return sample_of(graded, exam.spelled(graded.problem, graded.answer) if graded.reply else None)


def sample_of(graded: Graded, answer: str | None = None) -> Sample:
    """The record of a graded trace; ``answer`` is its answer in normal form."""
    reply = graded.reply
    return Sample(
        trace=graded.rollout.text,
        said=graded.answer,
        answer=answer,
        verdict=graded.verdict,
        finish=graded.rollout.finish,
        trace_tokens=len(graded.rollout.trace_ids),
        answer_tokens=len(reply.trace_ids) if reply else 0,
        answer_cut=reply is not None and reply.finish == "length",
        nats=-sum(graded.rollout.log_probs),
        label=graded.label,
    )
