"""`covrl train --dry-run`: what a run would show the model, what it would sample, and what it would cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from covrl.generation.base import Draw
from covrl.records import Group, Problem, Rollout, Row
from covrl.training.loop import Run

FORMAT_SHARE = 0.25
"""Below this share of valid traces a base is said not to know the format."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: bytes on the device and on disk, seconds for the whole run.

    Time is one measured round of sampling and scoring, scaled to a step; training is taken as three scorings
    (forward, backward twice as dear).
    """

    weights: int
    optimizer: int
    gradients: int
    logits: int
    disk: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DryRun:
    """The first problem's rows by context, sampled traces, and the cost."""

    problem: Problem
    rows: dict[str, Row]
    rollouts: tuple[Rollout, ...]
    cost: Cost

    @property
    def valid(self) -> float:
        return sum(r.valid for r in self.rollouts) / len(self.rollouts)

    @property
    def truncated(self) -> float:
        return sum(r.finish == "length" for r in self.rollouts) / len(self.rollouts)

    def complaint(self) -> str | None:
        """Named and with figures, if the base cannot do the format."""
        if self.valid >= FORMAT_SHARE:
            return None
        ended = sum(r.finish == "eos" for r in self.rollouts)
        return (
            f"the base does not know the format: {self.valid:.0%} of {len(self.rollouts)} traces end with the closing "
            f"tag ({self.truncated:.0%} cut at the limit, {ended} ended the text before it); raise "
            "generation.max_trace_tokens, reword [prompts], or start from a base that was taught the format"
        )


def dry_run(run: Run, traces: int = 8) -> DryRun:
    """Sample at least ``traces`` traces of the first problems, score them, and take no step."""
    size = run.config.training.rollouts_per_problem
    problems = run.source.take(max(1, -(-traces // size)))
    start = time.perf_counter()
    groups = run.sample(problems, Draw(run.config.training.seed, 0))
    sampled = time.perf_counter()
    run.score(groups)
    scored = time.perf_counter()
    share = run.config.training.problems_per_step / len(problems)
    seconds = share * ((sampled - start) + 4 * (scored - sampled)) * run.config.training.steps
    rollouts = tuple(r for g in groups for r in g.rollouts)
    return DryRun(problems[0], _rows(run, groups[0]), rollouts, _cost(run, seconds))


def _rows(run: Run, group: Group) -> dict[str, Row]:
    """The contexts of the first valid trace, or of the first one."""
    shown = next((r for r in group.rollouts if r.valid), group.rollouts[0])
    return {context.name: context.render(group.problem, shown) for context in run.algorithm.contexts}


def _cost(run: Run, seconds: float) -> Cost:
    parameters: Sequence = run.parameters
    weights = sum(p.numel() * p.element_size() for p in parameters)
    copies = run.config.checkpoint.keep + 1  # the best beside the newest
    return Cost(
        weights=weights,
        optimizer=2 * weights,
        gradients=weights,
        logits=len(run.algorithm.contexts) * run.limits.logits_bytes * 3,
        disk=weights * copies + 2 * weights * run.config.checkpoint.keep,
        seconds=seconds,
    )
