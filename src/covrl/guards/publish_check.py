"""Does the generator sample from the weights that are trained? Asked before the first step and after each publish.

A few known rows are sampled with keys that never change and read with the trainer's weights. The mean difference of
their tokens' log-probs is compared with the model's own noise, as the proof at load measured it
(:mod:`covrl.models.proof`). Before the first step weights are changed on purpose (:func:`changed_weights`), so that it
is known that the check sees old weights, and that the engine takes all of the new ones: the steps of a small learning
rate move log-probs by less than any noise for a long time.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from covrl.distributed.world import World
from covrl.errors import BrokenModelError
from covrl.generation.base import Draw, Sampling, rest, samples_with_trainer
from covrl.generation.base import Generator as TraceGenerator
from covrl.models.adapters import adapter_scale, adapter_weights
from covrl.models.compute import blocks
from covrl.models.finite import broken
from covrl.models.model import Ids, LanguageModel
from covrl.models.proof import TRUSTED
from covrl.models.text import trunk
from covrl.records import Problem, Request
from covrl.scoring.head import log_prob

ROWS = 16
"""Traces of the first problem that are looked at; with ``TOKENS`` each they have 64 tokens and more."""

TOKENS = 8

LEAST_ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Mean difference, nats a token, that is never complained of, by compute dtype; 0.1 for shorter ones. Other engines
have kernels of their own (INFERRED; vLLM agrees to 1e-6 in float32 on a CPU)."""

MOVED = {torch.float64: 1e-11, torch.float32: 1e-6}
"""Mean change of the trainer's log-probs, nats a token, that an engine with the new weights cannot miss to the last
bit. For shorter dtypes it is the model's noise: their weights may round to what they were."""


@dataclass(frozen=True, slots=True)
class BothSides:
    """What the check compares, and on what: traces of ``problem`` after ``prompt``, drawn as ``sampling`` says.

    ``tokens`` is how many padded tokens the trainer reads at once, and ``version`` what the weights are published as.
    In a ``world`` of several ranks every rank's engine is looked at: all ranks call, outside of whole weights.
    """

    policy: LanguageModel
    generator: TraceGenerator
    problem: Problem
    prompt: Ids
    sampling: Sampling
    seed: int
    tokens: int
    version: int
    world: World = field(default_factory=World)


