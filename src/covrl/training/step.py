"""From credited groups to a gradient: pack, loss, streams, denominators. Knows no method.

    gradient = Σ_streams coefficient × ∇ Σ_tokens weight × loss / denominator

The denominators cover the admitted batch of all ranks and are known before the first forward, so the gradient does
not depend on how rows are packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from covrl.algorithms.base import Algorithm, LossTokens, Stream
from covrl.errors import NonFiniteError
from covrl.records import Credit, Output, ScoredGroup
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import Reading, Tokens, Unit, make_packs, make_unit, read
from covrl.training.bundle import Culprit
from covrl.training.parallel import Solo, deal


@dataclass(frozen=True, slots=True)
class PassLimits:
    """Bounds on one forward and backward pass: padded tokens, and bytes of logits held at once."""

    tokens: int
    logits_bytes: int


@dataclass(slots=True)
class GradientReport:
    """What a gradient was made of.

    ``losses[stream]`` include coefficient and denominator, so that they add up to the loss; ``norms[stream]`` are
    filled when measured. ``rows`` of together ``tokens`` went through the model; ``dropped`` traces had no weight;
    ``passes`` were made.
    """

    losses: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    dropped: int = 0
    passes: int = 0


@dataclass(frozen=True, slots=True)
class _Trained:
    """One trace that has weight: its rows, and what it and its credit are."""

    unit: Unit
    trace: Culprit
    credit: Credit


def accumulate_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
    measure_streams: bool = False,
    between: Callable[[], None] = lambda: None,
    world: Solo | None = None,
) -> GradientReport:
    """Add the gradient of the admitted ``groups`` to the parameters' ``.grad``.

    Traces whose every weight in every stream is zero take part in the denominators only: no forward is spent on
    them. With ``measure_streams`` each stream has a backward pass of its own, to report its gradient's norm.
    In a ``world`` of several ranks all of them hold the same ``groups`` and no ``.grad``; each goes through its share
    of the traces, and all end with the whole gradient and the same report.
    ``between`` is called before each backward pass and may raise to end it all.

    Raises:
        NonFiniteError: a stream's loss is NaN or infinite here or in another process; raised after all passes, so
            that every process makes as many. ``.grad`` is then not to be used.
    """
    scale, streams = _scaled(algorithm, groups)
    trained = _with_weight(algorithm, groups, credits, streams)
    report = GradientReport(losses=dict.fromkeys(scale, 0.0))
    report.rows = sum(len(t.unit.rows) for t in trained.values())
    report.tokens = sum(t.unit.tokens for t in trained.values())
    report.dropped = sum(len(g.rollouts) for g in groups) - len(trained)
    parameters = [p for m in models.values() for p in m.parameters()]
    world = world or Solo()
    passes = _Passes(algorithm, models, streams, scale, limits, world, trained, parameters, between)
    collected: dict[str, list[Tensor | None]] = {}
    if not measure_streams:
        passes.run(list(scale), report)
        _set_grad(parameters, world.summed([p.grad for p in parameters], parameters))
    elif world.sharded:  # gradients of shards come with the backward pass alone, so each stream has its own passes
        for name in scale:
            passes.run([name], report)
            collected[name] = [p.grad for p in parameters]
            _set_grad(parameters, [None] * len(parameters))
    else:
        passes.run(list(scale), report, collected)
    report.losses = world.total(report.losses)
    for name in world.union(list(collected)):
        gradient = world.summed(collected.get(name, [None] * len(parameters)), parameters)
        report.norms[name] = world.norm(gradient)
        _add_to_grad(parameters, gradient)
    return report


@dataclass(frozen=True, slots=True)
class _Passes:
    """The forward and backward passes of one update, on this rank."""

    algorithm: Algorithm
    models: Mapping[str, LanguageModel]
    streams: Sequence[Stream]
    scale: Mapping[str, float]
    limits: PassLimits
    world: Solo
    trained: Mapping[int, _Trained]
    parameters: Sequence[nn.Parameter]
    between: Callable[[], None]

    def run(
        self,
        wanted: Sequence[str],
        report: GradientReport,
        collected: dict[str, list[Tensor | None]] | None = None,
    ) -> None:
        """Gradients of the streams ``wanted``, into ``.grad`` or, apart, into ``collected``.

        What is not finite on one rank is raised on all, after their last pass.
        """
        wrong: NonFiniteError | None = None
        for pack, idle in _packs_of_rank([t.unit for t in self.trained.values()], self.limits, self.world):
            report.passes += 1
            mine = {unit.index: self.trained[unit.index] for unit in pack}
            losses, owner = _token_losses(self.algorithm, self.models, pack, mine, self.streams, self.limits)
            terms = {name: (0.0 if idle else self.scale[name]) * losses[name].sum() for name in wanted}
            for name, term in terms.items():
                report.losses[name] += float(term.detach())
            wanted_streams = [s for s in self.streams if s.name in terms]
            wrong = wrong or _check_finite(terms, losses, owner, wanted_streams, mine)
            self.between()
            if collected is not None:
                _collect(terms, self.parameters, collected, self.between)
                continue
            # with shards every backward pass has to reach every weight, as on the other ranks
            reach = [0.0 * part.sum() for part in losses.values()] if self.world.sharded else []
            sum([*terms.values(), *reach], torch.zeros(())).backward()
        self.world.settle(wrong)


def _packs_of_rank(units: Sequence[Unit], limits: PassLimits, world: Solo) -> Iterator[tuple[list[Unit], bool]]:
    """The packs that this rank goes through, all of them in a world of one, and whether one is idle (has no weight).

    Ranks with sharded weights go through equally many, as each takes part in the passes of all. Their idle packs are
    the shortest unit of the batch.
    """
    shares = deal([unit.tokens for unit in units], world.size)
    packs = [list(make_packs([units[i] for i in share], limits.tokens)) for share in shares]
    yield from ((pack, False) for pack in packs[world.rank])
    if world.sharded and units:
        spare = min(units, key=lambda u: (u.tokens, u.index))
        yield from (([spare], True) for _ in range(max(map(len, packs)) - len(packs[world.rank])))


def gradient_error(
    norm: float,
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
    search: bool,
) -> NonFiniteError:
    """What to say of a gradient whose ``norm`` is not finite: the stream and trace it comes from.

    ``search`` makes a pass a trace to find them, which several processes would have to make together. All traces
    are kept where it is not made or none of them is at fault alone.
    """
    found = _bad_gradient(algorithm, models, groups, credits, limits) if search else None
    if found is not None:
        stream, trace = found
        return NonFiniteError(f"the gradient's norm is {norm}, from the {stream} loss at {trace.name}", [trace])
    traces = [
        Culprit(group.problem, *trace)
        for group, row in zip(groups, credits, strict=True)
        for trace in zip(group.rollouts, group.scores, row, strict=True)
    ]
    why = "no trace's is so alone" if search else "with several processes the trace is not looked for"
    return NonFiniteError(f"the gradient's norm is {norm} ({why})", traces)


def _bad_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
) -> tuple[str, Culprit] | None:
    """The first (stream, trace) whose gradient by itself is not finite."""
    scale, streams = _scaled(algorithm, groups)
    parameters = [p for m in models.values() for p in m.parameters()]
    for index, one in _with_weight(algorithm, groups, credits, streams).items():
        losses, _ = _token_losses(algorithm, models, [one.unit], {index: one}, streams, limits)
        collected: dict[str, list[Tensor | None]] = {}
        _collect({name: scale[name] * part.sum() for name, part in losses.items()}, parameters, collected)
        for name, gradient in collected.items():
            if not all(bool(torch.isfinite(part).all()) for part in gradient if part is not None):
                return name, one.trace
    return None


def _scaled(algorithm: Algorithm, groups: Sequence[ScoredGroup]) -> tuple[dict[str, float], list[Stream]]:
    """coefficient / denominator of each stream that is not switched off, and these streams."""
    streams = [s for s in algorithm.streams if s.coefficient != 0]
    return {s.name: s.coefficient / max(s.denominator(groups), 1.0) for s in streams}, streams


def _with_weight(
    algorithm: Algorithm,
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    streams: Sequence[Stream],
) -> dict[int, _Trained]:
    trained: dict[int, _Trained] = {}
    pairs = [
        (group.problem, *trace)
        for group, row in zip(groups, credits, strict=True)
        for trace in zip(group.rollouts, group.scores, row, strict=True)
    ]
    for index, (problem, rollout, scores, credit) in enumerate(pairs):
        weights = [credit.weights[s.name] for s in streams if s.name in credit.weights]
        if rollout.request.trains and any(bool(w.any()) for w in weights):
            unit = make_unit(index, algorithm.contexts, algorithm.training, problem, rollout)
            trained[index] = _Trained(unit, Culprit(problem, rollout, scores, credit), credit)
    return trained


def _token_losses(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    pack: Sequence[Unit],
    trained: Mapping[int, _Trained],
    streams: Sequence[Stream],
    limits: PassLimits,
) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
    """Each stream's weighted loss of each token in one pack, ``[N]`` with gradient, and the tokens' units by span."""
    tokens = read(models, algorithm.contexts, algorithm.training, pack, limits.logits_bytes)
    view = _loss_tokens(tokens, trained, streams, algorithm.training)
    losses = algorithm.loss(view)
    return {s.name: view.weight[s.name] * losses[s.name] for s in streams}, tokens.owner


def _loss_tokens(
    tokens: Tokens, trained: Mapping[int, _Trained], streams: Sequence[Stream], readings: Sequence[Reading]
) -> LossTokens:
    """Old scores, constants and weights of the pack's units, laid out as the new values are."""
    like = {r.span: tokens.values[Output(r.span, r.outputs[0])] for r in readings}

    def flat(span: str, part: dict[int, Tensor]) -> Tensor:
        pieces = [part[i].to(like[span]) if i in part else like[span].new_zeros(n) for i, n in tokens.lengths[span]]
        return torch.cat(pieces) if pieces else like[span].detach()

    old: dict[Output, Tensor] = {}
    known = {i: {**t.trace.scores.values, **t.credit.constants} for i, t in trained.items()}
    for output in {o for values in known.values() for o in values if o.span in like}:
        old[output] = flat(output.span, {i: v[output] for i, v in known.items() if output in v})
    weight = {
        s.name: flat(s.span, {i: t.credit.weights[s.name] for i, t in trained.items() if s.name in t.credit.weights})
        for s in streams
    }
    return LossTokens(tokens.values, old, weight, tokens.owner)


