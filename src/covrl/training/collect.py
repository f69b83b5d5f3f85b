"""What a step trains on: plan -> generate -> judge -> score -> admit, until the method has what it wants."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from covrl.generation.base import Draw
from covrl.guards.guard import check_rewards, check_scores
from covrl.records import Credit, Group, ScoredGroup
from covrl.training.reading_plan import ReadingPlan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.undo import leave_step

ADMIT_ROUNDS = 10
"""How often a method that wants more groups may sample again within a step."""


class Clock:
    """Seconds by phase, summed over a step, as ``timer`` tells them."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self.timer = timer
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Generator[None]:
        """Count the seconds spent inside to ``phase``."""
        start = self.timer()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self.timer() - start


@dataclass(slots=True)
class Batch:
    """The groups of one step: all that were ``sampled``, the same ``scored``, and those that were admitted.

    ``credits`` are the admitted groups', and ``metrics`` those of the updates.
    """

    sampled: list[Group] = field(default_factory=list)
    scored: list[ScoredGroup] = field(default_factory=list)
    kept: list[ScoredGroup] = field(default_factory=list)
    credits: list[list[Credit]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def collect(run: Run, batch: Batch, draw: Draw, plan: ReadingPlan, clock: Clock) -> None:
    """Fill ``batch`` with groups, as far as the method admits them."""
    for _ in range(ADMIT_ROUNDS):
        problems = run.source.take(run.config.training.problems_per_step)
        for part in parts(len(problems), run.config.training.sampling_batches):
            with clock("generate"):
                fresh = sample(run, problems[part], draw)
            batch.sampled += fresh
            with clock("score"):
                batch.scored += score_groups(run, fresh, plan.before)
        if run.stopping is not None and run.world.any(run.stopping()):
            leave_step(run)
        check_scores(batch.scored)
        check_rewards(batch.scored, run.reward)
        batch.kept, want_more = run.algorithm.admit(batch.scored)
        if not want_more:
            break


def parts(length: int, count: int) -> list[slice]:
    """``count`` contiguous parts of almost equal size; fewer where there is less to share out."""
    edges = [round(i * length / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]
