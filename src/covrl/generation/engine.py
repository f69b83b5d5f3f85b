"""The torch engine: batched decoding with a key-value cache, on any device, for any causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from covrl.distributed.world import World
from covrl.generation.base import Draw, Sampling
from covrl.generation.decoding import Decoding, Replay, prefill_padded, prefill_shared
from covrl.generation.observe import Look, look, refuse_what_cannot_be_observed
from covrl.generation.random import trace_key, uniforms
from covrl.generation.recorded import Fixed, fixed
from covrl.generation.stop import StopRule, StopRules
from covrl.generation.trace import NOTHING, Seen, Trace, begin, end_tokens
from covrl.models.attention import NAME
from covrl.models.compute import weights_ready
from covrl.models.finite import broken
from covrl.models.text import vocabulary
from covrl.precision import widest
from covrl.records import NOT_OBSERVED, Observe, Request, Rollout

DRAWN_BYTES, DRAWN_SHARE = 32 << 20, 64
"""Bytes of the largest float64 tensor with a vocabulary axis while tokens are drawn: the first on a CPU, on a CUDA
device this part of its memory. There each such tensor costs a wait for the device."""

REFILL_BELOW = 0.75
"""Share of unfinished rows below which waiting prompts take the places of the finished ones."""


class DecodingPaths(NamedTuple):
    """How rows are decoded: with prompts stored once; with prompts of different lengths in a batch; with a cache.

    See :mod:`covrl.generation.decoding`; without ``shared`` prompts are padded on the left. ``recorded``: a step's
    operations are launched together (:mod:`covrl.generation.recorded`). ``refilled``: where more prompts wait than are
    decoded side by side, they take the places of finished rows, which needs ``shared``.
    """

    shared: bool = True
    padded: bool = True
    cached: bool = True
    recorded: bool = False
    refilled: bool = True

    @property
    def text(self) -> str:
        kept = "with" if self.cached else "without"
        more = " of shared prompts" if self.shared else " and left padding" if self.padded else ""
        also = " in recorded steps" if self.recorded else ""
        return f"{kept} a cache{more}{also}"


LADDER: tuple[tuple[DecodingPaths, str | None], ...] = (
    (DecodingPaths(recorded=True, refilled=False), "the operations of a step are launched one by one: slower"),
    (DecodingPaths(refilled=False), "each row keeps its own copy of its prompt: slower"),
    (DecodingPaths(shared=False, refilled=False), "only prompts of one length are decoded together: slower"),
    (DecodingPaths(False, False, refilled=False), "it is decoded without a cache: much slower"),
    (DecodingPaths(False, False, False, refilled=False), None),
)
"""Paths in the order in which they are tried, and the cost of switching each off; then whether they can be refilled."""

NOT_REFILLED = "rows that have finished are not replaced by waiting ones: slower"


class TorchGenerator:
    """Samples from the very weights that are trained, so there is nothing to copy on ``publish``.

    Each distinct prompt is prefilled once and its cache copied to the rows that share it. A finished row makes place
    for the next prompt that waits, or is removed from the batch. The random number of a token depends only on its key
    (see :mod:`covrl.generation.random`), so the same batch gives the same samples bit for bit. Another batch
    composition can change a sample only if rounding moves a cumulative probability across the drawn number. In a
    ``world`` of several ranks each samples a share of the requests, and all return all rollouts.
    """

    of_trainer = True

    def __init__(self, model: Any, tokenizer: Any, rows_per_pass: int, world: World | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.rows_per_pass = rows_per_pass
        self.world = world or World()
        self.version = 0
        self.paths = DecodingPaths()
        self._rules = StopRules(tokenizer)
        self._eos = end_tokens(model, tokenizer)

    def publish(self, version: int) -> None:
        self.version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """One rollout per request, in the same order. Rows of similar length are decoded together.

        Raises:
            UserError: a request cannot be honoured; nothing was sampled then.
        """
        rule = self._rules[sampling.stop, sampling.after]
        begin(requests, sampling, rule, self._eos)  # on every rank, so that all refuse what any would
        refuse_what_cannot_be_observed(requests, "torch", entropy=True, most=vocabulary(self.model))
        with self.world.whole_weights(), weights_ready(self.model):
            return self.world.shared(lambda share: self._sample(share, sampling, draw), requests)

    def _sample(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        rule = self._rules[sampling.stop, sampling.after]
        traces = begin(requests, sampling, rule, self._eos)
        lengths = {i: len(r.prompt_ids) + len(r.prefix_ids) for i, r in enumerate(requests) if traces[i].open}
        for wave in self._waves(lengths):
            self._decode([requests[i] for i in wave], [traces[i] for i in wave], sampling, rule, draw)
        return [trace.rollout(r, rule, self.version) for trace, r in zip(traces, requests, strict=True)]

    def _waves(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """The rows that are decoded together or one after another: of similar length, or of equal length without
        padding. Where places are refilled all are one wave, the longest prompts first.
        """
        order = sorted(lengths, key=lengths.__getitem__)
        if self._refills and len(order) > self.rows_per_pass:
            yield sorted(lengths, key=lengths.__getitem__, reverse=True)
            return
        for _, alike in groupby(order, key=(lambda _: 0) if self.paths.padded else lengths.__getitem__):
            rows = list(alike)
            yield from (rows[i : i + self.rows_per_pass] for i in range(0, len(rows), self.rows_per_pass))

    @torch.no_grad()
    def _decode(
        self, requests: Sequence[Request], traces: Sequence[Trace], sampling: Sampling, rule: StopRule, draw: Draw
    ) -> None:
        """Sample these ``traces`` to their ends, at most ``rows_per_pass`` side by side; others wait for a place."""
        keys = np.array([trace_key(draw, r.problem_id, r.index) for r in requests], dtype=np.uint64)
        given = np.array([len(r.prefix_ids) for r in requests])
        prompts = [r.prompt_ids + r.prefix_ids for r in requests]
        begun = min(len(requests), self.rows_per_pass)
        was_training = self.model.training
        self.model.eval()
        logits, state = self.prefill(prompts[:begun], max(t.left for t in traces), waiting=begun < len(requests))
        active = np.arange(begun)
        while True:
            taken = np.array([len(traces[row].ids) for row in active])
            draws = None if sampling.temperature == 0 else uniforms(keys[active], given[active] + taken)
            seen, watch = _watch([requests[row].observe if traces[row].open else NOT_OBSERVED for row in active])
            try:
                tokens, chosen = next_tokens(logits, sampling, draws, watch)
            except FloatingPointError:
                raise broken(self.model, _where(logits, [requests[row] for row in active], taken)) from None
            before = np.array([traces[row].open for row in active])
            for row, token, value, sight in zip(active, tokens.tolist(), chosen.tolist(), seen, strict=True):
                traces[row].take(token, value, rule, self._eos, sight)
            running = np.array([traces[row].open for row in active])
            waiting = len(requests) - begun
            if isinstance(state, Fixed) and (ended := np.flatnonzero(before & ~running).tolist()):
                state.pause(ended)
            if waiting and running.mean() < REFILL_BELOW:
                assert isinstance(state, Fixed), "nothing waits for other places"
                places = np.flatnonzero(~running)[:waiting]
                active[places] = np.arange(begun, begun + len(places))
                begun += len(places)
                fresh = state.refill(self.model, places.tolist(), [prompts[row] for row in active[places]])
                tokens[torch.as_tensor(places, device=tokens.device)] = fresh
            elif not running.any():
                break
            elif not waiting and running.mean() < state.shrink_below:
                rows = torch.as_tensor(np.flatnonzero(running), device=tokens.device)
                active, tokens = active[running], tokens[rows]
                state.select(rows)
            logits = state.advance(self.model, tokens)
        self.model.train(was_training)

    def prefill(self, prompts: Sequence[tuple[int, ...]], most: int, waiting: bool = False) -> tuple[Tensor, Decoding]:
        """Next-token logits ``[B, V]`` after each prompt, and the decoding state, each distinct prompt read once.

        At most ``most`` tokens follow; ``waiting``: other prompts, no longer than these, wait for places.
        """
        device = next(self.model.parameters()).device
        if self.paths.shared and self._can_share:
            logits, state = prefill_shared(self.model, prompts, device, most)
            if not (self.paths.recorded or waiting):
                return logits, state
            return logits, fixed(state, prompts, max(map(len, prompts)) + most, self.paths.recorded)
        if self.paths.cached:
            return prefill_padded(self.model, prompts, device)
        ids = torch.tensor(prompts, device=device)
        return self.model(input_ids=ids, use_cache=False).logits[:, -1], Replay(ids)

    @property
    def _refills(self) -> bool:
        """Whether a place can be given to another prompt."""
        return self.paths.refilled and self.paths.shared and self._can_share

    @property
    def records(self) -> bool:
        """Whether its device can record a step and launch it as a whole."""
        return next(self.model.parameters()).is_cuda

    @property
    def _can_share(self) -> bool:
        """Whether the model's attention supports arrangements; other implementations would ignore them."""
        return self.model.config._attn_implementation == NAME


