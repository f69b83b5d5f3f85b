"""The torch engine: batched decoding with a key-value cache, on any device, for any causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from covrl.generation.base import Draw, Sampling
from covrl.generation.random import trace_key, uniforms
from covrl.generation.stop import Stop, StopRule
from covrl.records import Finish, Request, Rollout

COMPACT_BELOW = 0.75
"""Finished rows leave the batch when fewer than this share of its rows are still sampling."""


class TorchGenerator:
    """Samples from the very weights that are trained, so there is nothing to copy on ``publish``.

    Each distinct prompt is prefilled once and its cache copied to the rows that share it; rows that ended leave
    the batch. The random number of a token depends only on its key (see :mod:`covrl.generation.random`), so the
    same batch gives the same samples bit for bit, and another batch composition can change a sample only where
    rounding moves a cumulative probability across the drawn number.
    """

    def __init__(self, model: Any, tokenizer: Any, rows_per_pass: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.rows_per_pass = rows_per_pass
        self.version = 0
        self._rules: dict[str, StopRule] = {}
        self._eos = _end_tokens(model, tokenizer)

    def publish(self, version: int) -> None:
        self.version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """One rollout per request, in the same order. Rows of like length are decoded together."""
        rule = self._rules.setdefault(sampling.stop, StopRule(self.tokenizer, sampling.stop))
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids) + len(requests[i].prefix_ids))
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self.rows_per_pass):
            wave = order[start : start + self.rows_per_pass]
            traces = self._decode([requests[i] for i in wave], sampling, rule, draw)
            rollouts |= {i: self._rollout(requests[i], t, rule) for i, t in zip(wave, traces, strict=True)}
        return [rollouts[i] for i in range(len(requests))]

    def _rollout(self, request: Request, trace: _Trace, rule: StopRule) -> Rollout:
        stop = trace.stop or Stop(len(trace.ids), "none")
        ids = tuple(trace.ids[: stop.kept])
        text = rule.text(ids) + (rule.tag if stop.closing == "appended" else "")
        log_probs = tuple(trace.log_probs[: stop.kept])
        return Rollout(request, ids, log_probs, trace.ended or "length", stop.closing, text, self.version)

    @torch.no_grad()
    def _decode(self, requests: Sequence[Request], sampling: Sampling, rule: StopRule, draw: Draw) -> list[_Trace]:
        keys = np.array([trace_key(draw, r.problem_id, r.index) for r in requests], dtype=np.uint64)
        traces = [_Trace() for _ in requests]
        was_training = self.model.training
        self.model.eval()
        logits, state = self._prefill([r.prompt_ids + r.prefix_ids for r in requests])
        active = np.arange(len(requests))
        for position in range(sampling.max_tokens):
            log_probs = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=-1)
            if sampling.temperature not in (0.0, 1.0):
                log_probs = torch.log_softmax(log_probs / sampling.temperature, dim=-1)
            tokens = choose(log_probs, None if sampling.temperature == 0 else uniforms(keys[active], position))
            chosen = log_probs.gather(1, tokens[:, None])[:, 0]
            for row, token, value in zip(active, tokens.tolist(), chosen.tolist(), strict=True):
                traces[row].take(token, value, rule, self._eos)
            running = np.array([traces[row].ended is None for row in active])
            if not running.any() or position + 1 == sampling.max_tokens:
                break
            if running.mean() < COMPACT_BELOW:
                rows = torch.as_tensor(np.flatnonzero(running), device=tokens.device)
                active, tokens = active[running], tokens[rows]
                state.select(rows)
            logits = state.advance(self.model, tokens)
        self.model.train(was_training)
        return traces

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, _Decoding]:
        """Next-token logits ``[B, V]`` after each prompt, and the decoding state, each distinct prompt read once."""
        device = next(self.model.parameters()).device
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, distinct))
        pads = torch.tensor([width - len(ids) for ids in distinct], device=device)
        filled = [(0,) * (width - len(ids)) + ids for ids in distinct]
        mask = (torch.arange(width, device=device)[None] >= pads[:, None]).long()
        cache = DynamicCache(config=self.model.config)
        out = self.model(
            input_ids=torch.tensor(filled, device=device),
            attention_mask=mask if bool(pads.any()) else None,
            position_ids=(torch.arange(width, device=device)[None] - pads[:, None]).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = torch.tensor([distinct[ids] for ids in prompts], device=device)
        cache.batch_select_indices(rows)
        state = _Decoding(cache, mask[rows] if bool(pads.any()) else None, width - pads[rows])
        return out.logits[rows, -1], state


@dataclass(slots=True)
class _Decoding:
    """Cache, padding mask ``[B, past]`` (None where no row is padded) and next position ``[B]`` of the live rows."""

    cache: DynamicCache
    mask: Tensor | None
    position: Tensor

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask = None if self.mask is None else self.mask[rows]
        self.position = self.position[rows]

    def advance(self, model: Any, tokens: Tensor) -> Tensor:
        """Feed one token per row; next-token logits ``[B, V]``."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        out = model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        return out.logits[:, -1]


@dataclass(slots=True)
class _Trace:
    """One row while it is being sampled; tokens that come after its end are ignored."""

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: Finish | None = None
    stop: Stop | None = None

    def take(self, token: int, log_prob: float, rule: StopRule, eos: frozenset[int]) -> None:
        if self.ended:
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        self.stop = rule.check(self.ids)
        if self.stop:
            self.ended = "closed"
        elif token in eos:
            self.ended = "eos"


def choose(log_probs: Tensor, draws: np.ndarray[Any, np.dtype[np.float64]] | None) -> Tensor:
    """Token ids ``[B]``: the mode if ``draws`` is None, else the inverse cumulative distribution at ``draws``.

    The sum runs in float64 where the device has it. The target stays below the whole sum, so a token without
    probability is never taken, however the product rounds.

    Raises:
        FloatingPointError: a row's probabilities are not finite.
    """
    if draws is None:
        return log_probs.argmax(dim=-1)
    wide = torch.float32 if log_probs.device.type == "mps" else torch.float64
    cumulative = log_probs.to(wide).exp().cumsum(dim=-1)
    whole = cumulative[:, -1:]
    if not bool(torch.isfinite(whole).all()):
        raise FloatingPointError("the model's logits are not finite, so no token can be sampled")
    target = torch.as_tensor(draws, dtype=wide, device=log_probs.device)[:, None] * whole
    target = torch.minimum(target, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a sequence: the tokenizer's and the generation config's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *listed] if i is not None)
