"""Held-out accuracy as at test time: the prior prompt only, a sampled or greedy trace, then the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from covrl.generation.base import Draw, Generator, Sampling
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout, Verdict

Grader = Callable[[Sequence[tuple[Problem, str]]], Sequence[Verdict]]
"""Pairs (problem, what was said between the answer tags) -> a verdict each."""

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


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Samples and grades held-out problems.

    A trace without a closing tag is wrong, as no answer can follow it. Without a grader every verdict is unknown.
    """

    generator: Generator
    prompts: Prompts
    max_trace_tokens: int
    max_answer_tokens: int
    grade: Grader | None
    label: TraceLabel | None = None

    def __call__(self, problems: Sequence[Problem], temperature: float, draw: Draw) -> Evaluation:
        """One trace and one answer per problem; ``temperature`` 0 is greedy."""
        close, suffix = self.prompts.config.close, self.prompts.config.answer_suffix
        ask = [Request(p.id, 0, self.prompts.prior(p), "prior") for p in problems]
        thinking = Sampling(self.max_trace_tokens, close, temperature)
        traces = self.generator.generate(ask, thinking, replace(draw, purpose="evaluation"))
        reply = [
            replace(r, prompt_ids=self.prompts.answer_prompt(p, t))
            for p, r, t in zip(problems, ask, traces, strict=True)
            if t.valid
        ]
        answering = Sampling(self.max_answer_tokens, suffix, temperature)
        replies = self.generator.generate(reply, answering, replace(draw, purpose="answer")) if reply else []
        said = {r.request.problem_id: r.text.removesuffix(suffix) for r in replies}
        verdicts = self._verdicts([(p, said[p.id]) for p in problems if p.id in said])
        return Evaluation(
            tuple(
                Graded(p, t, said.get(p.id, ""), verdicts.get(p.id, "wrong"), self.label(p, t) if self.label else None)
                for p, t in zip(problems, traces, strict=True)
            )
        )

    def _verdicts(self, answered: Sequence[tuple[Problem, str]]) -> dict[str, Verdict]:
        verdicts: Sequence[Verdict] = ["unknown"] * len(answered) if self.grade is None else self.grade(answered)
        return {problem.id: verdict for (problem, _), verdict in zip(answered, verdicts, strict=True)}
