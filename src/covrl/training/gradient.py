"""From admitted groups to a gradient: read, credit, loss, backward. Knows no method.

    gradient = Σ_streams coefficient × ∇ Σ_tokens weight × loss / denominator

The denominators cover the admitted batch of all ranks and are known before the first forward, so the gradient does not
depend on how rows are packed. A pass holds either traces that have their credit, or whole groups that get it between
the forward and the backward (:mod:`covrl.training.reading_plan`). A group of the second kind whose rows are more than a
pass may hold is scored and credited first, and then trained in packs of traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from covrl.algorithms.base import Algorithm, Stream
from covrl.distributed.world import World, deal
from covrl.errors import NonFiniteError, UserError
from covrl.evaluation.information import first_reading
from covrl.models.model import LanguageModel
from covrl.records import Credit, OffendingRollout, Output, Problem, Rollout, ScoredGroup, Scores
from covrl.scoring.pack import (
    PassLimits,
    Reading,
    Tokens,
    Unit,
    even_packs,
    even_shares,
    flat_tokens,
    make_packs,
    make_unit,
    padded_tokens,
    read,
    score,
)
from covrl.training.freed import give_back_freed
from covrl.training.losses import Trained, check_finite, scaled, token_losses, values_by_trace
from covrl.training.method_checks import check_learns
from covrl.training.reading_plan import ReadingPlan
from covrl.training.side_by_side import Turns, workers

CreditGroups = Callable[[Sequence[ScoredGroup]], list[list[Credit]]]
"""Groups with their scores -> what each trace of each is worth."""


@dataclass(slots=True)
class Gradient:
    """A gradient that is in ``.grad``, and what it was made of.

    ``groups`` with all that was read of their traces, and their ``credits``. ``losses[stream]`` include coefficient and
    denominator, so that they add up to the loss; ``norms[stream]`` are filled when measured. ``rows`` of together
    ``tokens`` went through the model; ``dropped`` traces had no weight; ``passes`` were made on this rank.
    """

    groups: list[ScoredGroup] = field(default_factory=list)
    credits: list[list[Credit]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    dropped: int = 0
    passes: int = 0


def add_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]] | CreditGroups,
    limits: PassLimits,
    plan: ReadingPlan,
    measure_streams: bool = False,
    between: Callable[[Exception | None], None] | None = None,
    world: World | None = None,
    watched: int = 0,
) -> Gradient:
    """Add the gradient of the admitted ``groups`` to the parameters' ``.grad``.

    ``credits`` is what their traces are worth, or, where the ``plan`` credits inside passes, the function that says so.
    Traces whose every weight in every stream is zero take part in the denominators only: no forward is spent on those
    that are known before. With ``measure_streams`` each stream has a backward pass of its own, to report its gradient's
    norm. The first ``watched`` groups that are credited inside a pass also get the distribution of their answers' first
    token (:data:`covrl.evaluation.information.FIRST`).

    In a ``world`` of several ranks all of them hold the same ``groups`` and no ``.grad``; each makes its share of the
    passes, and all end with the whole gradient and the same result. ``between`` is called between the forward and the
    backward of each pass, with the error that the forward ran into or None, and may raise to end it all; on ranks with
    sharded weights it has to raise on all of them or none.

    Raises:
        NonFiniteError: a score, a credit or a stream's loss is not finite, on any rank; ``.grad`` is then not to be
            used.
    """
    world = world or World()
    scale, streams = scaled(algorithm, groups)
    parameters = [p for model in models.values() for p in model.parameters()]
    at_once = 1 if measure_streams else workers(models.values(), world)
    work = _Work(algorithm, models, limits, plan, world, streams, scale, watched, at_once)
    work.take(groups, credits)
    made = Gradient(losses=dict.fromkeys(scale, 0.0))
    passes = _Passes(work, parameters, between or (lambda error: _raise_together(world, error)), made)
    collected: dict[str, list[Tensor | None]] = {}
    if not measure_streams:
        passes.run(list(scale))
        set_grad(parameters, world.summed([p.grad for p in parameters], parameters))
    elif world.sharded:  # gradients of shards come with the backward pass alone, so each stream has its own passes
        for name in scale:
            passes.run([name])
            collected[name] = [p.grad for p in parameters]
            set_grad(parameters, [None] * len(parameters))
    else:
        passes.run(list(scale), collected)
    made.losses = world.total(made.losses)
    for name in world.union(list(collected)):
        gradient = world.summed(collected.pop(name, [None] * len(parameters)), parameters)
        made.norms[name] = world.norm(gradient)
        _add_to_grad(parameters, gradient)
    work.finish(made)
    return made


def _raise_together(world: World, error: Exception | None) -> None:
    world.agree(error, asked=False)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A group, its place among the admitted ones, and a unit for each of its traces."""

    place: int
    group: ScoredGroup
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class _Pack:
    """What goes through the model at once: traces, of whole ``groups`` where these are credited in the pass.

    An ``idle`` one is another rank's, and has no part in the gradient.
    """

    units: Sequence[Unit]
    groups: Sequence[_Rows] = ()
    idle: bool = False


