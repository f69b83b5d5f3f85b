"""The loss of what one pass has read: each stream's weighted loss of each token, and whether its sum is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from covrl.algorithms.base import Algorithm, LossTokens, Stream
from covrl.errors import NonFiniteError
from covrl.objectives import written_only
from covrl.records import Credit, OffendingRollout, Output, ScoredGroup
from covrl.scoring.pack import Reading, Tokens, Unit
from covrl.training.method_checks import check_losses


@dataclass(frozen=True, slots=True)
class Trained:
    """One trace with its rows, and what it and its credit are."""

    unit: Unit
    trace: OffendingRollout
    credit: Credit

    def has_weight(self, streams: Sequence[Stream]) -> bool:
        """Whether it trains in any of the streams."""
        return self.trace.rollout.request.trains and has_weight(self.credit, streams)


def has_weight(credit: Credit, streams: Sequence[Stream]) -> bool:
    """Whether any token has weight in any of the streams."""
    return any(bool(credit.weights[s.name].any()) for s in streams if s.name in credit.weights)


def only_written(
    groups: Sequence[ScoredGroup], credits: list[list[Credit]], streams: Sequence[Stream]
) -> list[list[Credit]]:
    """The credits without the weights, in streams on the trace, of tokens that the policy did not write."""
    on_trace = {stream.name for stream in streams if stream.span == "trace"}
    return [
        [
            own if rollout.written is None else _masked(own, rollout.written, on_trace)
            for rollout, own in zip(group.rollouts, row, strict=True)
        ]
        for group, row in zip(groups, credits, strict=True)
    ]


def _masked(own: Credit, written: Sequence[bool], streams: set[str]) -> Credit:
    weights = {name: written_only(w, written) if name in streams else w for name, w in own.weights.items()}
    return replace(own, weights=weights)


def scaled(algorithm: Algorithm, batch: Sequence[ScoredGroup]) -> tuple[dict[str, float], list[Stream]]:
    """coefficient / denominator of each stream that is not switched off, over the admitted ``batch``; these streams."""
    streams = [s for s in algorithm.streams if s.coefficient != 0]
    return {s.name: s.coefficient / max(s.denominator(batch), 1.0) for s in streams}, streams


def token_losses(
    algorithm: Algorithm,
    tokens: Tokens,
    trained: Mapping[int, Trained],
    streams: Sequence[Stream],
    read_off: Sequence[Reading],
) -> dict[str, Tensor]:
    """Each stream's weighted loss of each token of one pack, ``[N]`` with gradient.

    A trace of the pack that is not in ``trained`` weighs nothing. The old values of the readings ``read_off`` are the
    new ones as constants.
    """
    view = _loss_tokens(tokens, trained, streams, read_off)
    losses = algorithm.loss(view)
    check_losses(algorithm, losses, view.weight)
    return {s.name: view.weight[s.name] * losses[s.name] for s in streams}


def _loss_tokens(
    tokens: Tokens, trained: Mapping[int, Trained], streams: Sequence[Stream], read_off: Sequence[Reading]
) -> LossTokens:
    """Old scores, constants and weights of the pack's traces, laid out as the new values are."""
    like = {output.span: values for output, values in tokens.values.items()}

    def flat(span: str, part: dict[int, Tensor]) -> Tensor:
        some = next(iter(part.values()), like[span].detach())  # where they are, and only then to the device, at once
        pieces = [part[i] if i in part else some.new_zeros(n) for i, n in tokens.lengths[span]]
        return torch.cat(pieces).to(like[span]) if pieces else like[span].detach()

    old = {output: tokens.values[output].detach() for output in outputs(read_off)}
    known = {i: {**t.trace.scores.values, **t.credit.constants} for i, t in trained.items()}
    trained_on = {s.span for s in streams}
    for output in {o for values in known.values() for o in values if o.span in like and o.span in trained_on}:
        if output not in old:
            old[output] = flat(output.span, {i: v[output] for i, v in known.items() if output in v})
    weight = {
        s.name: flat(s.span, {i: t.credit.weights[s.name] for i, t in trained.items() if s.name in t.credit.weights})
        for s in streams
    }
    return LossTokens(tokens.values, old, weight, tokens.owner, _written(tokens, trained))


def _written(tokens: Tokens, trained: Mapping[int, Trained]) -> Tensor | None:
    """Which tokens of the pack's traces the policy wrote, ``[N]``; None where it wrote all of them."""
    masks = {i: t.trace.rollout.written for i, t in trained.items() if t.trace.rollout.written is not None}
    if not masks or "trace" not in tokens.owner:
        return None
    flags = [own for i, n in tokens.lengths["trace"] for own in masks.get(i, (True,) * n)]
    return torch.tensor(flags, dtype=torch.bool, device=tokens.owner["trace"].device)


def outputs(readings: Sequence[Reading]) -> list[Output]:
    """The names of all that ``readings`` give."""
    return [Output(r.span, name) for r in readings for name in r.outputs]


def values_by_trace(readings: Sequence[Reading], tokens: Tokens) -> dict[int, dict[Output, Tensor]]:
    """What ``readings`` gave, without gradient, by the number of the trace's unit."""
    found: dict[int, dict[Output, Tensor]] = {}
    for output in outputs(readings):
        sizes = tokens.lengths[output.span]
        for (index, _), part in zip(sizes, tokens.values[output].detach().split([n for _, n in sizes]), strict=True):
            found.setdefault(index, {})[output] = part
    return found


def check_finite(
    terms: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
    owner: Mapping[str, Tensor],
    streams: Sequence[Stream],
    trained: Mapping[int, Trained],
) -> None:
    """That the pack's part of each stream is finite.

    Raises:
        NonFiniteError: the first that is not, and the trace of its first bad token. Where only the sum overflows, that
            is the trace of the largest.
    """
    for stream in streams:
        if stream.name not in terms or math.isfinite(value := float(terms[stream.name].detach())):
            continue
        each = losses[stream.name].detach()
        bad = ~torch.isfinite(each)
        token = int(bad.nonzero()[0]) if bool(bad.any()) else int(each.abs().argmax())
        trace = trained[int(owner[stream.span][token])].trace
        raise NonFiniteError(f"the {stream.name} loss is {value} at {trace.name}", [trace])
