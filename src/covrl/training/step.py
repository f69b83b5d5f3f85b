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
from covrl.distributed.world import World, deal, local_part
from covrl.errors import NonFiniteError
from covrl.records import Credit, OffendingRollout, Output, ScoredGroup
from covrl.scoring.model import LanguageModel
from covrl.scoring.pack import PassLimits, Reading, Tokens, Unit, make_packs, make_unit, read


@dataclass(slots=True)
class GradientReport:
    """What a gradient was made of.

    ``losses[stream]`` include coefficient and denominator, so that they add up to the loss; ``norms[stream]`` are
    filled when measured. ``rows`` of together ``tokens`` went through the model; ``dropped`` traces had no weight;
    ``passes`` were made. ``late[i]`` are the late readings' values of trace i of those with weight, by output.
    """

    losses: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    dropped: int = 0
    passes: int = 0
    late: dict[int, dict[Output, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trained:
    """One trace that has weight: its rows, and what it and its credit are."""

    unit: Unit
    trace: OffendingRollout
    credit: Credit


def accumulate_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
    measure_streams: bool = False,
    between: Callable[[Exception | None], None] | None = None,
    world: World | None = None,
    late: Sequence[Reading] = (),
    batch: Sequence[ScoredGroup] | None = None,
) -> GradientReport:
    """Add the gradient of the admitted ``groups`` to the parameters' ``.grad``.

    Traces whose every weight in every stream is zero take part in the denominators only: no forward is spent on
    them. With ``measure_streams`` each stream has a backward pass of its own, to report its gradient's norm.
    In a ``world`` of several ranks all of them hold the same ``groups`` and no ``.grad``; each goes through its share
    of the traces, and all end with the whole gradient and the same report.
    ``late`` are readings that were not scored, as this is the first update since the rollouts: their old values are
    the new ones as constants, and the report has them. Denominators cover the ``batch``, of which ``groups`` may be a
    part.
    ``between`` is called before each backward pass, with the error that its forward ran into or None, and may raise
    to end it all; on ranks with sharded weights it has to raise on all of them or none.

    Raises:
        NonFiniteError: a stream's loss is NaN or infinite here or in another process; raised after all passes, so
            that every process makes as many. ``.grad`` is then not to be used.
    """
    scale, streams = scaled(algorithm, groups if batch is None else batch)
    readings = with_late(algorithm.training, late)
    trained = _with_weight(algorithm, readings, groups, credits, streams)
    report = GradientReport(losses=dict.fromkeys(scale, 0.0))
    report.rows = sum(len(t.unit.rows) for t in trained.values())
    report.tokens = sum(t.unit.tokens for t in trained.values())
    report.dropped = sum(len(g.rollouts) for g in groups) - len(trained)
    parameters = [p for m in models.values() for p in m.parameters()]
    world = world or World()
    between = between or (lambda error: _raise_together(world, error))
    passes = _Passes(algorithm, readings, late, models, streams, scale, limits, world, trained, parameters, between)
    collected: dict[str, list[Tensor | None]] = {}
    if not measure_streams:
        passes.run(list(scale), report)
        set_grad(parameters, world.summed([p.grad for p in parameters], parameters))
    elif world.sharded:  # gradients of shards come with the backward pass alone, so each stream has its own passes
        for name in scale:
            passes.run([name], report)
            collected[name] = [p.grad for p in parameters]
            set_grad(parameters, [None] * len(parameters))
    else:
        passes.run(list(scale), report, collected)
    report.losses = world.total(report.losses)
    for name in world.union(list(collected)):
        gradient = world.summed(collected.pop(name, [None] * len(parameters)), parameters)
        report.norms[name] = world.norm(gradient)
        _add_to_grad(parameters, gradient)
    return report


def _raise_together(world: World, error: Exception | None) -> None:
    world.agree(error, asked=False)


@dataclass(frozen=True, slots=True)
class _Passes:
    """The forward and backward passes of one update, on this rank."""

    algorithm: Algorithm
    readings: Sequence[Reading]
    late: Sequence[Reading]
    models: Mapping[str, LanguageModel]
    streams: Sequence[Stream]
    scale: Mapping[str, float]
    limits: PassLimits
    world: World
    trained: Mapping[int, Trained]
    parameters: Sequence[nn.Parameter]
    between: Callable[[Exception | None], None]

    def run(
        self,
        wanted: Sequence[str],
        report: GradientReport,
        collected: dict[str, list[Tensor | None]] | None = None,
    ) -> None:
        """Gradients of the streams ``wanted``, into ``.grad`` or, apart, into ``collected``.

        What is not finite on one rank is raised on all, after their last pass; what else ends a rank's passes, too.
        """
        wrong: Exception | None = None
        with self.world.independent():
            free = self.world.can_raise_alone
            try:
                for pack, idle in _packs_of_rank([t.unit for t in self.trained.values()], self.limits, self.world):
                    report.passes += 1
                    found = self._pass(pack, idle, wanted, report, collected)
                    wrong = wrong or found
            except Exception as error:
                if not free:  # agreed with all ranks already, or where they cannot be reached
                    raise
                wrong = error
        self.world.raise_together(wrong)

    def _pass(
        self,
        pack: Sequence[Unit],
        idle: bool,
        wanted: Sequence[str],
        report: GradientReport,
        collected: dict[str, list[Tensor | None]] | None,
    ) -> NonFiniteError | None:
        """One forward and backward; what is not finite in it."""
        mine = {unit.index: self.trained[unit.index] for unit in pack}
        failed: Exception | None = None
        losses, owner = {}, {}
        try:
            tokens = read(self.models, self.algorithm.contexts, self.readings, pack, self.limits.logits_bytes)
            losses, owner = token_losses(self.algorithm, tokens, mine, self.streams, self.late), tokens.owner
            if not idle:
                _collect_late(tokens, self.late, report.late)
        except Exception as error:
            if self.world.can_raise_alone or self.world.broke_off(error):
                raise
            failed = MemoryError(str(error) or type(error).__name__)
        self.between(failed)
        terms = {name: (0.0 if idle else self.scale[name]) * losses[name].sum() for name in wanted}
        for name, term in terms.items():
            report.losses[name] += float(term.detach())
        wrong = check_finite(terms, losses, owner, [s for s in self.streams if s.name in terms], mine)
        if collected is not None:
            _collect(terms, self.parameters, collected, self.between)
            return wrong
        # with shards every backward pass has to reach every weight, as on the other ranks
        reach = [0.0 * part.sum() for part in losses.values()] if self.world.sharded else []
        sum([*terms.values(), *reach], torch.zeros(())).backward()
        return wrong


def _packs_of_rank(units: Sequence[Unit], limits: PassLimits, world: World) -> Iterator[tuple[list[Unit], bool]]:
    """The packs that this rank goes through, all of them in a world of one, and whether one is idle (has no weight).

    All ranks go through equally many: with sharded weights each takes part in the passes of all. Idle packs are the
    shortest unit of the batch.
    """
    shares = deal([unit.tokens for unit in units], world.size)
    packs = [list(make_packs([units[i] for i in share], limits.tokens)) for share in shares]
    yield from ((pack, False) for pack in packs[world.rank])
    if units:
        spare = min(units, key=lambda u: (u.tokens, u.index))
        yield from (([spare], True) for _ in range(max(map(len, packs)) - len(packs[world.rank])))


def gradient_error(
    norm: float,
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
    world: World,
    late: Sequence[Reading] = (),
) -> NonFiniteError:
    """What to say of a gradient whose ``norm`` is not finite: the stream and trace it comes from.

    Finding them takes a pass for each trace and stream, which all ranks make together. All traces are kept where none
    of them is at fault alone.
    """
    found = _bad_gradient(algorithm, models, groups, credits, limits, world, late)
    if found is not None:
        stream, trace = found
        return NonFiniteError(f"the gradient's norm is {norm}, from the {stream} loss at {trace.name}", [trace])
    traces = [
        OffendingRollout(group.problem, *trace)
        for group, row in zip(groups, credits, strict=True)
        for trace in zip(group.rollouts, group.scores, row, strict=True)
    ]
    return NonFiniteError(f"the gradient's norm is {norm} (no trace's is so alone)", traces)


def _bad_gradient(
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
    world: World,
    late: Sequence[Reading],
) -> tuple[str, OffendingRollout] | None:
    """The first (stream, trace) whose gradient by itself is not finite; ``.grad`` is empty afterwards."""
    scale, streams = scaled(algorithm, groups)
    readings = with_late(algorithm.training, late)
    parameters = [p for m in models.values() for p in m.parameters()]
    for index, one in _with_weight(algorithm, readings, groups, credits, streams).items():
        for name, factor in scale.items():
            tokens = read(models, algorithm.contexts, readings, [one.unit], limits.logits_bytes)
            losses = token_losses(algorithm, tokens, {index: one}, streams, late)
            reach = [0.0 * part.sum() for part in losses.values()] if world.sharded else []
            term = sum([factor * losses[name].sum(), *reach], torch.zeros(()))
            if not term.requires_grad:  # the trace has no part in this stream
                continue
            term.backward()
            finite = all(bool(torch.isfinite(local_part(p.grad)).all()) for p in parameters if p.grad is not None)
            set_grad(parameters, [None] * len(parameters))
            if world.any(not finite):
                return name, one.trace
    return None


def scaled(algorithm: Algorithm, groups: Sequence[ScoredGroup]) -> tuple[dict[str, float], list[Stream]]:
    """coefficient / denominator of each stream that is not switched off, and these streams."""
    streams = [s for s in algorithm.streams if s.coefficient != 0]
    return {s.name: s.coefficient / max(s.denominator(groups), 1.0) for s in streams}, streams


def with_late(training: Sequence[Reading], late: Sequence[Reading]) -> tuple[Reading, ...]:
    """The readings of a training forward that gives the ``late`` ones too.

    One that reads the same span in the same contexts takes the place of a training reading that gives less.
    """
    readings = list(training)
    for wanted in late:
        given = {(r.span, name) for r in readings for name in r.outputs}
        if given >= {(wanted.span, name) for name in wanted.outputs}:
            continue
        same = [
            i
            for i, r in enumerate(readings)
            if (r.span, r.contexts) == (wanted.span, wanted.contexts) and set(r.outputs) <= set(wanted.outputs)
        ]
        readings[slice(same[0], same[0] + 1) if same else slice(len(readings), None)] = [wanted]
    return tuple(readings)


def _with_weight(
    algorithm: Algorithm,
    readings: Sequence[Reading],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    streams: Sequence[Stream],
) -> dict[int, Trained]:
    trained: dict[int, Trained] = {}
    pairs = [
        (group.problem, *trace)
        for group, row in zip(groups, credits, strict=True)
        for trace in zip(group.rollouts, group.scores, row, strict=True)
    ]
    for index, (problem, rollout, scores, credit) in enumerate(pairs):
        if rollout.request.trains and has_weight(credit, streams):
            unit = make_unit(index, algorithm.contexts, readings, problem, rollout)
            trained[index] = Trained(unit, OffendingRollout(problem, rollout, scores, credit), credit)
    return trained


def has_weight(credit: Credit, streams: Sequence[Stream]) -> bool:
    """Whether any token has weight in any of the streams."""
    return any(bool(credit.weights[s.name].any()) for s in streams if s.name in credit.weights)


def token_losses(
    algorithm: Algorithm,
    tokens: Tokens,
    trained: Mapping[int, Trained],
    streams: Sequence[Stream],
    late: Sequence[Reading],
) -> dict[str, Tensor]:
    """Each stream's weighted loss of each token of one pack, ``[N]`` with gradient."""
    view = _loss_tokens(tokens, trained, streams, late)
    losses = algorithm.loss(view)
    return {s.name: view.weight[s.name] * losses[s.name] for s in streams}


def _loss_tokens(
    tokens: Tokens, trained: Mapping[int, Trained], streams: Sequence[Stream], late: Sequence[Reading]
) -> LossTokens:
    """Old scores, constants and weights of the pack's units, laid out as the new values are."""
    like = {output.span: values for output, values in tokens.values.items()}

    def flat(span: str, part: dict[int, Tensor]) -> Tensor:
        some = next(iter(part.values()), like[span].detach())  # where they are, and only then to the device, at once
        pieces = [part[i] if i in part else some.new_zeros(n) for i, n in tokens.lengths[span]]
        return torch.cat(pieces).to(like[span]) if pieces else like[span].detach()

    old = {output: tokens.values[output].detach() for output in _outputs(late)}
    known = {i: {**t.trace.scores.values, **t.credit.constants} for i, t in trained.items()}
    trained_on = {s.span for s in streams}
    for output in {o for values in known.values() for o in values if o.span in like and o.span in trained_on}:
        old[output] = flat(output.span, {i: v[output] for i, v in known.items() if output in v})
    weight = {
        s.name: flat(s.span, {i: t.credit.weights[s.name] for i, t in trained.items() if s.name in t.credit.weights})
        for s in streams
    }
    return LossTokens(tokens.values, old, weight, tokens.owner)


def _outputs(readings: Sequence[Reading]) -> list[Output]:
    return [Output(r.span, name) for r in readings for name in r.outputs]


def _collect_late(tokens: Tokens, late: Sequence[Reading], found: dict[int, dict[Output, Tensor]]) -> None:
    """Add the pack's late values to ``found``, trace by trace."""
    for output in _outputs(late):
        sizes = tokens.lengths[output.span]
        for (index, _), part in zip(sizes, tokens.values[output].detach().split([n for _, n in sizes]), strict=True):
            found.setdefault(index, {})[output] = part


def check_finite(
    terms: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
    owner: Mapping[str, Tensor],
    streams: Sequence[Stream],
    trained: Mapping[int, Trained],
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
    between: Callable[[Exception | None], None],
) -> None:
    """Each stream's gradient by a backward pass of its own, added up over packs; ``.grad`` is empty afterwards.

    Each pass adds to what its stream has: a whole gradient beside it would be one more of the model's size.
    """
    learned = [(name, term) for name, term in terms.items() if term.requires_grad]
    for place, (name, term) in enumerate(learned, start=1):
        between(None)
        set_grad(parameters, collected.get(name, [None] * len(parameters)))
        term.backward(retain_graph=place < len(learned))
        collected[name] = [p.grad for p in parameters]
        set_grad(parameters, [None] * len(parameters))


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
