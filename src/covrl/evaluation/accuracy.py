"""Held-out accuracy as at test time: the prior prompt only, a sampled or greedy trace, then the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from covrl.distributed.world import World
from covrl.generation.base import Draw, Generator, Sampling
from covrl.prompts import Prompts
from covrl.records import SOUND, Grader, Problem, Request, Rollout, TraceLabel, Verdict


def said_in(reply: Rollout, prompts: Prompts) -> str:
    """The text of a sampled answer, without the suffix that ends it or the end-of-text token that a model wrote
    instead.

    The name of the token that ends a text ("<|im_end|>") is no part of the answer.
    """
    if reply.finish != "eos":
        return reply.text.removesuffix(prompts.config.answer_suffix)
    ids = list(reply.whole_ids[:-1])
    return str(prompts.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, slots=True)
class Graded:
    """One held-out problem: the trace, the answer that followed it, and the verdict.

    ``reply`` is the answer as it was sampled; None where no answer could follow the trace.
    """

    problem: Problem
    rollout: Rollout
    answer: str
    verdict: Verdict
    label: str | None = None
    reply: Rollout | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All graded problems of one evaluation."""

    graded: tuple[Graded, ...]

    @property
    def accuracy(self) -> float:
        """Share graded right; unknown counts as not right and is shown separately."""
        return sum(g.verdict == "right" for g in self.graded) / len(self.graded)

    @property
    def unknown(self) -> float:
        return sum(g.verdict == "unknown" for g in self.graded) / len(self.graded)

    @property
    def sound(self) -> float | None:
        """Share of sound traces; None where the task has no check of traces."""
        labels = [g.label for g in self.graded if g.label is not None]
        return labels.count(SOUND) / len(labels) if labels else None


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Samples and grades held-out problems.

    A trace without a closing tag is wrong, as no answer can follow it. Without a grader every verdict is unknown.
    ``answer_temperature`` is that of the answers after sampled traces, None for the trace's own; the answer after a
    greedy trace is greedy. In a ``world`` of several ranks each samples and grades a share, and all return all.
    """

    generator: Generator
    prompts: Prompts
    max_trace_tokens: int
    max_answer_tokens: int
    grade: Grader | None
    label: TraceLabel | None = None
    top_p: float = 1.0
    answer_temperature: float | None = None
    world: World = field(default_factory=World)

    def __call__(self, problems: Sequence[Problem], temperature: float, draw: Draw) -> Evaluation:
        """One trace and one answer per problem; ``temperature`` 0 is greedy."""
        return Evaluation(tuple(self.examine([(problem, 0) for problem in problems], temperature, draw)))

    def examine(self, asked: Sequence[tuple[Problem, int]], temperature: float, draw: Draw) -> list[Graded]:
        """One trace and one answer for each (problem, index of the sample), in order; a problem may occur several
        times."""
        ask = [Request(p.id, index, self.prompts.prior(p), "prior") for p, index in asked]
        thinking = Sampling(self.max_trace_tokens, self.prompts.config.close, temperature, self.top_p)
        traces = self.generator.generate(ask, thinking, replace(draw, purpose="evaluation"))
        return self.answered([p for p, _ in asked], traces, temperature, draw)

    def answered(
        self, problems: Sequence[Problem], traces: Sequence[Rollout], temperature: float, draw: Draw
    ) -> list[Graded]:
        """One answer after each of these traces of the prior prompt, one a problem, and its verdict."""
        suffix = self.prompts.config.answer_suffix
        closed = [i for i, trace in enumerate(traces) if trace.valid]
        reply = [traces[i].request.answer_after(self.prompts.answer_prompt(problems[i], traces[i])) for i in closed]
        heat = temperature if self.answer_temperature is None or temperature == 0 else self.answer_temperature
        answering = Sampling(self.max_answer_tokens, suffix, heat, self.top_p)
        replies = self.generator.generate(reply, answering, replace(draw, purpose="answer")) if reply else []
        said = {i: said_in(r, self.prompts) for i, r in zip(closed, replies, strict=True)}
        verdicts = dict(zip(closed, self.verdicts([(problems[i], said[i]) for i in closed]), strict=True))
        answers = dict(zip(closed, replies, strict=True))
        return [
            Graded(
                p,
                t,
                said.get(i, ""),
                verdicts.get(i, "wrong"),
                self.label(p, t) if self.label else None,
                answers.get(i),
            )
            for i, (p, t) in enumerate(zip(problems, traces, strict=True))
        ]

    def verdicts(self, answered: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """The verdict on each answer to a problem."""
        return ["unknown"] * len(answered) if self.grade is None else self.world.shared(self.grade, answered)
