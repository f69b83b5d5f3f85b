"""Groups that are scored in their training forward: read once with gradients, credited in between.

    for each pack of whole groups:  forward -> scores (detached) -> credit -> loss -> backward

The gradient is that of scoring first and training then, since on policy old and new log-probs are the same numbers; a
forward of every row is saved. It needs credit that looks at one group, and an admission and denominators that look at
rollouts alone (:attr:`covrl.algorithms.base.Algorithm.merged`). Rows whose trace turns out to have no weight have been
read by then, as for scores they have to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from covrl.algorithms.base import Algorithm
from covrl.records import Credit, Output, ScoredGroup, Scores
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import Tokens, Unit, make_unit, padded_tokens, read
from covrl.training.bundle import Culprit
from covrl.training.step import GradientReport, PassLimits, Trained, check_finite, has_weight, scaled, token_losses


@dataclass(frozen=True, slots=True)
class Merged:
    """The groups with their scores, what they are worth, and what the gradient was made of."""

    groups: list[ScoredGroup]
    credits: list[list[Credit]]
    report: GradientReport


@dataclass(frozen=True, slots=True)
class _Rows:
    """A group and a unit for each of its traces."""

    group: ScoredGroup
    units: tuple[Unit, ...]


def merged_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credit: Callable[[Sequence[ScoredGroup]], list[list[Credit]]],
    limits: PassLimits,
    between: Callable[[Exception | None], None],
) -> Merged:
    """Add the gradient of admitted ``groups``, which have no scores yet, to the parameters' ``.grad``.

    ``credit`` says what scored groups are worth. ``between`` is called before each backward pass and may raise. A
    group whose rows are more than ``limits.tokens`` makes a pass of its own.

    Raises:
        NonFiniteError: a score, a credit or a stream's loss is not finite; ``.grad`` is then not to be used.
    """
    scale, _ = scaled(algorithm, groups)
    found = Merged([], [], GradientReport(losses=dict.fromkeys(scale, 0.0)))
    for pack in _packs(algorithm, groups, limits.tokens):
        units = [unit for rows in pack for unit in rows.units]
        tokens = read(models, algorithm.contexts, algorithm.merged, units, limits.logits_bytes)
        values = _by_unit(algorithm, tokens)
        scored = [replace(r.group, scores=tuple(Scores(values.get(u.index, {})) for u in r.units)) for r in pack]
        credits = credit(scored)
        found.groups.extend(scored)
        found.credits.extend(credits)
        traces = zip(
            units,
            [
                (g.problem, rollout, scores)
                for g in scored
                for rollout, scores in zip(g.rollouts, g.scores, strict=True)
            ],
            [own for row in credits for own in row],
            strict=True,
        )
        every = {unit.index: Trained(unit, Culprit(*trace, own), own) for unit, trace, own in traces}
        _backward(algorithm, tokens, every, scale, found.report, between)
    return found


def _packs(algorithm: Algorithm, groups: Sequence[ScoredGroup], tokens: int) -> Iterator[list[_Rows]]:
    """Whole groups in order, as many as hold at most ``tokens`` with padding; a larger one comes alone."""
    pack: list[_Rows] = []
    index = 0
    for group in groups:
        made = (algorithm.contexts, algorithm.merged, group.problem)
        units = tuple(make_unit(index + i, *made, rollout) for i, rollout in enumerate(group.rollouts))
        index += len(units)
        if pack and padded_tokens([u for rows in pack for u in rows.units] + [*units]) > tokens:
            yield pack
            pack = []
        pack.append(_Rows(group, units))
    if pack:
        yield pack


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
