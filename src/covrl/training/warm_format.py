"""Teaching a base the format, supervised, on worked solutions: before RL, where too few traces are valid.

A solution becomes a given trace: under both prompts the model learns to write it and to close it, and behind it,
under the prior prompt alone, the reference answer. It goes through the same contexts, packing and gradient as RL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from covrl.algorithms.base import Algorithm, LossTokens, Setup, Stream
from covrl.config import Settings
from covrl.errors import NonFiniteError, UserError
from covrl.generation.base import Draw
from covrl.objectives import trace_tokens
from covrl.problems.source import ProblemSource
from covrl.prompts import Prompts
from covrl.records import Credit, Output, Problem, Request, Rollout, ScoredGroup, Scores
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading
from covrl.training.loop import Run
from covrl.training.optimizer import make_optimizer
from covrl.training.step import accumulate_gradient

PROBED = 32
"""Problems whose traces are sampled to see how many are valid."""


class WarmFormat(Algorithm):
    """−log p(z|x) − log p(z|x,y) − log p(y|x,z) on given traces: means over trace tokens, and over answers."""

    name: ClassVar[str] = "warm_format"
    paper: ClassVar[str] = "none: supervised fine-tuning"
    evidence: ClassVar[str] = "ours"
    Config: ClassVar[type[Settings]] = Settings

    def __init__(self, config: Settings, setup: Setup) -> None:
        del config
        prompts = self.prompts = setup.prompts
        self.contexts = (Context("prior", prompts.prior_row), Context("posterior", prompts.posterior_row))
        self.scoring = self.training = (
            Reading("trace", ("prior",), log_prob, ("prior",)),
            Reading("trace", ("posterior",), log_prob, ("posterior",)),
            Reading("answer", ("prior",), log_prob, ("prior",)),
        )
        self.streams = (
            Stream("prior", "trace", 1.0, trace_tokens),
            Stream("posterior", "trace", 1.0, trace_tokens),
            Stream("answer", "answer", 1.0, lambda groups: float(sum(len(g.rollouts) for g in groups))),
        )

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        del problem, history, draw  # its traces are given
        return []

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        return [[self._whole(group.problem, rollout) for rollout in group.rollouts] for group in groups]

    def _whole(self, problem: Problem, rollout: Rollout) -> Credit:
        trace, answer = len(rollout.trace_ids), len(self.prompts.answer(problem))
        weights = {
            "prior": torch.ones(trace),
            "posterior": torch.ones(trace),
            "answer": torch.full((answer,), 1 / answer),
        }
        return Credit(weights)

    def loss(self, tokens: LossTokens) -> dict[str, torch.Tensor]:
        return {
            "prior": -tokens.new[Output("trace", "prior")],
            "posterior": -tokens.new[Output("trace", "posterior")],
            "answer": -tokens.new[Output("answer", "prior")],
        }


@dataclass(frozen=True, slots=True)
class Lesson:
    """One report of the warm-up: steps done, loss per trace token (nats), and the share of sampled traces that end."""

    step: int
    loss: float
    valid: float


def given_trace(prompts: Prompts, problem: Problem, solution: str) -> Rollout:
    """A worked solution as a rollout of the prior prompt that closed itself."""
    ids = prompts.encode(solution.strip()) + prompts.close_ids
    request = Request(problem.id, 0, prompts.prior(problem), "prior")
    return Rollout(request, ids, (0.0,) * len(ids), "closed", "sampled", solution + prompts.config.close)


def warm_format(run: Run, steps: int, rate: float, until: float, every: int) -> Iterator[Lesson]:
    """Train ``run``'s model in place; one lesson every ``every`` steps, the last when enough traces are valid.

    Ends after ``steps`` steps, or as soon as a share of ``until`` of the sampled traces is valid.

    Raises:
        UserError: the problems carry no solutions, or none is short enough for ``generation.max_trace_tokens``.
        NonFiniteError: the loss is not finite.
    """
    training = run.config.training
    lessons = WarmFormat(Settings(), Setup(run.prompts, 1))
    solved = solved_problems(run)
    source = ProblemSource(solved, training.seed)
    optimizer = make_optimizer(run.parameters, training.model_copy(update={"learning_rate": rate}))
    for step in range(1, steps + 1):
        groups = [
            ScoredGroup(p, (given_trace(run.prompts, p, p.solution or ""),), (Scores({}),))
            for p in source.take(training.problems_per_step)
        ]
        optimizer.zero_grad(set_to_none=True)
        credits = lessons.credit(groups)
        report = accumulate_gradient(lessons, run.models, groups, credits, run.limits)
        norm = torch.nn.utils.clip_grad_norm_(run.parameters, training.gradient_clip)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(f"warm-up step {step}: the gradient's norm is {float(norm)}; no step was taken")
        optimizer.step()
        if step % every == 0 or step == steps:
            lesson = Lesson(step, report.losses["prior"], valid_share(run, solved[:PROBED], step))
            yield lesson
            if lesson.valid >= until:
                return


def valid_share(run: Run, problems: Sequence[Problem], step: int) -> float:
    """Share of traces, sampled as in training, that end with the closing tag."""
    groups = run.sample(problems, Draw(run.config.training.seed, step, "warm-up"))
    rollouts = [r for g in groups for r in g.rollouts]
    return sum(r.valid for r in rollouts) / len(rollouts)


def solved_problems(run: Run) -> list[Problem]:
    """Problems with a solution that fits the trace limit.

    Raises:
        UserError: the problems carry no solutions, or none is short enough.
    """
    solved = [p for p in run.source.problems if p.solution]
    if not solved:
        raise UserError("the problems carry no worked solutions: set problems.solution_field (or extract) to have them")
    limit = run.config.generation.max_trace_tokens
    short = [p for p in solved if len(given_trace(run.prompts, p, p.solution or "").trace_ids) <= limit]
    if not short:
        raise UserError(f"no solution fits generation.max_trace_tokens = {limit}; raise it")
    return short
