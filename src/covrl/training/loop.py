"""The loop: one step in ten lines, and a run of them. Knows no method.

problems -> plan -> generate -> score -> admit -> credit -> pack -> loss -> update -> publish
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from covrl.algorithms.base import Algorithm
from covrl.config import RunConfig
from covrl.distributed.world import World
from covrl.errors import BrokenModelError, NonFiniteError, RunInterruptedError, TrainingStoppedError
from covrl.evaluation.accuracy import Evaluator
from covrl.evaluation.information import first_reading, groups_watched, information_metrics
from covrl.evaluation.thoughts import Baseline, thought_baselines, thought_metrics
from covrl.generation.base import Draw, samples_with_trainer
from covrl.generation.base import Generator as TraceGenerator
from covrl.problems.source import ProblemSource
from covrl.prompts import Prompts
from covrl.records import (
    Credit,
    Grader,
    Group,
    Output,
    Problem,
    Rollout,
    ScoredGroup,
    Scores,
    StepReport,
    TraceGroup,
    TraceLabel,
)
from covrl.rewards.named import Reward
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import Context, PassLimits, Reading, score
from covrl.scoring.text import vocabulary
from covrl.training.divergence import comes_later
from covrl.training.guard import Guard, check_credits, check_rewards, check_scores, watched
from covrl.training.held_out import held_out_metrics
from covrl.training.memory import pass_arithmetic, pass_sizes, with_less
from covrl.training.merged import Merged, merged_gradient
from covrl.training.mismatch import Mismatch, mismatch_warnings
from covrl.training.models import follow, rest, save_policy
from covrl.training.monitors import (
    label_metrics,
    label_warnings,
    reward_metrics,
    rollout_metrics,
    token_metrics,
    verdict_metrics,
    verdict_warnings,
)
from covrl.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from covrl.training.rollouts import sample
from covrl.training.step import GradientReport, accumulate_gradient, gradient_error, has_weight
from covrl.training.undo import Before
from covrl.training.views import trace_group

T = TypeVar("T")

Late = Mapping[int, Mapping[Output, Tensor]]
"""What was read off a training forward: by number of the trace among all admitted, then by output, ``[T]``."""

TOTALS = ("train/rows", "train/dropped_traces", "tokens/trained")
"""Metrics of an update that add up over the updates of a step; the others are averaged."""

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


@dataclass
class Run:
    """Everything a run is made of; :meth:`step` takes one optimizer step (or ``mini_batches`` of them).

    ``verify`` marks what responses answered, for methods that need a verifier; CoVRL needs none. ``reward`` is the
    user's own function, or several with their names, called for every sampled trace or response. ``label`` names what
    traces do, for monitors and the report alone. ``best`` is the best held-out (accuracy, log-likelihood) so far.
    ``notes`` say which fast paths the model made impossible. ``folder`` is where guards leave what they found, and
    ``stopping`` says whether the run has been asked to end; it is looked at before each forward and backward pass.
    ``timer`` gives the seconds of the metrics ``time/…``: those on the wall unless another is set.
    ``world`` is the processes that share the work: each does a part of it, and all hold every group, credit and metric.
    """

    config: RunConfig
    algorithm: Algorithm
    models: dict[str, LanguageModel]
    generator: TraceGenerator
    prompts: Prompts
    source: ProblemSource
    verify: Grader | None = None
    reward: Reward | None = None
    label: TraceLabel | None = None
    evaluator: Evaluator | None = None
    held_out: Sequence[Problem] = ()
    world: World = field(default_factory=World)
    done: int = 0
    best: tuple[float, float] | None = None
    notes: Sequence[str] = ()
    folder: Path | None = None
    stopping: Callable[[], bool] | None = None
    timer: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        training = self.config.training
        self.parameters = [p for model in self.models.values() for p in model.parameters()]
        self.optimizer = make_optimizer(self.parameters, training)
        self.limits = PassLimits.of(training)
        self.guard = Guard(self.config)
        self._update_number = 0
        self._applied = False
        self._before: Before | None = None
        self._remarks: list[str] = []
        self._marks = ""

    def steps(self) -> Iterator[StepReport]:
        """Reports of all remaining steps, one as each is done.

        Raises:
            TrainingStoppedError: the method or a guard sees no use in going on. What a step's metrics show is raised
                after its report was yielded; a step that was not taken leaves the run as it was before it.
            RunInterruptedError: ``stopping`` turned true inside a step; the run is as it was before the step.
        """
        with watched(self) as arm:
            if self.config.guards.publish_check_every and self.done < self.config.training.steps:
                try:
                    self._look_at_generator(first=True)
                except BrokenModelError as error:
                    raise NonFiniteError(f"before step {self.done + 1}: {error}") from error
            if self.guard.stale:
                raise TrainingStoppedError(f"stopped before step {self.done + 1}: {self.guard.stale}")
            while self.done < self.config.training.steps:
                arm(self.done + 1)
                report = self.step()
                skipped = "guard/skipped" in report.metrics
                reason = self.guard.stale or (None if skipped else self._reason_to_stop(report))
                yield report  # a checkpoint of this step holds what the guards saw of it
                if reason:
                    raise TrainingStoppedError(f"stopped after step {report.step}: {reason}")

    def _reason_to_stop(self, report: StepReport) -> str | None:
        diverged = self.guard.divergence.check(report.metrics, lambda name: comes_later(self, name))
        return diverged or self.algorithm.stop_reason(report.metrics)

    def _look_at_generator(self, first: bool = False) -> float:
        with self.world.whole_weights():
            gap = self.guard.look_at_generator(self, first and not self.world.sharded)
        self.guard.stale = self.world.broadcast(self.guard.stale)
        return gap

    def leave_if_asked(self) -> None:
        """Raises RunInterruptedError if the run was asked to end and the step in progress can be taken back.

        In a pass that other ranks take part in, :meth:`_between` looks, and all leave together.
        """
        if self.world.can_raise_alone and self._asked():
            self._leave_step()

    def _asked(self) -> bool:
        return self.stopping is not None and self.stopping() and self._can_undo()

    def _between(self, error: Exception | None) -> None:
        if self.world.agree(error, self._asked()):
            self._leave_step()

    def _leave_step(self) -> None:
        done = self._before.done if self._before else self.done
        raise RunInterruptedError(f"interrupted inside step {done + 1}, of which nothing was kept")

    def _can_undo(self) -> bool:
        return self._before is not None and (not self._applied or self._before.tensors is not None)

    def step(self) -> StepReport:
        """One batch of rollouts and its update, whole or not at all.

        Raises:
            NonFiniteError: a number of it is not finite and may not be skipped.
            OutOfMemoryError: not even a pass over one trace fits, or one row that is sampled.
            RunInterruptedError: as in :meth:`steps`.
        """
        number, training = self.done + 1, self.config.training
        several = training.mini_batches * training.epochs > 1
        ends_in_evaluation = self.stopping is not None and self._due(self.config.evaluation.every, number)
        self._before = Before(self, weights=several or ends_in_evaluation)
        self._applied, self._remarks, self._marks = False, self.guard.remarks, ""
        self.guard.remarks = []
        try:
            return self._step(number)
        except BaseException as error:
            if self._can_undo():
                self._before.restore(self)
            if isinstance(error, BrokenModelError):
                raise NonFiniteError(f"step {number}: {error}") from error
            raise
        finally:
            self._before = None

    def _step(self, number: int) -> StepReport:
        clock = Clock(self.timer)
        draw, merged = Draw(self.config.training.seed, number - 1), self.merges
        with clock("step"):
            sampled, scored, kept, credits, update = self._learn(draw, clock)
            self.done = number
            followed = any(spec.follows != "frozen" for spec in self.algorithm.models)
            with self.world.whole_weights() if followed else nullcontext():
                follow(self.algorithm.models, self.models, self.done)
            self.generator.publish(self.done)
            if self._due(self.config.guards.publish_check_every, number):
                update["guard/publish_gap"] = self._look_at_generator()
        metrics = rollout_metrics(sampled) | verdict_metrics(sampled) | token_metrics(scored)
        metrics |= self.mismatch.metrics(kept if self.late or merged else scored)
        metrics |= {"groups/kept": float(len(kept)), "groups/sampled": float(len(sampled))}
        if "guard/skipped" not in update:
            metrics |= reward_metrics(kept, credits) | self.algorithm.monitors(kept, credits)
            metrics |= information_metrics(kept)
        metrics |= update
        if self.label:
            metrics |= label_metrics(kept, credits, self.label, self.config.prompts.close)
        if self._due(self.config.evaluation.every, number) and not self.guard.stale:
            with clock("eval"), self.world.whole_weights():
                metrics |= self._evaluate()
        metrics |= {f"time/{phase}": seconds for phase, seconds in clock.seconds.items()}
        counted = sum(clock.seconds.get(phase, 0.0) for phase in ("generate", "score", "train"))
        metrics["time/other"] = clock.seconds["step"] - counted
        # Times differ, and a grader's verdicts may; what is decided on them must not.
        metrics, marks = self.world.broadcast((metrics, self._marks))
        warnings = (*self.algorithm.warnings(metrics), *label_warnings(metrics), *verdict_warnings(metrics))
        warnings += tuple(mismatch_warnings(metrics))
        shown = self._shown(kept, credits)
        shares = self.algorithm.verified and self.reward is None
        watched, parted = self.guard.watch.step(number, metrics, marks, shares)  # last: nothing takes it back
        unread = self.guard.reading.step(metrics)
        return StepReport(number, metrics | watched, (*self._remarks, *warnings, *parted, *unread), shown)

    def _learn(
        self, draw: Draw, clock: Clock
    ) -> tuple[list[Group], list[ScoredGroup], list[ScoredGroup], list[list[Credit]], dict[str, float]]:
        """What was sampled, scored and kept, its credit, and the metrics of its updates.

        Where something in it is not finite and the step may be left out: nothing is kept, and the weights and the
        method's memory are as they were.
        """
        sampled: list[Group] = []
        scored: list[ScoredGroup] = []
        self._update_number = 0
        try:
            with self.world.whole_weights():
                kept = self._collect(draw, clock, sampled, scored)
                with clock("score"):
                    worth = self._thought_baselines(kept)
            if self.merges:
                gap = self._gap_of_few(scored, bool(kept))
                with clock("train"):
                    groups, credits, update = self._merged_update(kept)
                return sampled, scored, groups, credits, update | gap | thought_metrics(groups, worth)
            credits = self.credit(kept)
            gap = self._gap_of_few(scored, not self.late or _any_weight(kept, credits, self.algorithm))
            with clock("train"):
                update, read = self._update(kept, credits)
            return sampled, scored, _with_values(kept, read), credits, update | gap | thought_metrics(kept, worth)
        except NonFiniteError as error:
            assert self._before is not None
            self._before.restore(self, keep_problems=True)
            at = (draw.step + 1, self._update_number)
            self._remarks.append(self.guard.non_finite(error, *at, self.folder, self.world))
        nothing = {"optim/updates": 0.0, "guard/skipped": float(self.guard.skipped)} | dict.fromkeys(TOTALS, 0.0)
        return sampled, scored, [], [], nothing

    def _thought_baselines(self, groups: Sequence[ScoredGroup]) -> dict[str, Baseline]:
        """Before the update, for half of the problems, on the steps for it of a method that scores answers."""
        reads_answers = first_reading(self.algorithm.contexts, self.algorithm.scoring)
        if not reads_answers or not self._due(self.config.report.thoughts_every, self.done + 1):
            return {}
        return thought_baselines(self.scores, self.prompts, groups, (len(groups) + 1) // 2)

    def _gap_of_few(self, scored: Sequence[ScoredGroup], reads: bool) -> dict[str, float]:
        """The sampler's metrics, before the update, where nothing of this step ``reads`` traces as they were sampled.

        A method may read them under another prompt, or no trace may have a weight.
        """
        known = {Output(r.span, name) for r in self.algorithm.scoring for name in r.outputs}
        sources = {Output("trace", r.source) for g in scored for r in g.rollouts}
        if not self.mismatch.of_trainer or (reads and known & sources):  # another engine's are read all
            return {}

        with self.world.whole_weights():
            limits = (self.limits.tokens, self.limits.logits_bytes)
            return self.mismatch.of_few(scored, lambda *wanted: score(self.models, *wanted, *limits))

    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        """What each token of admitted groups is worth, corrected for a sampler that is not the trainer.

        Raises:
            NonFiniteError: some of it is not finite.
        """
        credits = self.mismatch.corrected(groups, self.algorithm.credit(groups), self.algorithm.streams)
        check_credits(groups, credits)
        return credits

    @property
    def mismatch(self) -> Mismatch:
        """What measures the generator against the trainer and corrects for it."""
        return Mismatch(self.config.generation, samples_with_trainer(self.generator))

    def _collect(self, draw: Draw, clock: Clock, sampled: list[Group], scored: list[ScoredGroup]) -> list[ScoredGroup]:
        """The groups that are admitted; ``sampled`` gets all groups, ``scored`` the same with their scores."""
        kept: list[ScoredGroup] = []
        for _ in range(ADMIT_ROUNDS):
            problems = self.source.take(self.config.training.problems_per_step)
            for part in _parts(len(problems), self.config.training.sampling_batches):
                with clock("generate"):
                    fresh = self.sample(problems[part], draw)
                sampled += fresh
                with clock("score"):
                    scored += self.score(fresh, without=self.algorithm.scoring if self.merges else self.late)
            self._stop_together()
            check_scores(scored)
            check_rewards(scored, self.reward)
            kept, want_more = self.algorithm.admit(scored)
            if not want_more:
                break
        return kept

    def _stop_together(self) -> None:
        """Leave the step in all processes if one of them was asked to."""
        if self.stopping is not None and self.world.any(self.stopping()):
            self._leave_step()

    def sample(self, problems: Sequence[Problem], draw: Draw) -> list[Group]:
        """Plan and generate until the method asks for nothing more; one judged group per problem."""
        return sample(self, problems, draw)

    def score(self, groups: Sequence[Group], without: Sequence[Reading] = ()) -> list[ScoredGroup]:
        """Read every trace under the method's contexts, without gradients; ``without`` some of its readings."""
        pairs = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
        wanted = [reading for reading in self.algorithm.scoring if reading not in without]
        seen = sum(len(group.rollouts) for group in groups[: self._groups_watched(groups)])
        first = first_reading(self.algorithm.contexts, wanted)
        scores = [
            *self._scores_of(pairs[:seen] if first else [], (*wanted, *first)),
            *self._scores_of(pairs[seen:] if first else pairs, wanted),
        ]
        scores = iter(self.mismatch.complete(pairs, scores, self.scores))
        rest(self.models.values())
        return [ScoredGroup(g.problem, g.rollouts, tuple(next(scores) for _ in g.rollouts)) for g in groups]

    def _scores_of(self, pairs: Sequence[tuple[Problem, Rollout]], readings: Sequence[Reading]) -> list[Scores]:
        return (
            self.scores(self.algorithm.contexts, readings, pairs) if readings and pairs else [Scores({}) for _ in pairs]
        )

    def _groups_watched(self, groups: Sequence[Group] | Sequence[ScoredGroup]) -> int:
        """How many of the first groups of a part of a step keep their answers' distributions."""
        rollouts = max((len(group.rollouts) for group in groups), default=1)
        every = groups_watched(vocabulary(self.models["policy"].model), rollouts)
        return max(every // self.config.training.sampling_batches, 1)

    @property
    def merges(self) -> bool:
        """Whether this step's groups are scored in their training forward; see :class:`Algorithm`."""
        training = self.config.training
        once = training.mini_batches * training.epochs == 1 and not self._due(
            training.stream_norms_every, self.done + 1
        )
        return bool(self.algorithm.merged) and once and self.mismatch.of_trainer

    @property
    def late(self) -> tuple[Reading, ...]:
        """What is read off the training forward instead of before it; see :class:`Algorithm`."""
        once = self.config.training.mini_batches * self.config.training.epochs == 1
        return self.algorithm.late if once and self.mismatch.of_trainer else ()

    def scores(
        self, contexts: Sequence[Context], readings: Sequence[Reading], pairs: Sequence[tuple[Problem, Rollout]]
    ) -> list[Scores]:
        """Each rollout's scores under ``contexts``, each rank reading its share; in smaller passes if memory runs out.

        Raises:
            OutOfMemoryError: these are too large as well.
        """

        def attempt(limits: PassLimits) -> list[Scores]:
            def share(mine: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
                return score(self.models, contexts, readings, mine, limits.tokens, limits.logits_bytes)

            with self.world.whole_weights():
                return self.world.shared(share, pairs)

        return self._with_less(attempt, pairs)

    def _update(
        self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]
    ) -> tuple[dict[str, float], Late]:
        """One optimizer step per mini-batch of groups and epoch; what is logged of them, and what was read late."""
        training = self.config.training
        rate = self._set_rate()
        parts: list[dict[str, float]] = []
        read: Late = {}
        once = _parts(len(groups), training.mini_batches)
        # Where fewer groups are admitted than there are mini-batches, the batch is gone over again.
        passes = max(training.epochs, math.ceil(self.algorithm.updates_wanted / max(len(once), 1)))
        for part in once * passes:
            self._update_number += 1
            report = self._gradient(groups[part], credits[part])
            parts.append(_gradient_metrics(report, self._apply(groups[part], credits[part])))
            if self.late:  # then this is the only update
                read = self._of_all_ranks(report.late)
        means = _means(parts)
        totals = {name: sum(part[name] for part in parts) for name in TOTALS}
        return {"optim/lr": rate, "optim/updates": float(len(parts))} | means | totals, read

    def _set_rate(self) -> float:
        rate = learning_rate(self.config.training, self.done)
        set_learning_rate(self.optimizer, rate)
        return rate

    def _apply(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> float:
        """One optimizer step with the gradient in ``.grad``, clipped; its norm before that."""
        norm = float(self.world.clip_gradient(self.parameters, self.config.training.gradient_clip))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            batch = (groups, credits, self.limits, self.world, self.late)
            raise gradient_error(norm, self.algorithm, self.models, *batch)
        self._applied = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # sampling comes next, and wants the memory
        rest(self.models.values())
        return norm

    def _merged_update(
        self, groups: Sequence[ScoredGroup]
    ) -> tuple[list[ScoredGroup], list[list[Credit]], dict[str, float]]:
        """One optimizer step on admitted groups that are not scored yet: they with scores, credits, what is logged."""
        rate = self._set_rate()
        self._update_number = 1

        def attempt(limits: PassLimits) -> Merged:
            self.optimizer.zero_grad(set_to_none=True)
            made_of = (self.algorithm, self.models, groups, self._credit_read, limits, self._between)
            return merged_gradient(*made_of, self.world, self._groups_watched(groups))

        found = self._with_less(attempt, [(g.problem, r) for g in groups for r in g.rollouts])
        metrics = _gradient_metrics(found.report, self._apply(found.groups, found.credits))
        read = {"tokens/scored": float(sum(scores.tokens for group in found.groups for scores in group.scores))}
        return found.groups, found.credits, {"optim/lr": rate, "optim/updates": 1.0} | metrics | read

    def _credit_read(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        check_scores(groups)
        return self.credit(groups)

    def _of_all_ranks(self, late: Late) -> Late:
        """What every rank read late of its share of the traces."""
        each = range(self.world.size)
        numbers = self.world.shared(lambda _: list(late), each)
        values = self.world.shared(lambda _: [Scores(v) for v in late.values()], each)
        return {number: scores.values for number, scores in zip(numbers, values, strict=True)}

    def _gradient(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> GradientReport:
        """The gradient of one update in ``.grad``; from an empty one again if memory runs out."""
        measure = self._due(self.config.training.stream_norms_every, self.done + 1)

        def attempt(limits: PassLimits) -> GradientReport:
            self.optimizer.zero_grad(set_to_none=True)
            made_of = (self.algorithm, self.models, groups, credits, limits, measure)
            return accumulate_gradient(*made_of, between=self._between, world=self.world, late=self.late)

        return self._with_less(attempt, [(g.problem, r) for g in groups for r in g.rollouts])

    def _with_less(self, attempt: Callable[[PassLimits], T], pairs: Sequence[tuple[Problem, Rollout]]) -> T:
        """``attempt`` with the run's limits, or, where all ranks can do so together, with less, which is then kept."""
        found, limits, warning = with_less(
            attempt,
            self.limits,
            self.world.agreed,
            sizes=lambda: pass_sizes(self, pairs),
            explain=lambda limits: pass_arithmetic(self, pairs, limits),
        )
        self.limits = limits
        if warning:
            self.remark(warning)
        return found

    def remark(self, text: str) -> None:
        """Say something in the report of the step that is being taken."""
        self._remarks.append(text)

    def _due(self, every: int, number: int) -> bool:
        """Whether step ``number`` (1, 2, …) is one of every ``every``; the first and the last always are."""
        return bool(every) and (number % every == 0 or number in (1, self.config.training.steps))

    def _evaluate(self) -> dict[str, float]:
        metrics, self._marks = held_out_metrics(self)
        return metrics

    def save(self, folder: Path) -> None:
        """Write the policy as a Hugging Face folder, with LoRA the adapter, and the tokenizer. All ranks call it."""
        save_policy(self.models["policy"], folder, self.world)
        self.world.on_rank0(lambda: self.prompts.tokenizer.save_pretrained(folder))

    def _shown(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> tuple[TraceGroup, ...]:
        """The first groups of the step, as a person reads them, on the steps that are kept for reading."""
        if not self._due(self.config.report.traces_every, self.done):
            return ()
        count = self.config.report.groups_shown
        return tuple(
            trace_group(g, c, self.prompts, self.label) for g, c in zip(groups[:count], credits[:count], strict=True)
        )


def _parts(length: int, count: int) -> list[slice]:
    """``count`` contiguous parts of almost equal size; fewer where there is less to share out."""
    edges = [round(i * length / count) for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def _with_values(groups: Sequence[ScoredGroup], read: Late) -> list[ScoredGroup]:
    """The groups with what was read of their traces late."""
    traces = count()
    return [
        replace(g, scores=tuple(replace(s, values={**s.values, **read.get(next(traces), {})}) for s in g.scores))
        for g in groups
    ]


def _any_weight(groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]], algorithm: Algorithm) -> bool:
    """Whether any trace is read in the training forward."""
    traces = [(r, c) for g, row in zip(groups, credits, strict=True) for r, c in zip(g.rollouts, row, strict=True)]
    return any(r.request.trains and has_weight(c, algorithm.streams) for r, c in traces)


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the updates that have it: one in which no trace had weight has no stream's norm."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _gradient_metrics(report: GradientReport, norm: float) -> dict[str, float]:
    return (
        {f"loss/{name}": value for name, value in report.losses.items()}
        | {f"grad_norm/{name}": value for name, value in report.norms.items()}
        | {"grad_norm/total": norm, "train/rows": float(report.rows), "train/dropped_traces": float(report.dropped)}
        | {"tokens/trained": float(report.tokens)}
    )
