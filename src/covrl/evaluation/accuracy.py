"""Held-out accuracy as at test time: the prior prompt only, a sampled or greedy trace, then the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from covrl.generation.base import Draw, Generator, Sampling
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout, Verdict

Grader = Callable[[Problem, str], Verdict]
"""(problem, answer text) -> verdict."""

TraceLabel = Callable[[Problem, Rollout], str]
"""What a trace does, where a task can tell: "sound", or the name of what is wrong. For reports, never for training."""

SOUND = "sound"


@dataclass(frozen=True, slots=True)
class Graded:
    """One held-out problem: the trace, the answer that followed it, and what the grader said."""

    problem: Problem
    rollout: Rollout
    answer: str
    verdict: Verdict
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All graded problems of one evaluation."""

    graded: tuple[Graded, ...]

    @property
    def accuracy(self) -> float:
        """Share graded right; unknown counts as not right and is shown apart."""
        return sum(g.verdict == "right" for g in self.graded) / len(self.graded)

    @property
    def unknown(self) -> float:
        return sum(g.verdict == "unknown" for g in self.graded) / len(self.graded)

    @property
    def sound(self) -> float | None:
        """Share of sound traces; None where the task cannot tell."""
        labels = [g.label for g in self.graded if g.label is not None]
        return labels.count(SOUND) / len(labels) if labels else None


def exact_text(problem: Problem, answer: str) -> Verdict:
    """Right if the answer is the reference or an accepted one, spaces at the ends aside."""
    return "right" if answer.strip() in {a.strip() for a in (problem.answer, *problem.accepted)} else "wrong"


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Samples and grades held-out problems. A trace without a closing tag is graded wrong: no answer can follow it."""

    generator: Generator
    prompts: Prompts
    max_trace_tokens: int
    max_answer_tokens: int
    grade: Grader | None = exact_text
    label: TraceLabel | None = None

    def __call__(self, problems: Sequence[Problem], temperature: float, draw: Draw) -> Evaluation:
        """One trace and one answer per problem; ``temperature`` 0 is greedy."""
        close, suffix = self.prompts.config.close, self.prompts.config.answer_suffix
        ask = [Request(p.id, 0, self.prompts.prior(p), "prior") for p in problems]
        thinking = Sampling(self.max_trace_tokens, close, temperature)
        traces = self.generator.generate(ask, thinking, replace(draw, purpose="evaluation"))
        reply = [
            replace(r, prompt_ids=self.prompts.answer_prompt(t)) for r, t in zip(ask, traces, strict=True) if t.valid
        ]
        answering = Sampling(self.max_answer_tokens, suffix, temperature)
        replies = iter(self.generator.generate(reply, answering, replace(draw, purpose="answer")) if reply else [])
        graded = []
        for problem, trace in zip(problems, traces, strict=True):
            said = next(replies).text.removesuffix(suffix) if trace.valid else ""
            verdict: Verdict = (
                "unknown" if self.grade is None else self.grade(problem, said) if trace.valid else "wrong"
            )
            graded.append(Graded(problem, trace, said, verdict, self.label(problem, trace) if self.label else None))
        return Evaluation(tuple(graded))
