"""Reading traces without gradients: each rank its share, in smaller passes where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

from covrl.evaluation.information import first_reading, groups_watched
from covrl.generation.base import rest as rest_engine
from covrl.models.copies import rest
from covrl.models.text import vocabulary
from covrl.prompt_checks import fits
from covrl.records import Group, Problem, Rollout, ScoredGroup, Scores
from covrl.scoring.groups import read_group
from covrl.scoring.pack import Context, PassLimits, Reading, score
from covrl.training.memory import with_smaller_passes
from covrl.training.run import Run


def scores_of(
    run: Run, contexts: Sequence[Context], readings: Sequence[Reading], pairs: Sequence[tuple[Problem, Rollout]]
) -> list[Scores]:
    """Each rollout's scores under ``contexts``.

    Raises:
        OutOfMemoryError: not even passes of one trace each fit.
    """

    rest_engine(run.generator)

    def attempt(limits: PassLimits) -> list[Scores]:
        def share(mine: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
            return score(run.models, contexts, readings, mine, limits.tokens, limits.logits_bytes)

        with run.world.whole_weights():
            return run.world.shared(share, pairs)

    return with_smaller_passes(run, attempt, pairs)


def score_groups(run: Run, groups: Sequence[Group], readings: Sequence[Reading] | None = None) -> list[ScoredGroup]:
    """Every trace under the method's contexts, with ``readings`` or all that the method scores.

    The first groups also get the distribution of their answers' first token, where they are read at all.
    """
    wanted = run.algorithm.scoring if readings is None else readings
    pairs = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    first = first_reading(run.algorithm.contexts, wanted)
    seen = sum(len(group.rollouts) for group in groups[: groups_with_first(run, groups)]) if first else 0

    def read(contexts: Sequence[Context], readings: Sequence[Reading], some: Sequence[tuple[Problem, Rollout]]):
        return scores_of(run, contexts, readings, some) if readings and some else [Scores({}) for _ in some]

    contexts = run.algorithm.contexts
    found = read(contexts, (*wanted, *first), pairs[:seen]) + read(contexts, wanted, pairs[seen:])
    every = run.mismatch.complete(pairs, found, read)
    if run.algorithm.group_readings:
        every = [_with(own, more) for own, more in zip(every, _read_together(run, groups), strict=True)]
    each = iter(every)
    rest(run.models.values())
    return [ScoredGroup(g.problem, g.rollouts, tuple(next(each) for _ in g.rollouts)) for g in groups]


def _with(own: Scores, more: Scores) -> Scores:
    return Scores({**own.values, **more.values}, own.tokens + more.tokens)


def _read_together(run: Run, groups: Sequence[Group]) -> list[Scores]:
    """What the method's group readings say of each rollout, each rank reading a share of the groups.

    Raises:
        OutOfMemoryError: not even passes of one trace each fit.
    """
    algorithm = run.algorithm

    def attempt(limits: PassLimits) -> list[Scores]:
        def share(mine: Sequence[Group]) -> list[Scores]:
            made = (run.models, algorithm.contexts, algorithm.group_readings)
            return [scores for g in mine for scores in read_group(*made, g.problem, g.rollouts, limits)]

        with run.world.whole_weights():
            return run.world.shared(share, groups)

    pairs = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    return with_smaller_passes(run, attempt, pairs)


def has_room(run: Run, problem: Problem) -> bool:
    """Whether the model's context holds the problem's prompts with a whole trace and the answer."""
    return fits(run.prompts, run.models["policy"].context_length, run.config, problem)


def groups_with_first(run: Run, groups: Sequence[Group] | Sequence[ScoredGroup]) -> int:
    """How many of the first groups of a part of a step keep the distributions of their answers' first token."""
    rollouts = max((len(group.rollouts) for group in groups), default=1)
    every = groups_watched(vocabulary(run.models["policy"].model), rollouts)
    return max(every // run.config.training.sampling_batches, 1)
