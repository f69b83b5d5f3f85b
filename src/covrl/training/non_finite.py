"""Where a gradient that is not finite comes from: the stream and the trace, for the message and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from covrl.algorithms.base import Algorithm
from covrl.distributed.world import World, local_part
from covrl.errors import NonFiniteError
from covrl.models.model import LanguageModel
from covrl.records import Credit, OffendingRollout, ScoredGroup
from covrl.scoring.pack import PassLimits, make_unit, read
from covrl.training.gradient import set_grad
from covrl.training.losses import Trained, scaled, token_losses
from covrl.training.reading_plan import ReadingPlan


def gradient_error(
    norm: float,
    algorithm: Algorithm,
    models: Mapping[str, LanguageModel],
    groups: Sequence[ScoredGroup],
    credits: Sequence[Sequence[Credit]],
    limits: PassLimits,
    plan: ReadingPlan,
    world: World,
) -> NonFiniteError:
    """What to say of a gradient whose ``norm`` is not finite: the stream and trace it comes from.

    Finding them takes a pass for each trace and stream, which all ranks make together. All traces are kept where none
    of them is at fault alone.
    """
    traces = [
        OffendingRollout(group.problem, *trace)
        for group, row in zip(groups, credits, strict=True)
        for trace in zip(group.rollouts, group.scores, row, strict=True)
    ]
    scale, streams = scaled(algorithm, groups)
    parameters = [p for m in models.values() for p in m.parameters()]
    for index, trace in enumerate(traces):
        assert trace.credit is not None
        unit = make_unit(index, algorithm.contexts, plan.training, trace.problem, trace.rollout)
        one = Trained(unit, trace, trace.credit)
        if not one.has_weight(streams):
            continue
        for name, factor in scale.items():
            tokens = read(models, algorithm.contexts, plan.training, [unit], limits.logits_bytes)
            losses = token_losses(algorithm, tokens, {index: one}, streams, plan.read_off)
            reach = [0.0 * part.sum() for part in losses.values()] if world.sharded else []
            term = sum([factor * losses[name].sum(), *reach], torch.zeros(()))
            if not term.requires_grad:  # the trace has no part in this stream
                continue
            term.backward()
            finite = all(bool(torch.isfinite(local_part(p.grad)).all()) for p in parameters if p.grad is not None)
            set_grad(parameters, [None] * len(parameters))
            if world.any(not finite):
                said = f"the gradient's norm is {norm}, from the {name} loss at {trace.name}"
                return NonFiniteError(said, [trace])
    return NonFiniteError(f"the gradient's norm is {norm} (no trace's is so alone)", traces)
