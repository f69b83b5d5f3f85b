"""One trace while it is sampled: where it ends and what of it is kept, the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from covrl.generation.stop import Stop, StopRule
from covrl.records import Finish, Request, Rollout


@dataclass(slots=True)
class Trace:
    """One row while it is being sampled, after ``prefix``; tokens after its end are ignored."""

    prefix: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: Finish | None = None
    stop: Stop | None = None

    def take(self, token: int, log_prob: float, rule: StopRule, eos: frozenset[int]) -> None:
        """Add one sampled token and see whether the trace ends with it."""
        if self.ended:
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        self.stop = rule.check(self.ids, self.prefix)
        if self.stop:
            self.ended = "closed"
        elif token in eos:
            self.ended = "eos"

    def rollout(self, request: Request, rule: StopRule, version: int) -> Rollout:
        """The rollout of ``request``, cut where the trace ends by the rule."""
        stop = self.stop or Stop(len(self.ids), "none")
        ids = tuple(self.ids[: stop.kept])
        text = rule.text(ids) + (rule.tag if stop.closing == "appended" else "")
        log_probs = tuple(self.log_probs[: stop.kept])
        return Rollout(request, ids, log_probs, self.ended or "length", stop.closing, text, version)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a sequence: the tokenizer's and the generation config's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *listed] if i is not None)
