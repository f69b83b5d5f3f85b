"""One trace while it is sampled: where it ends and what of it is kept, the same for every engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from covrl.errors import UserError
from covrl.generation.base import Sampling
from covrl.generation.stop import Stop, StopRule
from covrl.records import Finish, Observe, Observed, Request, Rollout


class Seen(NamedTuple):
    """What was observed of one token, where it was asked for: entropy (nats), likeliest ids and their log-probs."""

    entropy: float = math.nan
    top_ids: tuple[int, ...] = ()
    top_log_probs: tuple[float, ...] = ()


NOTHING = Seen()


@dataclass(slots=True)
class Trace:
    """One row while it is sampled after ``prefix``, up to ``most`` tokens; tokens after its end are ignored."""

    prefix: tuple[int, ...] = ()
    most: int | None = None
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    ended: Finish | None = None
    stop: Stop | None = None

    @property
    def open(self) -> bool:
        """Whether there is more of it to sample."""
        return self.ended is None and (self.most is None or len(self.ids) < self.most)

    @property
    def left(self) -> int:
        """How many more tokens there may be."""
        assert self.most is not None
        return self.most - len(self.ids)

    def take(self, token: int, log_prob: float, rule: StopRule, eos: frozenset[int], seen: Seen = NOTHING) -> None:
        """Add one sampled token and see whether the trace ends with it."""
        if not self.open:
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        self.seen.append(seen)
        self.stop = rule.check(self.ids, self.prefix)
        if self.stop:
            self.ended = "closed"
        elif token in eos:
            self.ended = "eos"

    def rollout(self, request: Request, rule: StopRule, version: int) -> Rollout:
        """The rollout of ``request``, cut where the trace ends by the rule; its text includes the prefix."""
        stop = self.stop or Stop(len(self.ids), "none")
        ids = tuple(self.ids[: stop.kept])
        text = rule.text((*self.prefix, *ids)) + (rule.tag if stop.closing == "appended" else "")
        return Rollout(
            request,
            ids,
            tuple(self.log_probs[: stop.kept]),
            self.ended or "length",
            stop.closing,
            text,
            version,
            observed=_observed(request.observe, self.seen[: stop.kept]),
        )


def _observed(wanted: Observe, seen: Sequence[Seen]) -> Observed:
    """What was seen of each token, by kind; None of what was not asked for."""
    return Observed(
        tuple(s.entropy for s in seen) if wanted.entropy else None,
        tuple(s.top_ids for s in seen) if wanted.top_k else None,
        tuple(s.top_log_probs for s in seen) if wanted.top_k else None,
    )


def begin(requests: Sequence[Request], sampling: Sampling, rule: StopRule, eos: frozenset[int]) -> list[Trace]:
    """The traces of ``requests`` before anything is sampled.

    One whose prefix ends with the stop text, or with a token of ``eos``, is at its end already. Such tokens further
    inside a prefix are not looked at, as a method may put turns into it.

    Raises:
        UserError: a prefix goes on after the stop text, or a request may sample more than the call.
    """
    return [_begin(request, sampling, rule, eos) for request in requests]


def _begin(request: Request, sampling: Sampling, rule: StopRule, eos: frozenset[int]) -> Trace:
    prefix, name = request.prefix_ids, f"problem {request.problem_id}, rollout {request.index}"
    most = sampling.max_tokens if request.max_tokens is None else request.max_tokens
    if most > sampling.max_tokens:
        raise UserError(
            f"{name}: Request.max_tokens is {most}, and at most {sampling.max_tokens} tokens are sampled here; ask for "
            "no more, or raise generation.max_trace_tokens"
        )
    if not rule.complete(prefix):
        return Trace(prefix, most, ended="eos" if prefix and prefix[-1] in eos else None)
    if rule.complete(prefix[:-1]):
        raise UserError(f"{name}: Request.prefix_ids go on after {rule.tag!r}, where a trace ends; cut them there")
    return Trace(prefix, most, ended="closed", stop=Stop(0, "sampled"))


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a sequence: the tokenizer's and the generation config's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *listed] if i is not None)
