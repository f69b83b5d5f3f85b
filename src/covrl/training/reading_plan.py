"""Which of a method's readings are made when: derived from what its admission and its credit look at.

    scored before      without gradients, ahead of admission and credit
    read off           old log-probs that are the training forward's own as constants, of traces with weight alone
    scored in a pass   whole groups are read once with gradients, and credited between the forward and the backward

The first is always right. The other two save a forward of every trace, and need that the update is the first since the
rollouts and that these come from the trained weights: old and new log-probs are then the same numbers. Both need that
admission and denominators look at rollouts alone; reading off, that credit looks at no score of the policy; scoring in
a pass, that a group's credit looks at this group alone. All three give the same gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from covrl.algorithms.base import Algorithm
from covrl.scoring.pack import Reading
from covrl.training.run import Run


class ReadingPlan(NamedTuple):
    """The readings of one step. ``training`` are those of a pass over traces that have their credit.

    ``in_pass`` are the readings of a pass that credits its groups itself; empty where none does.
    """

    before: tuple[Reading, ...]
    read_off: tuple[Reading, ...]
    training: tuple[Reading, ...]
    in_pass: tuple[Reading, ...] = ()


def reading_plan(algorithm: Algorithm, on_policy: bool, single_pass: bool = True) -> ReadingPlan:
    """How ``algorithm``'s readings are made.

    ``on_policy``: this is the one update since the rollouts, and they come from the trained weights. ``single_pass``
    may be False where a pass cannot give everything that is asked of a step, such as the norm of each stream.
    """
    scoring, training = algorithm.scoring, algorithm.training
    if not on_policy or algorithm.admission_reads:
        return ReadingPlan(scoring, (), training)
    model_of = {context.name: context.model for context in algorithm.contexts}
    of_policy = tuple(r for r in scoring if all(model_of[name] == "policy" for name in r.contexts))
    if algorithm.credit_reads != "all" and "policy" not in algorithm.credit_reads:
        before = tuple(r for r in scoring if r not in of_policy)
        return ReadingPlan(before, of_policy, joined(training, of_policy))
    trained = {name for reading in training for name in reading.contexts}
    read_twice = any(trained & set(reading.contexts) for reading in scoring)
    single_pass = single_pass and not algorithm.group_readings  # which are made before credit
    if single_pass and algorithm.credit_scope == "group" and read_twice:
        return ReadingPlan((), (), training, joined(training, scoring))
    return ReadingPlan(scoring, (), training)


def plan_of_step(run: Run, number: int) -> ReadingPlan:
    """The plan of step ``number``; a step that measures each stream's gradient does not credit inside a pass."""
    measured = run.due(run.config.training.stream_norms_every, number)
    return reading_plan(run.algorithm, one_update(run) and run.mismatch.of_trainer, single_pass=not measured)


def one_update(run: Run) -> bool:
    """Whether a batch of rollouts serves for a single update."""
    training = run.config.training
    return training.mini_batches * training.epochs * run.algorithm.updates_wanted == 1


def joined(training: Sequence[Reading], wanted: Sequence[Reading]) -> tuple[Reading, ...]:
    """The readings of a training forward that gives the ``wanted`` ones too.

    One that reads the same span in the same contexts takes the place of a training reading that gives less.
    """
    readings = list(training)
    for reading in wanted:
        given = {(r.span, name) for r in readings for name in r.outputs}
        if given >= {(reading.span, name) for name in reading.outputs}:
            continue
        same = [
            i
            for i, r in enumerate(readings)
            if (r.span, r.contexts) == (reading.span, reading.contexts) and set(r.outputs) <= set(reading.outputs)
        ]
        readings[slice(same[0], same[0] + 1) if same else slice(len(readings), None)] = [reading]
    return tuple(readings)
