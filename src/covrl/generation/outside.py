"""Engines other than the trained model itself: they have their own weights, which each publish replaces.

An engine provides only tokens and their log-probs. This module decides from the tokens where a trace ends, what of it
is kept and what its text is, with the same code as the torch engine. The engine gets the stop text only to avoid
useless sampling; where it stopped does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from covrl.errors import EngineError
from covrl.generation.base import Draw, Sampling
from covrl.generation.random import trace_key
from covrl.generation.stop import StopRule, StopRules
from covrl.generation.trace import Trace, end_tokens
from covrl.records import Request, Rollout

_ODD = 0x9E3779B97F4A7C15  # the increment of the keyed random numbers, so that parts of a trace have seeds apart


class Ask(NamedTuple):
    """One row to sample: the ids before it, a seed below 2**63, and the token limit."""

    ids: tuple[int, ...]
    seed: int
    max_tokens: int


class Drawn(NamedTuple):
    """What an engine sampled for one row: ids, and their log-probs (nats, at the sampling temperature)."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


class Backend(Protocol):
    """The interface of an engine.

    ``name`` identifies it in messages.
    """

    name: str

    def draw(self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int]) -> list[Drawn]:
        """Sample each row up to the text ``stop`` or a token of ``ends``, both included, or its token limit.

        The same row gives the same tokens, whatever it is sampled with.
        """
        ...

    def load(self, version: int) -> None:
        """Take over the weights of the trained model."""
        ...


class OutsideGenerator:
    """A :class:`covrl.generation.base.Generator` on a :class:`Backend`.

    Samples are a function of (run seed, step, problem, rollout index) with the engine's own generator: the key of a
    trace is the seed of its row. They differ from the torch engine's samples. ``wasted`` counts the tokens that the
    engine sampled after the end of a trace; more than a few mean that it ignores the stop text.
    """

    of_trainer = False

    def __init__(self, backend: Backend, model: Any, tokenizer: Any) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.version = 0
        self.wasted = 0
        self._behind = False
        self._rules = StopRules(tokenizer)
        self._ends = end_tokens(model, tokenizer)

    def publish(self, version: int) -> None:
        """Send the weights. If the engine does not answer, the next :meth:`generate` tries again first.

        So if a server died in the meantime, the step that made these weights still counts and can be saved.
        """
        self.version, self._behind = version, True
        try:
            self._catch_up()
        except EngineError:
            return

    def _catch_up(self) -> None:
        if self._behind:
            self.backend.load(self.version)
            self._behind = False

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """One rollout per request, in the same order.

        Raises:
            EngineError: the engine does not answer, or answers what cannot be used.
        """
        self._catch_up()
        rule = self._rules[sampling.stop, sampling.after]
        keys = [trace_key(draw, r.problem_id, r.index) for r in requests]
        traces = [Trace(r.prefix_ids) for r in requests]
        rows_of = {sampling.stop: list(range(len(requests)))}
        while rows_of:
            for stop, rows in rows_of.items():
                asked = [_ask(requests[i], traces[i], keys[i], sampling.max_tokens) for i in rows]
                drawn = self.backend.draw(asked, sampling.temperature, stop, sorted(self._ends)) if asked else []
                for i, part in zip(rows, drawn, strict=True):
                    self._take(traces[i], part, rule)
            rows_of = _open(traces, rule, sampling.max_tokens)
        return [trace.rollout(r, rule, self.version) for trace, r in zip(traces, requests, strict=True)]

    def _take(self, trace: Trace, part: Drawn, rule: StopRule) -> None:
        """Add what was sampled. An engine that stopped early is called again from there, as long as it returns more."""
        if not part.ids or len(part.ids) != len(part.log_probs):
            raise EngineError(
                f"{self.backend.name} returned {len(part.ids)} tokens with {len(part.log_probs)} log-probs for a trace "
                "that is not at its end"
            )
        for token, log_prob in zip(part.ids, part.log_probs, strict=True):
            self.wasted += trace.ended is not None
            trace.take(token, log_prob, rule, self._ends)


def weights_of(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights that a model computes with, by their names in its files, tied ones once.

    An engine has no adapters: a linear layer with LoRA is sent as one matrix, W + scale·BA with the active adapter.
    """
    with torch.no_grad():
        for module_name, module in model.named_modules():
            if not hasattr(module, "get_delta_weight"):
                continue
            for name, weight in module.base_layer.named_parameters():
                on = module.active_adapters if name == "weight" and not module.disable_adapters else ()
                deltas = [module.get_delta_weight(a) for a in on if a in module.lora_A]
                yield f"{module_name}.{name}", sum(deltas, weight.detach()).to(weight.dtype)
        for name, weight in model.named_parameters():
            if ".base_layer." not in name and ".lora_" not in name:
                yield name, weight.detach()


def _open(traces: Sequence[Trace], rule: StopRule, max_tokens: int) -> dict[str, list[int]]:
    """The unfinished rows, by the text that each has to be sampled up to.

    An engine stops at its stop text wherever it occurs. A row that it stopped too early, as at a full stop of the
    reasoning, is continued up to the text that has to come before its end, and not up to every full stop.
    """
    found: dict[str, list[int]] = {}
    for i, trace in enumerate(traces):
        if not trace.ended and len(trace.ids) < max_tokens:
            found.setdefault(rule.awaited(trace.ids, trace.prefix), []).append(i)
    return found


def _ask(request: Request, trace: Trace, key: int, max_tokens: int) -> Ask:
    sampled = tuple(trace.ids)
    seed = ((key + _ODD * len(sampled)) % 2**64) >> 1
    return Ask(request.prompt_ids + request.prefix_ids + sampled, seed, max_tokens - len(sampled))
