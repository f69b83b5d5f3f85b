"""`covrl train --dry-run`: what a run would show the model, what it would sample, and what it would cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from covrl.generation.base import Draw
from covrl.records import Group, Problem, Rollout, Row
from covrl.scoring.pack import make_unit, read
from covrl.training.loop import Run
from covrl.training.memory import model_bytes
from covrl.training.optimizer import warm_up_note

FORMAT_SHARE = 0.25
"""Below this share of valid traces a base is said not to know the format."""

ANSWERS_LOOKED_AT = 1000
"""How many problems' answers are measured against ``generation.max_answer_tokens``."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: bytes on the device and on disk, seconds for the whole run.

    Time is one measured round of sampling and scoring, scaled to a step; training is taken as three scorings
    (forward, backward twice as dear). ``activations`` are what one training pass keeps for its backward
    (:func:`measured_activations`); ``logits`` is the bound on what the head holds at once.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    disk: int
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes on the device in a training pass. The cache of keys and values while sampling is not in it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class DryRun:
    """The first problem's rows by context, sampled traces, the cost, and what looks wrong in the settings."""

    problem: Problem
    rows: dict[str, Row]
    rollouts: tuple[Rollout, ...]
    cost: Cost
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> float:
        return sum(r.valid for r in self.rollouts) / len(self.rollouts)

    @property
    def truncated(self) -> float:
        return sum(r.finish == "length" for r in self.rollouts) / len(self.rollouts)

    def complaint(self) -> str | None:
        """Named and with figures, if the base cannot do the format."""
        if self.valid >= FORMAT_SHARE:
            return None
        ended = sum(r.finish == "eos" for r in self.rollouts)
        return (
            f"the base does not know the format: {self.valid:.0%} of {len(self.rollouts)} traces end with the closing "
            f"tag ({self.truncated:.0%} cut at the limit, {ended} ended the text before it); raise "
            "generation.max_trace_tokens, reword [prompts], or teach the format with covrl warm-format, where the "
            "problems carry worked solutions"
        )


def dry_run(run: Run, traces: int = 8) -> DryRun:
    """Sample at least ``traces`` traces of the first problems, score them, and take no step."""
    size = run.config.training.rollouts_per_problem
    problems = run.source.take(max(1, -(-traces // size)))
    start = time.perf_counter()
    groups = run.sample(problems, Draw(run.config.training.seed, 0))
    sampled = time.perf_counter()
    run.score(groups)
    scored = time.perf_counter()
    share = run.config.training.problems_per_step / len(problems)
    seconds = share * ((sampled - start) + 4 * (scored - sampled)) * run.config.training.steps
    rollouts = tuple(r for g in groups for r in g.rollouts)
    cost = _cost(run, seconds, measured_activations(run, groups))
    return DryRun(problems[0], _rows(run, groups[0]), rollouts, cost, _notes(run))


def _rows(run: Run, group: Group) -> dict[str, Row]:
    """The contexts of the first valid trace, or of the first one."""
    shown = next((r for r in group.rollouts if r.valid), group.rollouts[0])
    rows = {context.name: context.render(group.problem, shown) for context in run.algorithm.contexts}
    return {name: row for name, row in rows.items() if row is not None}


def measured_activations(run: Run, groups: Sequence[Group]) -> int:
    """Bytes that the largest training pass keeps from its forward for its backward.

    Measured, on any device: one forward of the longest trace's rows with gradients, in which every tensor that
    autograd saves is counted once and parameters are not. Scaled by tokens to a pass of ``training.tokens_per_pass``,
    or to a whole step where that holds less. What the backward needs on top for the layer that it is in is not
    counted, and attention that keeps its matrix keeps more than this where training traces are longer.
    """
    algorithm = run.algorithm
    pairs = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    units = [make_unit(i, algorithm.contexts, algorithm.training, *pair) for i, pair in enumerate(pairs)]
    unit = max(units, key=lambda u: u.tokens)
    if not unit.rows:  # the method reads none of the sampled traces, so no pass would be made
        return 0
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(count, lambda tensor: tensor):
        kept = read(run.models, algorithm.contexts, algorithm.training, [unit], run.limits.logits_bytes)
    for parameter in (p for model in run.models.values() for p in model.model.parameters()):
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    del kept  # up to here the graph held what was counted, so that no storage was counted in another's place
    return round(sum(saved.values()) * _largest_pass(run, unit.tokens) / unit.tokens)


def _largest_pass(run: Run, unit_tokens: int) -> int:
    """Tokens in the largest pass of a step whose traces all are ``unit_tokens`` long, rows added up."""
    training = run.config.training
    step = unit_tokens * training.problems_per_step * training.rollouts_per_problem
    return min(max(run.limits.tokens, unit_tokens), step)


def _notes(run: Run) -> tuple[str, ...]:
    """What a user should know before training and what is no error."""
    return tuple(filter(None, (warm_up_note(run.config.training), _long_answers(run))))


def _long_answers(run: Run) -> str | None:
    limit, looked_at = run.config.generation.max_answer_tokens, run.source.problems[:ANSWERS_LOOKED_AT]
    whole = run.algorithm.samples == "response"  # only there does a missing closing tag make an answer wrong
    tag = 0 if whole else len(run.prompts.encode(run.config.prompts.answer_suffix))
    lengths = {p.id: len(run.prompts.answer(p)) - tag for p in looked_at}
    long = sum(length > limit for length in lengths.values())
    if not long:
        return None
    name, longest = max(lengths.items(), key=lambda item: item[1])
    return (
        f"{long} of {len(looked_at)} reference answers{', closing tag included,' * whole} are longer than "
        f"generation.max_answer_tokens = {limit} (the longest, of problem {name}, has {longest}): when a model is "
        "evaluated it cannot write them in full; raise the limit, or see problems.extract if the field holds more "
        "than the answer"
    )


def _cost(run: Run, seconds: float, activations: int) -> Cost:
    held = model_bytes(run)
    trained = held["gradients"]
    vocabulary = run.models["policy"].model.get_input_embeddings().weight.shape[0]
    logits = min(run.limits.logits_bytes, 4 * vocabulary * run.limits.tokens)
    copies = run.config.checkpoint.keep + 1  # the best beside the newest
    return Cost(
        weights=held["weights"],
        optimizer=2 * trained,
        gradients=trained,
        activations=activations,
        logits=len(run.algorithm.contexts) * logits * 3,
        disk=trained * copies + 2 * trained * run.config.checkpoint.keep,
        seconds=seconds,
    )
