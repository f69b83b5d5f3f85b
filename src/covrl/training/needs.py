"""What a run takes of memory, measured: a training pass by token, sampling by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from covrl.generation.base import Draw
from covrl.generation.decoding import prefill_padded, prefill_shared
from covrl.generation.engine import TorchGenerator
from covrl.models.compute import blocks
from covrl.models.eight_bit import moment_bytes
from covrl.planning.fitting import Needs
from covrl.planning.live import LiveBytes
from covrl.records import Problem, Rollout
from covrl.scoring.pack import Unit, make_unit, padded_tokens, read
from covrl.training.memory import model_bytes
from covrl.training.reading_plan import one_update, reading_plan
from covrl.training.rollouts import sampling_of
from covrl.training.run import Run

MEASURED_TOKENS = 256
"""Of a trace, at most, when what a token takes is measured. Attention that keeps its matrix takes more where traces are
longer."""


COPIES = {"cpu": 3}
"""Tensors as large as a chunk's logits that a head function holds of each context, by kind of device: on a CPU, where
it works on a few rows at a time (:func:`covrl.scoring.head.has_caches`), the products and their gradient."""

COPIES_ELSEWHERE = 6
"""The same where a chunk is one piece, for the composite head, which holds most."""


def measured(run: Run, trains: bool = True) -> Needs:
    """What ``run`` takes: a small forward with what it keeps for a backward, and a small one that decodes.

    On a rank that has the weights, before they are sharded. Without ``trains`` no training pass will be made.
    """
    training, policy = run.config.training, run.models["policy"]
    parts = run.world.size if training.weights == "sharded" else 1
    held = model_bytes(run)
    weights = list(policy.model.parameters())
    short = policy.compute_dtype is not None or weights[0].dtype == torch.bfloat16
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    limit = sampling_of(run).max_tokens
    trace = padded_tokens([made_up(run, limit)])
    fixed, token = pass_bytes(run) if trains and trace else (0, 0.0)
    once = bool(reading_plan(run.algorithm, one_update(run)).in_pass)
    return Needs(
        weights=held["weights"] // parts,
        optimizer=0 if training.offload_moments else moments(run) // parts,
        gradients=held["gradients"] // parts,
        apart=len(run.algorithm.streams) * held["gradients"] // parts if training.stream_norms_every else 0,
        fixed=fixed,
        token=token,
        recomputed=None if training.recompute else _recomputed(run, token),
        logits=COPIES.get(policy.device.type, COPIES_ELSEWHERE)
        * len(run.algorithm.contexts)
        * min(run.limits.logits_bytes, 4 * vocabulary * run.limits.tokens),
        ready=(2 * sum(p.numel() for p in weights if p.is_floating_point()) if short else 0)
        + (held["weights"] if parts > 1 else 0),
        row=round(key_value_bytes(run) * (_longest_prompt(run) + limit)) + 4 * vocabulary,
        trace=trace,
        group=trace * training.rollouts_per_problem if once else 0,
    )


def moments(run: Run) -> int:
    """Bytes of AdamW's moments, whole, wherever they are kept."""
    if run.config.training.eight_bit_moments:
        return moment_bytes(run.parameters)
    return 2 * model_bytes(run)["gradients"]


def longest_of(problems: Iterable[Problem]) -> Problem:
    """The problem with the most text in its prompts."""

    def characters(problem: Problem) -> int:
        return len(problem.question) + len(problem.shown) + sum(len(turn.text) for turn in problem.turns)

    return max(problems, key=characters)


def longest_problem(run: Run) -> Problem:
    """The problem with the most text in its prompts, of those that are trained on."""
    return longest_of(run.source.problems)


def _longest_prompt(run: Run) -> int:
    problem = longest_problem(run)
    return max(len(run.prompts.prior(problem)), len(run.prompts.posterior(problem)))


