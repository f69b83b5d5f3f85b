"""Teaching a base the format, supervised, on worked solutions: before RL, where too few traces are valid.

A solution becomes a given trace: under each prompt that is taught the model learns to write it and to close it, and
after it, under the prior prompt alone, the reference answer. It goes through the same contexts, packing and gradient
as RL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from covrl.algorithms.base import Algorithm, LossTokens, Setup, Stream
from covrl.config import Settings
from covrl.errors import NonFiniteError, UserError
from covrl.generation.base import Draw, rest
from covrl.objectives import trace_tokens
from covrl.problems.source import ProblemSource
from covrl.prompts import ROLES, Prompts, Role
from covrl.records import Credit, Output, Problem, Request, Rollout, ScoredGroup, Scores
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading
from covrl.training.gradient import add_gradient
from covrl.training.optimizer import make_optimizer
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run

PROBED = 32
"""Problems whose traces are sampled to see how many are valid."""


class WarmFormatConfig(Settings):
    """Which prompts the solutions are taught under."""

    roles: tuple[Role, ...] = ROLES


class WarmFormat(Algorithm):
    """−log p(z|x) − log p(z|x,y) − log p(y|x,z) on given traces: means over trace tokens, and over answers.

    Of the first two, those of the ``roles`` alone.
    """

    name: ClassVar[str] = "warm_format"
    paper: ClassVar[str] = "none: supervised fine-tuning"
    evidence: ClassVar[str] = "ours"
    Config: ClassVar[type[Settings]] = WarmFormatConfig

    def __init__(self, config: WarmFormatConfig, setup: Setup) -> None:
        self.roles = config.roles
        prompts = self.prompts = setup.prompts
        self.contexts = (Context("prior", prompts.prior_row),)  # the answer is read from it in any case
        if "posterior" in self.roles:
            self.contexts += (Context("posterior", prompts.posterior_row),)
        self.scoring = self.training = (
            *(Reading("trace", (role,), log_prob, (role,)) for role in self.roles),
            Reading("answer", ("prior",), log_prob, ("prior",)),
        )
        self.streams = (
            *(Stream(role, "trace", 1.0, trace_tokens) for role in self.roles),
            Stream("answer", "answer", 1.0, lambda groups: float(sum(len(g.rollouts) for g in groups))),
        )

    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        del problem, history, draw  # its traces are given
        return []

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        return [[self._whole(group.problem, rollout) for rollout in group.rollouts] for group in groups]

    def _whole(self, problem: Problem, rollout: Rollout) -> Credit:
        trace, answer = len(rollout.trace_ids), len(self.prompts.answer(problem))
        weights: dict[str, torch.Tensor] = {role: torch.ones(trace) for role in self.roles}
        return Credit(weights | {"answer": torch.full((answer,), 1 / answer)})

    def loss(self, tokens: LossTokens) -> dict[str, torch.Tensor]:
        losses = {role: -tokens.new[Output("trace", role)] for role in self.roles}
        return losses | {"answer": -tokens.new[Output("answer", "prior")]}


@dataclass(frozen=True, slots=True)
class Lesson:
    """One report of the warm-up: steps done, loss per trace token (nats), and the share of sampled traces that end.

    The loss is under the first of the prompts that are taught. ``by_prompt`` has the share of each prompt that the
    run's method samples from.
    """

    step: int
    loss: float
    valid: float
    by_prompt: Mapping[str, float]


def roles_named(text: str) -> tuple[Role, ...]:
    """``prior,posterior`` as roles, in that order.

    Raises:
        UserError: one of them is none, or none is named.
    """
    named = [part.strip() for part in text.split(",")]
    for part in named:
        if part not in ROLES:
            raise UserError(f"--roles {text}: expected prior, posterior or prior,posterior; found {part!r}")
    return tuple(role for role in ROLES if role in named)


def given_trace(prompts: Prompts, problem: Problem, solution: str) -> Rollout:
    """A worked solution as a rollout of the prior prompt that closed itself."""
    ids = prompts.literal(solution.strip()) + prompts.close_ids
    request = Request(problem.id, 0, prompts.prior(problem), "prior")
    return Rollout(request, ids, (0.0,) * len(ids), "closed", "sampled", solution + prompts.config.close)


def warm_format(
    run: Run, steps: int, rate: float, until: float, every: int, roles: Sequence[Role] = ROLES
) -> Iterator[Lesson]:
    """Train ``run``'s model in place; one lesson every ``every`` steps, the last when enough traces are valid.

    The prompts of ``roles`` are taught from the same solutions. Ends after ``steps`` steps, or as soon as a share of
    ``until`` of the sampled traces is valid.

    Raises:
        UserError: the problems carry no solutions, or none is short enough for ``generation.max_trace_tokens``.
        NonFiniteError: the loss is not finite.
    """
    training = run.config.training
    lessons = WarmFormat(WarmFormatConfig(roles=tuple(roles)), Setup(run.prompts, 1))
    solved = solved_problems(run)
    source = ProblemSource(solved, training.seed)
    optimizer = make_optimizer(run.parameters, training.model_copy(update={"learning_rate": rate}))
    plan = reading_plan(lessons, on_policy=False)  # nothing is scored: the traces are given
    for step in range(1, steps + 1):
        groups = [
            ScoredGroup(p, (given_trace(run.prompts, p, p.solution or ""),), (Scores({}),))
            for p in source.take(training.problems_per_step)
        ]
        optimizer.zero_grad(set_to_none=True)
        credits = lessons.credit(groups)
        report = add_gradient(lessons, run.models, groups, credits, run.limits, plan)
        norm = torch.nn.utils.clip_grad_norm_(run.parameters, training.gradient_clip)
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(f"warm-up step {step}: the gradient's norm is {float(norm)}; no step was taken")
        optimizer.step()
        if step % every == 0 or step == steps:
            lesson = Lesson(step, report.losses[roles[0]], *valid_shares(run, solved[:PROBED], step))
            yield lesson
            if lesson.valid >= until:
                return


def valid_shares(run: Run, problems: Sequence[Problem], step: int) -> tuple[float, dict[str, float]]:
    """Share of traces, sampled as in training, that end with the closing tag: of all, and by the prompt they are of."""
    run.generator.publish(step)
    groups = sample(run, problems, Draw(run.config.training.seed, step, "warm-up"))
    rest(run.generator)
    rollouts = [r for g in groups for r in g.rollouts]
    valid: dict[str, list[bool]] = {}
    for rollout in rollouts:
        valid.setdefault(rollout.source, []).append(rollout.valid)
    by_prompt = {source: sum(found) / len(found) for source, found in valid.items()}
    return sum(r.valid for r in rollouts) / len(rollouts), by_prompt


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
