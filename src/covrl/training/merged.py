"""Groups that are scored in their training forward: read once with gradients, credited in between.

    for each pack of whole groups:  forward -> scores (detached) -> credit -> loss -> backward

The gradient is that of scoring first and training then, since on policy old and new log-probs are the same numbers; a
forward of every row is saved. It needs credit that looks at one group, and an admission and denominators that look at
rollouts alone (:attr:`covrl.algorithms.base.Algorithm.merged`). Rows whose trace turns out to have no weight have been
read by then, as for scores they have to be.

A group is credited when all its rows are read, and their activations are held until then. One whose rows are more than
a pass may hold is therefore scored first and trained then, in packs of traces. Several ranks share out whole groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from covrl.algorithms.base import Algorithm
from covrl.distributed.world import World, deal
from covrl.errors import NonFiniteError
from covrl.evaluation.information import first_reading
from covrl.records import Credit, OffendingRollout, Output, Problem, Rollout, ScoredGroup, Scores
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import PassLimits, Reading, Tokens, Unit, make_unit, padded_tokens, read, score
from covrl.training.step import (
    GradientReport,
    Trained,
    accumulate_gradient,
    check_finite,
    has_weight,
    scaled,
    set_grad,
    token_losses,
)


@dataclass(frozen=True, slots=True)
class Merged:
    """The groups with their scores, what they are worth, and what the gradient was made of."""

    groups: list[ScoredGroup]
    credits: list[list[Credit]]
    report: GradientReport


@dataclass(frozen=True, slots=True)
class _Rows:
    """A group, its place among the admitted ones, and a unit for each of its traces."""

    place: int
    group: ScoredGroup
    units: tuple[Unit, ...]


Credited = dict[int, tuple[ScoredGroup, list[Credit]]]
"""Groups with their scores and what they are worth, by place among the admitted ones."""


def merged_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credit: Callable[[Sequence[ScoredGroup]], list[list[Credit]]],
    limits: PassLimits,
    between: Callable[[Exception | None], None],
    world: World | None = None,
    watched: int = 0,
) -> Merged:
    """Add the gradient of admitted ``groups``, which have no scores yet, to the parameters' ``.grad``.

    ``credit`` says what scored groups are worth. ``between`` is called before each backward pass, with the error that
    its forward ran into or None, and may raise. Groups of more than ``limits.tokens`` are scored, credited and trained
    one after the other; only these have ``Scores.tokens``, as reading the others for scores costs nothing beside
    training. No pass holds more than ``limits.tokens`` padded tokens, unless a single trace does.

    The first ``watched`` groups also get the distribution of their answers' first token
    (:data:`covrl.evaluation.information.FIRST`).

    In a ``world`` of several ranks all of them hold the same ``groups`` and no ``.grad``; each reads its share of the
    groups, and all end with the whole gradient, every group's scores and credit, and the same report.

    Raises:
        NonFiniteError: a score, a credit or a stream's loss is not finite, on any rank; ``.grad`` is then not to be
            used.
    """
    world = world or World()
    every = _rows(algorithm, groups)
    large = [rows for rows in every if padded_tokens(rows.units) > limits.tokens]
    small = [rows for rows in every if padded_tokens(rows.units) <= limits.tokens]
    found = _scored_first(algorithm, models, large, credit, limits, world, watched) if large else {}
    scale, _ = scaled(algorithm, groups)
    passes = _Passes(
        algorithm, models, credit, scale, limits, between, world, watched, losses=dict.fromkeys(scale, 0.0)
    )
    found |= passes.run(small)
    report = passes.report()
    if large:  # which adds up the gradients of ranks
        batch = [found[rows.place] for rows in large]
        made = accumulate_gradient(
            *(algorithm, models, [group for group, _ in batch], [own for _, own in batch], limits),
            between=between,
            world=world,
            batch=groups,
        )
        _add(report, made)
    else:
        parameters = [p for model in models.values() for p in model.parameters()]
        set_grad(parameters, world.summed([p.grad for p in parameters], parameters))
    in_order = [found[place] for place in range(len(groups))]
    return Merged([group for group, _ in in_order], [own for _, own in in_order], report)


def _rows(algorithm: Algorithm, groups: Sequence[ScoredGroup]) -> list[_Rows]:
    made, index = (algorithm.contexts, algorithm.merged), count()
    return [
        _Rows(place, g, tuple(make_unit(next(index), *made, g.problem, rollout) for rollout in g.rollouts))
        for place, g in enumerate(groups)
    ]


def _packs(every: Sequence[_Rows], tokens: int) -> Iterator[list[_Rows]]:
    """Whole groups in order, as many as hold at most ``tokens`` with padding."""
    pack: list[_Rows] = []
    for rows in every:
        if pack and padded_tokens([unit for r in (*pack, rows) for unit in r.units]) > tokens:
            yield pack
            pack = []
        pack.append(rows)
    if pack:
        yield pack


def _scored_first(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    large: Sequence[_Rows],
    credit: Callable[[Sequence[ScoredGroup]], list[list[Credit]]],
    limits: PassLimits,
    world: World,
    watched: int,
) -> Credited:
    """Groups that are too ``large`` for a pass, read without gradients, each rank a share of the traces."""

    def scores(some: Sequence[_Rows], readings: Sequence[Reading]) -> list[Scores]:
        def share(mine: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
            return score(models, algorithm.contexts, readings, mine, limits.tokens, limits.logits_bytes)

        return world.shared(share, [(rows.group.problem, r) for rows in some for r in rows.group.rollouts])

    first = first_reading(algorithm.contexts, algorithm.scoring)
    seen, rest = _split(large, lambda rows: rows.place < watched)
    with world.whole_weights():
        each = iter(scores(seen, (*algorithm.scoring, *first)) + scores(rest, algorithm.scoring))
    scored = [replace(rows.group, scores=tuple(next(each) for _ in rows.group.rollouts)) for rows in (*seen, *rest)]
    credits = zip(scored, credit(scored), strict=True)
    return {rows.place: both for rows, both in zip((*seen, *rest), credits, strict=True)}


def _split(every: Sequence[_Rows], wanted: Callable[[_Rows], bool]) -> tuple[list[_Rows], list[_Rows]]:
    return [rows for rows in every if wanted(rows)], [rows for rows in every if not wanted(rows)]


def _add(report: GradientReport, made: GradientReport) -> None:
    report.losses = {name: value + made.losses[name] for name, value in report.losses.items()}
    report.rows += made.rows
    report.tokens += made.tokens
    report.dropped += made.dropped
    report.passes += made.passes


@dataclass(slots=True)
class _Passes:
    """The passes that score and train at once, on this rank, and what they counted there."""

    algorithm: Algorithm
    models: Mapping[str, LanguageModel]
    credit: Callable[[Sequence[ScoredGroup]], list[list[Credit]]]
    scale: Mapping[str, float]
    limits: PassLimits
    between: Callable[[Exception | None], None]
    world: World
    watched: int
    losses: dict[str, float]
    rows: int = 0
    tokens: int = 0
    dropped: int = 0
    passes: int = 0

    def run(self, small: Sequence[_Rows]) -> Credited:
        """Each rank's share of the groups; what was read of all, and what it is worth."""
        shares = deal([sum(unit.tokens for unit in rows.units) for rows in small], self.world.size)
        packs = [list(_packs([small[i] for i in share], self.limits.tokens)) for share in shares]
        own: Credited = {}
        wrong: Exception | None = None
        with self.world.independent():
            free = self.world.can_raise_alone
            try:
                for pack in packs[self.world.rank]:
                    own |= self._pass(pack)
                if small:  # equally many on all ranks: with sharded weights each takes part in the passes of all
                    spare = min(small, key=lambda rows: (padded_tokens(rows.units), rows.place))
                    for _ in range(max(map(len, packs)) - len(packs[self.world.rank])):
                        self._pass([spare], idle=True)
            except Exception as error:
                if not free:  # agreed with all ranks already, or where they cannot be reached
                    raise
                wrong = error
        self.world.raise_together(wrong)
        return self._of_all(small, shares, own)

    def _of_all(self, small: Sequence[_Rows], shares: Sequence[Sequence[int]], own: Credited) -> Credited:
        """The groups of all ranks: scores travel, and what they are worth is the same everywhere."""
        if self.world.size == 1:
            return own
        mine = [scores for i in shares[self.world.rank] for scores in own[small[i].place][0].scores]
        each = iter(self.world.gathered(mine))
        found: Credited = {}
        for rows in (small[i] for share in shares for i in share):
            group = replace(rows.group, scores=tuple(next(each) for _ in rows.group.rollouts))
            found[rows.place] = own[rows.place] if rows.place in own else (group, self.credit([group])[0])
        return found

    def report(self) -> GradientReport:
        """What all ranks' passes were made of; the number of passes is this rank's own."""
        counts = {"rows": float(self.rows), "tokens": float(self.tokens), "dropped": float(self.dropped)}
        losses = self.world.total(self.losses)
        rows, tokens, dropped = (int(value) for value in self.world.total(counts).values())
        return GradientReport(losses=losses, rows=rows, tokens=tokens, dropped=dropped, passes=self.passes)

    def _pass(self, pack: Sequence[_Rows], idle: bool = False) -> Credited:
        """One forward, what its groups are worth, and the backward; ``idle`` ones are another rank's groups."""
        units = [unit for rows in pack for unit in rows.units]
        self.passes += 1
        failed: Exception | None = None
        terms: dict[str, Tensor] = {}
        found: Credited = {}
        reach: list[Tensor] = []
        try:
            contexts, merged = self.algorithm.contexts, self.algorithm.merged
            seen = {u.index for rows in pack if rows.place < self.watched for u in rows.units}
            first = first_reading(contexts, merged) if seen else ()
            tokens = read(self.models, contexts, (*merged, *first), units, self.limits.logits_bytes)
            values = _by_unit(self.algorithm.scoring, tokens)
            for index, found_first in _by_unit(first, tokens).items():
                if index in seen:
                    values[index] |= found_first
            scored = [replace(r.group, scores=tuple(Scores(values.get(u.index, {})) for u in r.units)) for r in pack]
            credits = self.credit(scored)
            found = {r.place: both for r, both in zip(pack, zip(scored, credits, strict=True), strict=True)}
            terms, reach = self._terms(tokens, _trained(units, scored, credits), idle)
        except NonFiniteError as error:  # found behind the forward, so all ranks can leave together
            if self.world.can_raise_alone:
                raise
            failed = error
        except Exception as error:
            if self.world.can_raise_alone or self.world.broke_off(error):
                raise
            failed = MemoryError(str(error) or type(error).__name__)
        if terms or failed or self.world.sharded:
            self.between(failed)
        if terms or reach:
            sum([*terms.values(), *reach], torch.zeros(())).backward()
        return found

    def _terms(
        self, tokens: Tokens, every: Mapping[int, Trained], idle: bool
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The streams' parts of the loss, of all traces of a pass, and with shards what reaches every weight.

        Empty where no trace has weight.
        """
        streams = [s for s in self.algorithm.streams if s.name in self.scale]
        weighing = {i: t for i, t in every.items() if t.trace.rollout.request.trains and has_weight(t.credit, streams)}
        if not idle:
            self.rows += sum(len(t.unit.rows) for t in every.values())
            self.tokens += sum(t.unit.tokens for t in every.values())
            self.dropped += len(every) - len(weighing)
        if not weighing and not self.world.sharded:
            return {}, []
        losses = token_losses(self.algorithm, tokens, weighing, streams, self.algorithm.merged)
        # with shards every backward pass has to reach every weight, as on the other ranks
        reach = [0.0 * part.sum() for part in losses.values()] if self.world.sharded else []
        if idle or not weighing:
            return {}, reach
        terms = {name: factor * losses[name].sum() for name, factor in self.scale.items()}
        for name, term in terms.items():
            self.losses[name] += float(term.detach())
        wrong = check_finite(terms, losses, tokens.owner, streams, every)
        if wrong:
            raise wrong
        return terms, reach


def _trained(
    units: Sequence[Unit], scored: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]
) -> dict[int, Trained]:
    """All traces of a pack's groups, by the number of their unit."""
    traces = [(g.problem, *pair) for g in scored for pair in zip(g.rollouts, g.scores, strict=True)]
    owned = [own for row in credits for own in row]
    return {
        unit.index: Trained(unit, OffendingRollout(*trace, own), own)
        for unit, trace, own in zip(units, traces, owned, strict=True)
    }


def _by_unit(readings: Sequence[Reading], tokens: Tokens) -> dict[int, dict[Output, torch.Tensor]]:
    """What ``readings`` gave, without gradient, by unit."""
    found: dict[int, dict[Output, torch.Tensor]] = {}
    for output in (Output(r.span, name) for r in readings for name in r.outputs):
        sizes = tokens.lengths[output.span]
        for (index, _), part in zip(sizes, tokens.values[output].detach().split([n for _, n in sizes]), strict=True):
            found.setdefault(index, {})[output] = part
    return found
