"""One step: collect -> credit -> gradient -> optimize -> publish -> report. Knows no method.

:func:`take_step` is the page to read. What can go wrong around it (a step that is taken back, left out, or made again
with less memory) is in the functions and context managers that it calls.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from covrl.errors import NonFiniteError
from covrl.evaluation.hints import FOIL, Place, hint_metrics, read_foils
from covrl.evaluation.thoughts import Baseline, thought_baselines, thought_metrics
from covrl.evaluation.trace_monitors import words_lift
from covrl.generation.base import Draw
from covrl.generation.base import rest as rest_engine
from covrl.guards.guard import check_credits, check_scores
from covrl.models.copies import rest
from covrl.records import Credit, Output, ScoredGroup, StepReport
from covrl.scoring.pack import PassLimits
from covrl.training.collect import Batch, Clock, collect, parts
from covrl.training.gradient import Gradient, add_gradient
from covrl.training.held_out import NO_MARKS, held_out_metrics
from covrl.training.losses import has_weight, only_written
from covrl.training.memory import with_smaller_passes
from covrl.training.method_checks import check_credit_shapes
from covrl.training.metrics import (
    OF_NO_UPDATE,
    reads_answers,
    reads_hints,
    step_metrics,
    times,
    traces_shown,
    update_metrics,
)
from covrl.training.mismatch import mismatch_warnings
from covrl.training.monitors import label_warnings, verdict_warnings
from covrl.training.non_finite import gradient_error
from covrl.training.optimizer import learning_rate, set_learning_rate
from covrl.training.publish import begin_anew, publish
from covrl.training.reading_plan import ReadingPlan, plan_of_step
from covrl.training.run import Run
from covrl.training.scores import groups_with_first, has_room, scores_of
from covrl.training.survey import survey
from covrl.training.undo import between_passes, take_back, whole_or_undone


def take_step(run: Run) -> StepReport:
    """One batch of rollouts and its update, whole or not at all.

    Raises:
        NonFiniteError: a number of it is not finite and may not be skipped.
        OutOfMemoryError: not even a pass over one trace fits, or one row that is sampled.
        RunInterruptedError: ``run.stopping`` turned true; the run is as it was before the step.
    """
    number, draw = run.done + 1, Draw(run.config.training.seed, run.done)
    plan, clock, batch = plan_of_step(run, number), Clock(run.timer), Batch()
    with whole_or_undone(run):
        with clock("step"):
            with left_out_if_not_finite(run, batch):
                with run.weights_for_sampling():
                    survey(run, clock)
                    collect(run, batch, draw, plan, clock)  # plan, generate, judge, score, admit
                    with clock("score"):
                        thoughts = values_of_no_thought(run, batch.kept)
                        wrong_hints = traces_under_foils(run, batch.kept)
                if not plan.in_pass:
                    batch.credits = credit(run, batch.kept)
                sampler = sampler_gap(run, batch, plan)
                with clock("train"):
                    rate, updates = set_rate(run), []
                    for part in update_parts(run, len(batch.kept)):
                        made = gradient(run, batch, part, plan)
                        updates.append((made, optimize(run, made, plan)))
                batch.metrics = {"optim/lr": rate} | update_metrics(updates) | sampler
                batch.metrics |= run.ahead.metrics(batch.sampled, run.done)
                batch.metrics |= thought_metrics(batch.kept, thoughts) | hint_metrics(batch.kept, wrong_hints)
                batch.metrics |= style_of_kl(run, batch.kept)
            run.done = number
            run.ahead.finish(draw.step)
            batch.metrics |= publish(run)
        return report(run, batch, plan, clock)


def credit(run: Run, groups: list[ScoredGroup]) -> list[list[Credit]]:
    """What each token of scored groups is worth, corrected for a sampler that is not the trainer.

    A token that the policy did not write (``Rollout.written``) is worth nothing.

    Raises:
        NonFiniteError: some of it is not finite, or a score is not.
    """
    check_scores(groups)
    given = run.algorithm.credit(groups)
    check_credit_shapes(run.algorithm, groups, given)
    credits = run.mismatch.corrected(groups, given, run.algorithm.streams)
    credits = only_written(groups, credits, run.algorithm.streams)
    check_credits(groups, credits)
    return credits


def update_parts(run: Run, groups: int) -> list[slice]:
    """Which of the admitted ``groups`` each update of the step is made of: mini-batches, as often as there are epochs.

    Where fewer groups are admitted than there are mini-batches, the batch is gone over again.
    """
    training = run.config.training
    once = parts(groups, training.mini_batches)
    return once * max(training.epochs, math.ceil(run.algorithm.updates_wanted / max(len(once), 1)))


def gradient(run: Run, batch: Batch, part: slice, plan: ReadingPlan) -> Gradient:
    """The gradient of one update in ``.grad``; what its passes read and credited is put into the ``batch``."""
    assert run.in_progress is not None
    run.in_progress.update += 1
    groups = batch.kept[part]
    credits = (lambda some: credit(run, list(some))) if plan.in_pass else batch.credits[part]
    measure = run.due(run.config.training.stream_norms_every, run.done + 1)

    rest_engine(run.generator)

    def attempt(limits: PassLimits) -> Gradient:
        run.forget_gradient()  # of an attempt that ran out of memory
        made_of = (run.algorithm, run.models, groups, credits, limits, plan, measure)
        return add_gradient(*made_of, between_passes(run), run.world, groups_with_first(run, groups))

    made = with_smaller_passes(run, attempt, [(g.problem, r) for g in groups for r in g.rollouts])
    batch.kept[part] = made.groups
    batch.credits[part] = made.credits
    return made


def optimize(run: Run, made: Gradient, plan: ReadingPlan) -> dict[str, float]:
    """One step of each model's optimizer with the gradient in ``.grad``, clipped; its norm before that, by model.

    Raises:
        NonFiniteError: a norm is not finite.
    """
    assert run.in_progress is not None
    limit = run.config.training.gradient_clip
    norms = {n: float(run.world.clip_gradient(own, limit)) for n, own in run.trained.items()}
    for norm in norms.values():
        if not math.isfinite(norm):
            run.forget_gradient()
            batch = (made.groups, made.credits, run.limits, plan, run.world)
            raise gradient_error(norm, run.algorithm, run.models, *batch)
    run.in_progress.applied = True
    for optimizer in run.optimizers.values():
        optimizer.step()
    run.forget_gradient()  # sampling comes next, and wants the memory
    rest(run.models.values())
    return norms


def set_rate(run: Run) -> float:
    """Give each optimizer the step's learning rate for its model; the policy's."""
    training, specs = run.config.training, {spec.name: spec for spec in run.algorithm.models}
    rate = learning_rate(training, run.done)
    for name, optimizer in run.optimizers.items():
        spec = specs.get(name)
        own = None if spec is None else spec.learning_rate
        times = 1.0 if spec is None else spec.rate
        set_learning_rate(optimizer, rate * times if own is None else learning_rate(training, run.done, own))
    return rate


@contextmanager
def left_out_if_not_finite(run: Run, batch: Batch) -> Generator[None]:
    """Where something inside is not finite and the step may be left out: weights and memory are as they were before.

    ``batch`` then has what was sampled and scored, and nothing that is kept.

    Raises:
        NonFiniteError: it may not be left out.
    """
    try:
        yield
    except NonFiniteError as error:
        assert run.in_progress is not None
        update = run.in_progress.update
        take_back(run, keep_problems=True)
        run.remarks.append(run.guard.non_finite(error, run.done + 1, update, run.folder, run.world))
        batch.kept, batch.credits = [], []
        batch.metrics = OF_NO_UPDATE | {"guard/skipped": float(run.guard.skipped)}


def values_of_no_thought(run: Run, groups: list[ScoredGroup]) -> dict[str, Baseline]:
    """Before the update, for half of the problems, on the steps for it of a method that scores answers."""
    if not reads_answers(run) or not run.due(run.config.report.thoughts_every, run.done + 1):
        return {}
    return thought_baselines(partial(scores_of, run), run.prompts, groups, (len(groups) + 1) // 2)


def traces_under_foils(run: Run, groups: list[ScoredGroup]) -> dict[Place, Tensor]:
    """Before the update, for half of the problems, on the steps for it of a method that reads both prompts.

    A method that scores wrong hints itself needs no look.
    """
    due = reads_hints(run) and run.due(run.config.report.thoughts_every, run.done + 1)
    if not due or any(Output(r.span, name) == FOIL for r in run.algorithm.scoring for name in r.outputs):
        return {}
    posterior = next(c for c in run.algorithm.contexts if c.name == "posterior")
    return read_foils(partial(scores_of, run), posterior, groups, (len(groups) + 1) // 2, partial(has_room, run))


def style_of_kl(run: Run, groups: list[ScoredGroup]) -> dict[str, float]:
    """Where the KL between both prompts lies, by words, on the steps for it of a method that reads one."""
    if not reads_hints(run) or not run.due(run.config.report.thoughts_every, run.done + 1):
        return {}
    return words_lift(groups, run.config.report.hedging_words, run.prompts.reads_back_ids)


def sampler_gap(run: Run, batch: Batch, plan: ReadingPlan) -> dict[str, float]:
    """The sampler's metrics, before the update, where nothing of this step reads traces as they were sampled.

    A method may read them under another prompt, or no trace may have a weight.
    """
    known = {Output(r.span, name) for r in run.algorithm.scoring for name in r.outputs}
    sources = {Output("trace", r.source) for g in batch.scored for r in g.rollouts}
    reads = bool(batch.kept) if plan.in_pass else not plan.read_off or any(weighing(run, batch))
    if not run.mismatch.of_trainer or (reads and known & sources):  # another engine's traces are all read
        return {}
    with run.world.whole_weights():
        return run.mismatch.of_few(batch.scored, partial(scores_of, run))


def weighing(run: Run, batch: Batch) -> Iterator[bool]:
    """Of each credited trace, whether it is read in the training forward."""
    for group, row in zip(batch.kept, batch.credits, strict=True):
        for rollout, own in zip(group.rollouts, row, strict=True):
            yield rollout.request.trains and has_weight(own, run.algorithm.streams)


def report(run: Run, batch: Batch, plan: ReadingPlan, clock: Clock) -> StepReport:
    """The step's metrics, held-out figures, warnings and traces; the guards remember what they see of it."""
    metrics, marks = step_metrics(run, batch, plan), NO_MARKS
    if run.due(run.config.evaluation.every, run.done) and not run.guard.stale:
        with clock("eval"), run.weights_for_sampling():
            held_out, marks = held_out_metrics(run)
            metrics |= held_out
    # Times differ, and a grader's verdicts may; what is decided on them must not.
    metrics, marks = run.world.broadcast((metrics | times(clock), marks))
    run.algorithm.after_step(metrics)
    warnings = [*run.algorithm.warnings(metrics), *label_warnings(metrics), *verdict_warnings(metrics)]
    warnings += mismatch_warnings(metrics)
    shown = traces_shown(run, batch.kept, batch.credits)
    verified = run.algorithm.verified and run.reward is None
    # last: nothing takes it back
    watched, parted = run.guard.watch.step(run.done, metrics, marks.sampled, verified, marks.majority)
    unread = [*run.guard.reading.step(metrics), *run.guard.traces.step(metrics)]
    if wanted := run.algorithm.reset_after(metrics):
        run.remarks.append(begin_anew(run, wanted))
    remarks, run.remarks = run.remarks, []
    return StepReport(run.done, metrics | watched, (*remarks, *warnings, *parted, *unread), shown)