class Probe(NamedTuple):
    """Known rows as both sides read them: sampled ids by row, and each token's log-prob by generator and trainer."""

    ids: tuple[Ids, ...]
    generator: tuple[float, ...]
    trainer: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Mean difference of the two, nats a token; nan where there is no token or either is nan."""
        return _apart(self.generator, self.trainer)


class PublishCheck:
    """Looks at a generator, and remembers since when its log-probs are the same to the last bit."""

    def __init__(self) -> None:
        self._since: Probe | None = None

    def look(self, sides: BothSides) -> tuple[float, str | None]:
        """The mean difference (nats a token), and why the generator cannot have the trainer's weights, or None.

        Of several ranks the largest difference, and the first that has a reason. Before it is said of an engine, the
        weights are published once more.
        """
        now = probe(sides)
        reason = self._reason(sides, now)
        if reason:
            sides.generator.publish(sides.version)
            now = probe(sides)
            reason = self._reason(sides, now)
        if self._since is None or (self._since.ids, self._since.generator) != (now.ids, now.generator):
            self._since = now
        return max(sides.world.gathered([now.gap])), reason

    def _reason(self, sides: BothSides, now: Probe) -> str | None:
        allowed, moved = allowed_gap(sides.policy), least_move(sides.policy)
        return first_said(sides, stale_reason(self._since, now, allowed, moved) if any(now.ids) else None)


def first_said(sides: BothSides, said: str | None) -> str | None:
    """What the first rank that says something says, on all ranks; with its number where each has its own engine."""
    for rank, one in enumerate(sides.world.gathered([said])):
        if one is not None:
            return f"rank {rank}: {one}" if sides.world.size > 1 and not samples_with_trainer(sides.generator) else one
    return None


def allowed_gap(model: LanguageModel) -> float:
    """Mean difference of log-probs that rounding explains, nats a token."""
    return max(TRUSTED * model.noise, LEAST_ALLOWED.get(_compute_dtype(model), 0.1))


def least_move(model: LanguageModel) -> float:
    """Mean change of the trainer's log-probs that cannot leave the generator's as they were, nats a token."""
    return MOVED.get(_compute_dtype(model), max(model.noise, 2.0**-7))


def _compute_dtype(model: LanguageModel) -> torch.dtype:
    return model.compute_dtype or next(model.model.parameters()).dtype


def probe(sides: BothSides) -> Probe:
    """Sample known rows, and read them with the trainer's weights.

    Raises:
        BrokenModelError: they cannot be sampled or read, as the model's numbers are not finite.
    """
    requests = [Request(sides.problem.id, i, sides.prompt, "prior") for i in range(ROWS)]
    ask = getattr(sides.generator, "generate_on_each", sides.generator.generate)
    with sides.world.whole_weights() if samples_with_trainer(sides.generator) else nullcontext():
        rollouts = ask(requests, sides.sampling, Draw(sides.seed, 0, "publish"))
        ids = tuple(rollout.trace_ids for rollout in rollouts)
        told = tuple(value for rollout in rollouts for value in rollout.log_probs)
        return Probe(ids, told, read(sides, ids))


def read(sides: BothSides, traces: Sequence[Ids]) -> tuple[float, ...]:
    """The trainer's log-probs of the problem's traces, one after the other.

    Raises:
        BrokenModelError: one is not finite.
    """
    if sides.world.sharded:  # the whole weights and an engine that is awake are more than either
        rest(sides.generator)
    found: tuple[float, ...] = ()
    failed: BrokenModelError | None = None
    with sides.world.whole_weights():
        try:
            found = _read(sides, traces)
        except BrokenModelError as error:
            failed = error
    sides.world.raise_together(failed)
    return found


def _read(sides: BothSides, traces: Sequence[Ids]) -> tuple[float, ...]:
    model, prompt = sides.policy, sides.prompt
    rows = [prompt + trace for trace in traces if trace]
    together = max(1, sides.tokens // (len(prompt) + TOKENS))
    found: list[float] = []
    for part in (rows[i : i + together] for i in range(0, len(rows), together)):
        with torch.no_grad():
            flat, places = model.states([(row, len(prompt)) for row in part])
            at = [place(i - 1) for row, place in zip(part, places, strict=True) for i in range(len(prompt), len(row))]
            targets = torch.tensor([token for row in part for token in row[len(prompt) :]], device=flat.device)
            (values,) = log_prob([model.projection()(flat[torch.tensor(at, device=flat.device)])], targets)
        found += values.tolist()
    if any(math.isnan(value) or value == math.inf for value in found):
        said = f"the log-probs of a trace of problem {sides.problem.id} are not finite when it is read"
        raise broken(model.model, said)
    return tuple(found)


def stale_reason(since: Probe | None, now: Probe, allowed: float, moved: float) -> str | None:
    """Why the generator cannot have the trainer's weights, or None.

    Either the two differ by more than ``allowed``, or the trainer's log-probs of the same ids have moved by more than
    ``moved`` since a look from which on the generator's are the same to the last bit. Both in nats a token, on average.
    """
    told = "it samples from other weights than are trained; look at how the engine takes new weights"
    if not now.gap <= allowed:
        return (
            f"after publish the generator's log-probs of known rows differ from the trainer's by {now.gap:.2g} nats a "
            f"token on average (rounding explains {allowed:.2g}): {told}"
        )
    if since is None or (since.ids, since.generator) != (now.ids, now.generator):
        return None
    change = _apart(since.trainer, now.trainer)
    if change <= moved:
        return None
    return (
        f"after publish the generator's log-probs of known rows are what they were to the last bit, while the "
        f"trainer's moved by {change:.2g} nats a token on average: {told}"
    )


def canary(sides: BothSides) -> tuple[str | None, str | None]:
    """Change weights on purpose, and see whether that is noticed: why not to start, and what to note; or None each.

    Where samples come from the trained model itself, the rows are only read again: there is nothing to publish.
    """
    policy, before = sides.policy, probe(sides)
    allowed = allowed_gap(policy)
    if not sides.world.any(any(before.ids)):
        return None, None
    own = samples_with_trainer(sides.generator)
    change = changed_adapter if getattr(sides.generator, "adapters_alone", False) else changed_weights
    with change(policy):
        unseen = not _apart(before.generator, read(sides, before.ids)) > allowed
        if not own:
            sides.generator.publish(sides.version)
            after = probe(sides)
    if not own:
        sides.generator.publish(sides.version)
        refused = None
        if not after.gap <= allowed:
            refused = (
                f"its weights were changed on purpose and published, and the generator's log-probs of known rows then "
                f"differ from the trainer's by {after.gap:.2g} nats a token on average (rounding explains "
                f"{allowed:.2g}): it does not take all weights; look at how the engine takes new weights"
            )
        if refused := first_said(sides, refused):
            return refused, None
    note = "the check after each publish cannot see old weights: known rows are as likely with other ones"
    return None, note if sides.world.any(unseen) else None


@contextmanager
def changed_weights(model: LanguageModel) -> Generator[None]:
    """Inside, the last norm is halved, and a matrix of each block, the embedding and the output layer are negated; then
    they are what they were, to the bit.

    So an engine that takes no new weights is seen, and one that takes some of these alone. vLLM 0.32 on a CPU keeps an
    output layer that is the embedding (CONFIRMED by a run), which small steps would show late.
    """
    inside = [block for block in blocks(model.model) if any(p.ndim == 2 for p in block.parameters())]
    matrices = [max((p for p in block.parameters() if p.ndim == 2), key=torch.Tensor.numel) for block in inside]
    in_blocks = {id(p) for block in inside for p in block.parameters()}
    ends = {id(p): p for m in (trunk(model.model), model.model.get_output_embeddings()) for p in m.parameters()}
    matrices += [p for key, p in ends.items() if p.ndim == 2 and key not in in_blocks]
    norms = [p for p in trunk(model.model).parameters() if p.ndim == 1 and id(p) not in in_blocks]
    kept = [p.detach().clone() for p in norms]
    with torch.no_grad():
        for p in matrices:
            p.neg_()
        for p in norms:
            p.mul_(0.5)
    try:
        yield
    finally:
        with torch.no_grad():
            for p in matrices:
                p.neg_()
            for p, value in zip(norms, kept, strict=True):
                p.copy_(value)


@contextmanager
def changed_adapter(model: LanguageModel) -> Generator[None]:
    """As :func:`changed_weights`, where a publish sends the policy's adapter alone: the ``B`` of all its layers.

    ``A`` has entries of about 1/sqrt(3 inputs), so that these make each layer add about as much as it reads.
    """
    weights = {name: w for name, w in adapter_weights(model.model).items() if ".lora_B." in name}
    kept = [w.detach().clone() for w in weights.values()]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in weights.values():
            size = math.sqrt(3 / w.shape[1]) / adapter_scale(model.model)
            w.copy_(torch.randn(w.shape, generator=noise) * size)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, value in zip(weights.values(), kept, strict=True):
                w.copy_(value)


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) != len(b) or not a:
        return float("nan")
    return float((torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs().mean())
