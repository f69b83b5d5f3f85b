"""Groups that are scored in their training forward: read once with gradients, credited in between.

    for each pack of whole groups:  forward -> scores (detached) -> credit -> loss -> backward

The gradient is that of scoring first and training then, since on policy old and new log-probs are the same numbers; a
forward of every row is saved. It needs credit that looks at one group, and an admission and denominators that look at
rollouts alone (:attr:`covrl.algorithms.base.Algorithm.merged`). Rows whose trace turns out to have no weight have been
read by then, as for scores they have to be.

A group is credited when all its rows are read, and their activations are held until then. One whose rows are more than
a pass may hold is therefore scored first and trained then, in packs of traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch

from covrl.algorithms.base import Algorithm
from covrl.records import Credit, Output, ScoredGroup, Scores
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import Tokens, Unit, make_unit, padded_tokens, read, score
from covrl.training.bundle import Culprit
from covrl.training.step import (
    GradientReport,
    PassLimits,
    Trained,
    accumulate_gradient,
    check_finite,
    has_weight,
    scaled,
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
) -> Merged:
    """Add the gradient of admitted ``groups``, which have no scores yet, to the parameters' ``.grad``.

    ``credit`` says what scored groups are worth. ``between`` is called before each backward pass and may raise. Groups
    of more than ``limits.tokens`` are scored, credited and trained one after the other; only these have
    ``Scores.tokens``, as reading the others for scores costs nothing beside training. No pass holds more than
    ``limits.tokens`` padded tokens, unless a single trace does.

    Raises:
        NonFiniteError: a score, a credit or a stream's loss is not finite; ``.grad`` is then not to be used.
    """
    scale, _ = scaled(algorithm, groups)
    report = GradientReport(losses=dict.fromkeys(scale, 0.0))
    found: Credited = {}
    every = _rows(algorithm, groups)
    for pack in _packs([rows for rows in every if padded_tokens(rows.units) <= limits.tokens], limits.tokens):
        units = [unit for rows in pack for unit in rows.units]
        tokens = read(models, algorithm.contexts, algorithm.merged, units, limits.logits_bytes)
        values = _by_unit(algorithm, tokens)
        scored = [replace(r.group, scores=tuple(Scores(values.get(u.index, {})) for u in r.units)) for r in pack]
        credits = credit(scored)
        found |= {r.place: both for r, both in zip(pack, zip(scored, credits, strict=True), strict=True)}
        _backward(algorithm, tokens, _trained(units, scored, credits), scale, report, between)
    large = [rows for rows in every if padded_tokens(rows.units) > limits.tokens]
    if large:
        found |= _one_after_the_other(algorithm, models, groups, large, credit, limits, between, report)
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


def _trained(
    units: Sequence[Unit], scored: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]
) -> dict[int, Trained]:
    """All traces of a pack's groups, by the number of their unit."""
    traces = [(g.problem, *pair) for g in scored for pair in zip(g.rollouts, g.scores, strict=True)]
    owned = [own for row in credits for own in row]
    return {
        unit.index: Trained(unit, Culprit(*trace, own), own)
        for unit, trace, own in zip(units, traces, owned, strict=True)
    }


def _one_after_the_other(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    large: Sequence[_Rows],
    credit: Callable[[Sequence[ScoredGroup]], list[list[Credit]]],
    limits: PassLimits,
    between: Callable[[Exception | None], None],
    report: GradientReport,
) -> Credited:
    """The gradient of those of ``groups`` that are too ``large`` for a pass, scored first; adds to ``report``."""
    pairs = [(rows.group.problem, rollout) for rows in large for rollout in rows.group.rollouts]
    each = iter(score(models, algorithm.contexts, algorithm.scoring, pairs, limits.tokens, limits.logits_bytes))
    scored = [replace(rows.group, scores=tuple(next(each) for _ in rows.group.rollouts)) for rows in large]
    credits = credit(scored)
    made = accumulate_gradient(algorithm, models, scored, credits, limits, between=between, batch=groups)
    report.losses = {name: value + made.losses[name] for name, value in report.losses.items()}
    report.rows += made.rows
    report.tokens += made.tokens
    report.dropped += made.dropped
    report.passes += made.passes
    return {rows.place: both for rows, both in zip(large, zip(scored, credits, strict=True), strict=True)}


def _by_unit(algorithm: Algorithm, tokens: Tokens) -> dict[int, dict[Output, torch.Tensor]]:
    """What scoring reads, without gradient, by unit."""
    found: dict[int, dict[Output, torch.Tensor]] = {}
    for output in (Output(r.span, name) for r in algorithm.scoring for name in r.outputs):
        sizes = tokens.lengths[output.span]
        for (index, _), part in zip(sizes, tokens.values[output].detach().split([n for _, n in sizes]), strict=True):
            found.setdefault(index, {})[output] = part
    return found


def _backward(
    algorithm: Algorithm,
    tokens: Tokens,
    every: Mapping[int, Trained],
    scale: Mapping[str, float],
    report: GradientReport,
    between: Callable[[Exception | None], None],
) -> None:
    """The losses of one pack, of which ``every`` is all traces, and its backward pass; none without any weight."""
    streams = [s for s in algorithm.streams if s.name in scale]
    weighing = {i: t for i, t in every.items() if t.trace.rollout.request.trains and has_weight(t.credit, streams)}
    report.passes += 1
    report.rows += sum(len(t.unit.rows) for t in every.values())
    report.tokens += sum(t.unit.tokens for t in every.values())
    report.dropped += len(every) - len(weighing)
    if not weighing:
        return
    losses = token_losses(algorithm, tokens, weighing, streams, algorithm.merged)
    terms = {name: scale[name] * losses[name].sum() for name in scale}
    for name, term in terms.items():
        report.losses[name] += float(term.detach())
    wrong = check_finite(terms, losses, tokens.owner, streams, every)
    if wrong:
        raise wrong
    between(None)
    sum(terms.values(), torch.zeros(())).backward()