@dataclass(slots=True)
class _Work:
    """The groups of one gradient: which are still to be credited, and what is known of the others.

    ``trained`` are the traces with weight of groups that have their credit; ``read`` what passes of this rank read of
    traces, by the number of the trace among all.
    """

    algorithm: Algorithm
    models: Mapping[str, LanguageModel]
    limits: PassLimits
    plan: ReadingPlan
    world: World
    streams: Sequence[Stream]
    scale: Mapping[str, float]
    watched: int
    at_once: int
    groups: list[ScoredGroup] = field(default_factory=list)
    credits: list[Sequence[Credit] | None] = field(default_factory=list)
    credit: CreditGroups | None = None
    uncredited: list[_Rows] = field(default_factory=list)
    trained: dict[int, Trained] = field(default_factory=dict)
    read: dict[int, dict[Output, Tensor]] = field(default_factory=dict)

    def take(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]] | CreditGroups) -> None:
        """Sort the groups into those that are credited in a pass and those that have their credit."""
        self.groups = list(groups)
        if isinstance(credits, Sequence):
            self.credits = list(credits)
        else:
            self.credit, self.credits = credits, [None] * len(groups)
            every = self._rows(self.plan.in_pass)
            large = [rows for rows in every if padded_tokens(rows.units) > self.limits.tokens]
            self.uncredited = [rows for rows in every if padded_tokens(rows.units) <= self.limits.tokens]
            self._score_first(large)
        for rows in self._rows(self.plan.training):
            for trace in trained_of(rows.units, rows.group, self.credits[rows.place]):
                if trace.has_weight(self.streams):
                    self.trained[trace.unit.index] = trace

    def _rows(self, readings: Sequence[Reading]) -> list[_Rows]:
        """The groups that have their credit, or that have none before any has, with the rows that ``readings`` need.

        Traces are numbered through all groups.
        """
        contexts, made, start = self.algorithm.contexts, [], 0
        waiting = {rows.place for rows in self.uncredited}
        for place, group in enumerate(self.groups):
            if place not in waiting:
                rollouts = enumerate(group.rollouts, start)
                units = [make_unit(i, contexts, readings, group.problem, rollout) for i, rollout in rollouts]
                made.append(_Rows(place, group, tuple(units)))
            start += len(group.rollouts)
        return made

    def _score_first(self, large: Sequence[_Rows]) -> None:
        """Score and credit groups that are too ``large`` for a pass, each rank a share of the traces."""
        if not large or self.credit is None:
            return
        first = first_reading(self.algorithm.contexts, self.algorithm.scoring)
        with self.world.whole_weights():
            for rows_of, extra in (
                ([rows for rows in large if rows.place < self.watched], first),
                ([rows for rows in large if rows.place >= self.watched], ()),
            ):
                each = iter(self._scores(rows_of, (*self.algorithm.scoring, *extra)))
                for rows in rows_of:
                    scored = replace(rows.group, scores=tuple(next(each) for _ in rows.group.rollouts))
                    self.groups[rows.place] = scored
        found = self.credit([self.groups[rows.place] for rows in large])
        for rows, own in zip(large, found, strict=True):
            self.credits[rows.place] = own

    def _scores(self, every: Sequence[_Rows], readings: Sequence[Reading]) -> list[Scores]:
        def share(mine: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
            limits = self.limits
            return score(self.models, self.algorithm.contexts, readings, mine, limits.tokens, limits.logits_bytes)

        return self.world.shared(share, [(rows.group.problem, r) for rows in every for r in rows.group.rollouts])

    def packs(self) -> list[_Pack]:
        """The packs that this rank goes through.

        With sharded weights all ranks go through equally many, as each takes part in the passes of all. What a rank
        has less is made up by idle passes over the fewest tokens.
        """
        whole, traces = self.uncredited, [t.unit for t in self.trained.values()]
        if self.at_once > 1:
            return self._even_packs(whole, traces)
        sizes = [sum(unit.tokens for unit in rows.units) for rows in whole] + [unit.tokens for unit in traces]
        every = [
            [
                *_packs_of_groups([whole[i] for i in share if i < len(whole)], self.limits.tokens),
                *_packs_of_traces([traces[i - len(whole)] for i in share if i >= len(whole)], self.limits.tokens),
            ]
            for share in deal(sizes, self.world.size)
        ]
        mine = every[self.world.rank]
        if self.world.sharded and sizes:
            # what is not scored has no rows, and a pass without rows reaches no weight
            least = min((i for i, size in enumerate(sizes) if size), key=lambda i: (sizes[i], i), default=0)
            rows = whole[least : least + 1]
            units = rows[0].units if rows else [traces[least - len(whole)]]
            mine += [_Pack(units, rows, idle=True)] * (max(map(len, every)) - len(mine))
        return mine

    def _even_packs(self, whole: Sequence[_Rows], traces: Sequence[Unit]) -> list[_Pack]:
        """For passes side by side, which together have no more tokens than one may, but for what is not parted."""
        most = self.limits.tokens // self.at_once
        shares = even_shares([flat_tokens(rows.units) for rows in whole], most, self.at_once) if whole else []
        groups = [[whole[i] for i in share] for share in shares]
        packs = [_Pack([unit for rows in own for unit in rows.units], own) for own in groups]
        return packs + [_Pack(units) for units in even_packs(traces, most, self.at_once)] if traces else packs

    def credited(self, pack: _Pack, tokens: Tokens) -> dict[int, Trained]:
        """The pack's traces with their credit; groups that have none yet get it of what was read."""
        if not pack.groups:
            if not pack.idle:
                self._keep(values_by_trace(self.plan.read_off, tokens))
            return {unit.index: self.trained[unit.index] for unit in pack.units}
        assert self.credit is not None
        values = values_by_trace(self.algorithm.scoring, tokens)
        for index, first in values_by_trace(self._first(pack), tokens).items():
            if index in self._seen(pack):
                values[index] |= first
        scored = [
            replace(rows.group, scores=tuple(Scores(values.get(u.index, {})) for u in rows.units))
            for rows in pack.groups
        ]
        credits = self.credit(scored)
        if not pack.idle:
            self._keep(values)
            for rows, own in zip(pack.groups, credits, strict=True):
                self.credits[rows.place] = own
        every = [
            trace
            for rows, group, own in zip(pack.groups, scored, credits, strict=True)
            for trace in trained_of(rows.units, group, own)
        ]
        return {trace.unit.index: trace for trace in every}

    def readings(self, pack: _Pack) -> tuple[Reading, ...]:
        """What is read in a pass over ``pack``."""
        return (*self.plan.in_pass, *self._first(pack)) if pack.groups else self.plan.training

    def _seen(self, pack: _Pack) -> set[int]:
        return {unit.index for rows in pack.groups if rows.place < self.watched for unit in rows.units}

    def _first(self, pack: _Pack) -> tuple[Reading, ...]:
        return first_reading(self.algorithm.contexts, self.plan.in_pass) if self._seen(pack) else ()

    def _keep(self, values: Mapping[int, dict[Output, Tensor]]) -> None:
        self.read |= values

    def finish(self, made: Gradient) -> None:
        """Give ``made`` the groups with all that any rank read, every credit, and the counts."""
        numbers = self.world.gathered(list(self.read))
        values = self.world.gathered([Scores(v) for v in self.read.values()])
        read = dict(zip(numbers, values, strict=True))
        start = 0
        for group in self.groups:
            more = [read.get(start + i) for i in range(len(group.rollouts))]
            made.groups.append(replace(group, scores=tuple(map(_with, group.scores, more))))
            start += len(group.rollouts)
        for place, own in enumerate(self.credits):
            if own is None:  # credited in another rank's pass, of the same scores
                assert self.credit is not None
                (own,) = self.credit([made.groups[place]])
            made.credits.append(list(own))
        self._count(made)

    def _count(self, made: Gradient) -> None:
        units = [unit for rows in self.uncredited for unit in rows.units] + [t.unit for t in self.trained.values()]
        made.rows, made.tokens = sum(len(unit.rows) for unit in units), sum(unit.tokens for unit in units)
        weighing = len(self.trained)
        for rows in self.uncredited:
            traces = trained_of(rows.units, made.groups[rows.place], made.credits[rows.place])
            weighing += sum(trace.has_weight(self.streams) for trace in traces)
        made.dropped = sum(len(group.rollouts) for group in made.groups) - weighing


def _with(scores: Scores, more: Scores | None) -> Scores:
    return scores if more is None else replace(scores, values={**scores.values, **more.values})


def trained_of(units: Sequence[Unit], group: ScoredGroup, credits: Sequence[Credit] | None) -> list[Trained]:
    """The traces of a group with their rows and credit."""
    assert credits is not None
    traces = zip(units, group.rollouts, group.scores, credits, strict=True)
    return [Trained(unit, OffendingRollout(group.problem, r, s, own), own) for unit, r, s, own in traces]


def _packs_of_groups(every: Sequence[_Rows], tokens: int) -> Iterator[_Pack]:
    """Whole groups in order, as many as hold at most ``tokens`` with padding."""
    held: list[_Rows] = []
    for rows in every:
        if held and padded_tokens([unit for r in (*held, rows) for unit in r.units]) > tokens:
            yield _Pack([unit for r in held for unit in r.units], held)
            held = []
        held.append(rows)
    if held:
        yield _Pack([unit for r in held for unit in r.units], held)


def _packs_of_traces(units: Sequence[Unit], tokens: int) -> Iterator[_Pack]:
    yield from (_Pack(units) for units in make_packs(units, tokens))


@dataclass(frozen=True, slots=True)
class _Passes:
    """The forward and backward passes of one gradient, on this rank."""

    work: _Work
    parameters: Sequence[nn.Parameter]
    between: Callable[[Exception | None], None]
    made: Gradient
    turns: Turns = field(default_factory=Turns)

    def run(self, wanted: Sequence[str], collected: dict[str, list[Tensor | None]] | None = None) -> None:
        """Gradients of the streams ``wanted``, into ``.grad`` or, apart, into ``collected``.

        What goes wrong on one rank is raised on all, after their last pass.
        """
        world = self.work.world
        wrong: Exception | None = None
        with world.independent():
            alone = world.can_raise_alone
            try:
                packs = self.work.packs()
                self.made.passes += len(packs)
                if self.work.at_once > 1 and len(packs) > 1:
                    sizes = [flat_tokens(pack.units) for pack in packs]
                    with self.turns.adding(self.parameters):
                        passes = [partial(self._pass, pack, wanted, None) for pack in packs]
                        self.turns.run(passes, sizes, self.work.limits.tokens)
                else:
                    for pack in packs:
                        self._pass(pack, wanted, collected)
            except Exception as error:
                if not alone:  # agreed with all ranks already, or where they cannot be reached
                    raise
                wrong = error
        world.raise_together(wrong)

    def _pass(self, pack: _Pack, wanted: Sequence[str], collected: dict[str, list[Tensor | None]] | None) -> None:
        """One forward, the credit of groups that have none, and the backward."""
        work, world = self.work, self.work.world
        failed: Exception | None = None
        terms: dict[str, Tensor] = {}
        reach: list[Tensor] = []
        try:
            logits_bytes = work.limits.logits_bytes // work.at_once
            tokens = read(work.models, work.algorithm.contexts, work.readings(pack), pack.units, logits_bytes)
            with self.turns.turn("credit"):
                terms, reach = self._terms(pack, tokens, wanted)
        except (NonFiniteError, UserError) as error:  # found after the forward, so all ranks can leave together
            if world.can_raise_alone:
                raise
            failed = error
        except Exception as error:
            if world.can_raise_alone or world.broke_off(error):
                raise
            failed = MemoryError(str(error) or type(error).__name__)
        with self.turns.turn("between"):
            self.between(failed)
            for name, term in terms.items():
                self.made.losses[name] += float(term.detach())
        if collected is not None:
            self._collect(terms, collected)
        elif terms or reach:
            sum([*terms.values(), *reach], torch.zeros(())).backward()
        if self.parameters[0].device.type == "cpu":
            give_back_freed()

    def _terms(self, pack: _Pack, tokens: Tokens, wanted: Sequence[str]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The ``wanted`` streams' parts of the loss, and with shards what reaches every weight, as on other ranks.

        No parts where no trace has weight, or the pack is idle.
        """
        work = self.work
        every = work.credited(pack, tokens)
        trained = {index: trace for index, trace in every.items() if trace.has_weight(work.streams)}
        if not trained and not work.world.sharded:
            return {}, []
        read_off = work.algorithm.scoring if pack.groups else work.plan.read_off
        losses = token_losses(work.algorithm, tokens, trained, work.streams, read_off)
        reach = [0.0 * part.sum() for part in losses.values()] if work.world.sharded else []
        if pack.idle or not trained:
            return {}, reach
        terms = {name: work.scale[name] * losses[name].sum() for name in wanted}
        check_finite(terms, losses, tokens.owner, work.streams, every)
        check_learns(work.algorithm, terms)
        return terms, reach

    def _collect(self, terms: Mapping[str, Tensor], collected: dict[str, list[Tensor | None]]) -> None:
        """Each stream's gradient by a backward pass of its own, added up over packs; ``.grad`` is empty afterwards.

        Each pass adds to what its stream has: a whole gradient beside it would be one more of the model's size.
        """
        learned = [(name, term) for name, term in terms.items() if term.requires_grad]
        for number, (name, term) in enumerate(learned, start=1):
            self.between(None)
            set_grad(self.parameters, collected.get(name, [None] * len(self.parameters)))
            term.backward(retain_graph=number < len(learned))
            collected[name] = [p.grad for p in self.parameters]
            set_grad(self.parameters, [None] * len(self.parameters))


def set_grad(parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor | None]) -> None:
    """Put a whole gradient in the place of each parameter's ``.grad``."""
    for parameter, part in zip(parameters, gradient, strict=True):
        parameter.grad = part


def _add_to_grad(parameters: Sequence[nn.Parameter], gradient: list[Tensor | None]) -> None:
    """Add ``gradient`` to ``.grad``, and empty it on the way, so that its parts are not held twice for long."""
    for i, parameter in enumerate(parameters):
        part, gradient[i] = gradient[i], None
        if part is not None:
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part
