"""Before the first update: what a method wants to know of its problems under the policy as it is then."""

from __future__ import annotations

from covrl.generation.base import Draw
from covrl.guards.guard import check_rewards
from covrl.records import ScoredGroup, Scores
from covrl.training.collect import Clock
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.undo import leave_step, updates_of


def survey(run: Run, clock: Clock) -> None:
    """Sample the problems that the method wants surveyed, as many at once as a step has, and let it remember.

    Nothing is done once an update was made: the policy is no longer what it was. A survey that is interrupted is made
    again, with the same samples.

    Raises:
        NonFiniteError: a reward is not finite.
        RunInterruptedError: ``run.stopping`` turned true.
    """
    if updates_of(run):
        return
    wanted, draw = run.algorithm.survey_wanted(run.source.problems), Draw(run.config.training.seed, 0, "survey")
    size, tokens = max(run.config.training.problems_per_step, 1), 0
    for start in range(0, len(wanted), size):
        with clock("survey"):
            groups = sample(run, wanted[start : start + size], draw)
        check_rewards([ScoredGroup(g.problem, g.rollouts, (Scores({}),) * len(g.rollouts)) for g in groups], run.reward)
        run.algorithm.take_survey(groups)
        tokens += sum(len(r.trace_ids) for g in groups for r in g.rollouts)
        if run.stopping is not None and run.world.any(run.stopping()):
            leave_step(run)
    if wanted:
        run.remarks.append(f"surveyed {len(wanted):,} problems before the first update: {tokens:,} tokens were sampled")