def made_up(run: Run, tokens: int) -> Unit:
    """The rows of a trace of the longest problem with ``tokens`` tokens: the largest of those that the method plans."""
    algorithm, prompts, problem = run.algorithm, run.prompts, longest_problem(run)
    end = prompts.close_ids
    if algorithm.samples == "response":
        end += prompts.answer_prefix_ids + prompts.answer(problem)
    word = prompts.encode(problem.question)[-1:]
    ids = (word * tokens + end)[-max(tokens, 1) :] if len(end) < tokens else word * tokens
    text = prompts.config.close
    rollouts = [
        Rollout(request, ids, (0.0,) * len(ids), "closed", "sampled", text)
        for request in algorithm.plan(problem, [], Draw(0, 0))
    ]
    units = [make_unit(i, algorithm.contexts, algorithm.training, problem, r) for i, r in enumerate(rollouts)]
    return max(units, key=lambda unit: unit.tokens, default=Unit(0, {}))


def pass_bytes(run: Run) -> tuple[int, float]:
    """Bytes that a training pass keeps for its backward: casts of weights whatever its tokens, and for each token.

    From a trace, and from two of its kind, which share their prompts where the model reads these once.
    """
    unit = made_up(run, min(sampling_of(run).max_tokens, MEASURED_TOKENS))
    if not unit.rows:  # the method reads none of its traces, so no pass would be made
        return 0, 0.0
    shared = run.models["policy"].paths.shared
    own = unit.tokens - (sum(row.prompt for row in unit.rows.values()) if shared else 0)
    (casts, one), (_, two) = (kept_bytes(run, [replace(unit, index=i) for i in range(n)]) for n in (1, 2))
    return casts, (two - one) / own


def kept_bytes(run: Run, units: Sequence[Unit]) -> tuple[int, int]:
    """Bytes that are there after a training forward of these traces' rows and were not before: casts of weights, and
    all else.

    Measured, on any device. What the backward needs on top for the layer that it is in is not counted. A cast is what
    autograd saves of a matrix's shape and another dtype.
    """
    weights = [p for model in run.models.values() for p in model.model.parameters()]
    matrices = {(p.dtype, *sorted(p.shape)) for p in weights if p.ndim == 2}
    wide = {dtype for dtype, *_ in matrices}
    casts: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.dtype not in wide and any((dtype, *sorted(tensor.shape)) in matrices for dtype in wide):
            storage = tensor.untyped_storage()
            casts[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the node that holds it, for ever

    algorithm = run.algorithm
    with torch.enable_grad(), LiveBytes() as live, saved_tensors_hooks(count, lambda tensor: tensor):
        graph = read(run.models, algorithm.contexts, algorithm.training, units, run.limits.logits_bytes)
        kept = live.live
    del graph  # up to here it held what was counted
    return sum(casts.values()), kept - sum(casts.values())


def _recomputed(run: Run, token: float) -> float:
    """About what a token takes with recomputation: the input of each block, and all of the block that is computed."""
    model = run.models["policy"].model
    layers = max(1, len(blocks(model)))
    width = model.get_input_embeddings().weight.shape[1]
    size = next(model.parameters()).element_size()
    return min(token, layers * width * size + token / layers)


@torch.no_grad()
def key_value_bytes(run: Run) -> float:
    """Bytes of keys and values that sampling keeps for a token of a row, measured; 0 where it has no cache."""
    generator, model = run.generator, run.models["policy"].model
    if not isinstance(generator, TorchGenerator) or not generator.paths.cached:
        return 0.0
    ids, device = (run.prompts.encode(longest_problem(run).question) * 8)[:8], next(model.parameters()).device
    held: list[Tensor] = []
    if generator.paths.shared:
        _, state = prefill_shared(model, [ids], device, 1)
        held = [t for both in state.own.values() for t in both]
    else:
        _, padded = prefill_padded(model, [ids], device)
        layers: list[Any] = [layer for layer in padded.cache.layers if hasattr(layer, "keys")]  # others keep a state
        held = [t for layer in layers for t in (layer.keys, layer.values)]
    return sum(t.nbytes / t.shape[2] for t in held)