def _check_finite(
    terms: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
    owner: Mapping[str, Tensor],
    streams: Sequence[Stream],
    trained: Mapping[int, _Trained],
) -> NonFiniteError | None:
    """What is wrong in a pack: the first stream whose sum is not finite, and the trace of its first bad token.

    Where only the sum overflows, that is the trace of the largest.
    """
    for stream in streams:
        value = float(terms[stream.name].detach())
        if math.isfinite(value):
            continue
        each = losses[stream.name].detach()
        bad = ~torch.isfinite(each)
        token = int(bad.nonzero()[0]) if bool(bad.any()) else int(each.abs().argmax())
        trace = trained[int(owner[stream.span][token])].trace
        return NonFiniteError(f"the {stream.name} loss is {value} at {trace.name}", [trace])
    return None


def _collect(
    terms: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    collected: dict[str, list[Tensor | None]],
    between: Callable[[], None] = lambda: None,
) -> None:
    """Each stream's gradient by a backward pass of its own, added up over packs."""
    for name, term in terms.items():
        if not term.requires_grad:
            continue
        between()
        gradient = torch.autograd.grad(term, list(parameters), retain_graph=True, allow_unused=True)
        total = collected.setdefault(name, [None] * len(parameters))
        for i, part in enumerate(gradient):
            before = total[i]
            total[i] = part if before is None or part is None else before + part
            if part is None:
                total[i] = before


def _set_grad(parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor | None]) -> None:
    for parameter, part in zip(parameters, gradient, strict=True):
        parameter.grad = part


def _add_to_grad(parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor | None]) -> None:
    for parameter, part in zip(parameters, gradient, strict=True):
        if part is not None:
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part