def _watch(wanted: Sequence[Observe]) -> tuple[list[Seen], Look | None]:
    """Where it is noted what is ``wanted`` of each row's next token, and who notes it: nobody if nothing is."""
    seen = [NOTHING] * len(wanted)
    if not any(w.anything for w in wanted):
        return seen, None

    def note(start: int, log_probs: Tensor) -> None:
        part = slice(start, start + len(log_probs))
        seen[part] = look(log_probs, wanted[part])

    return seen, note


def _where(logits: Tensor, requests: Sequence[Request], taken: NDArray[np.int64]) -> str:
    """Of which of the ``requests`` the logits ``[B, V]`` are not finite, ``taken`` ``[B]`` tokens after its prompt."""
    bad = int(torch.log_softmax(logits.float(), dim=-1).isnan().any(dim=-1).int().argmax())
    request = requests[bad]
    after = f"after {taken[bad]} tokens of its trace" if taken[bad] else f"after its {request.source} prompt"
    return f"its logits are not finite at problem {request.problem_id}, {after}"


def drawn_bytes(device: torch.device) -> int:
    """Bytes of the largest float64 tensor with a vocabulary axis while tokens are drawn on a device."""
    if device.type != "cuda":
        return DRAWN_BYTES
    return max(DRAWN_BYTES, torch.cuda.get_device_properties(device).total_memory // DRAWN_SHARE)


def next_tokens(
    logits: Tensor,
    sampling: Sampling,
    draws: NDArray[np.float64] | None,
    watch: Look | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids ``[B]`` at ``draws`` ``[B]`` (None: the mode), and their log-probs ``[B]`` as they were sampled.

    Logits ``[B, V]`` are processed in rows of at most :func:`drawn_bytes` at once, whatever the vocabulary; ``watch``
    gets the log-probs of each such part.

    Raises:
        FloatingPointError: a row's probabilities are not finite.
    """
    rows = max(drawn_bytes(logits.device) // (8 * logits.shape[1]), 1)
    found = []
    for start in range(0, len(logits), rows):
        part = logits[start : start + rows]
        log_probs = torch.log_softmax(part.float() if part.dtype != torch.float64 else part, dim=-1)
        if sampling.temperature not in (0.0, 1.0):
            log_probs = torch.log_softmax(log_probs / sampling.temperature, dim=-1)
        if sampling.top_p < 1 and sampling.temperature != 0:
            log_probs = nucleus(log_probs, sampling.top_p)
        tokens = choose(log_probs, None if draws is None else draws[start : start + rows])
        taken = log_probs.gather(1, tokens[:, None])[:, 0]
        if draws is None and not bool(torch.isfinite(taken).all()):  # the mode of values that are not numbers
            raise FloatingPointError("the model's logits are not finite, so no token can be taken")
        if watch is not None:
            watch(start, log_probs)
        found.append((tokens, taken))
    tokens, chosen = zip(*found, strict=True)
    return torch.cat(tokens), torch.cat(chosen)


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Log-probs ``[B, V]`` of the fewest tokens that have at least ``top_p`` together, normalised over these.

    The others get −inf. The most likely token stays, however small ``top_p`` is.
    """
    ordered, places = log_probs.sort(dim=-1, descending=True, stable=True)
    probs = ordered.exp()
    beyond = probs.cumsum(dim=-1) - probs >= top_p
    beyond[:, 0] = False
    dropped = torch.zeros_like(beyond).scatter(-1, places, beyond)
    return torch.log_softmax(log_probs.masked_fill(dropped, -torch.inf), dim=-1)


def choose(log_probs: Tensor, draws: NDArray[np.float64] | None) -> Tensor:
    """Token ids ``[B]``: the mode if ``draws`` is None, else the inverse cumulative distribution at ``draws``.

    The sum runs in float64 where the device has it. The target stays below the whole sum, so a token without
    probability is never taken, however the product rounds.

    Raises:
        FloatingPointError: a row's probabilities are not finite.
    """
    if draws is None:
        return log_probs.argmax(dim=-1)
    wide = widest(log_probs.device)
    cumulative = log_probs.to(wide, copy=True).exp_().cumsum_(dim=-1)  # in place: new memory costs as much as the sums
    whole = cumulative[:, -1:]
    if not bool(torch.isfinite(whole).all()):
        raise FloatingPointError("the model's logits are not finite, so no token can be sampled")
    target = torch.as_tensor(draws, dtype=wide, device=log_probs.device)[:, None] * whole
    target = torch.minimum(target, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]
