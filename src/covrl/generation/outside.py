"""Engines other than the trained model itself: they have their own weights, which each publish replaces.

An engine provides only tokens and their log-probs. This module decides from the tokens where a trace ends, what of it
is kept and what its text is, with the same code as the torch engine. The engine gets the stop text only to avoid
useless sampling; where it stopped does not matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

from covrl.distributed.world import World, part_of
from covrl.errors import EngineError, OutOfMemoryError, UserError
from covrl.generation.base import Draw, Sampling
from covrl.generation.observe import refuse_what_cannot_be_observed
from covrl.generation.random import trace_key
from covrl.generation.stop import StopRule, StopRules
from covrl.generation.trace import NOTHING, Seen, Trace, begin, end_tokens
from covrl.records import Request, Rollout

MOST_TOP_K = 20
"""How many likeliest tokens vLLM tells where ``--max-logprobs`` was left alone (CONFIRMED: default in its source)."""

_ODD = 0x9E3779B97F4A7C15  # the increment of the keyed random numbers, so that parts of a trace have seeds apart


class Ask(NamedTuple):
    """One row to sample: the ids before it, a seed below 2**63, the token limit, the number of likeliest tokens."""

    ids: tuple[int, ...]
    seed: int
    max_tokens: int
    top_k: int = 0


class Drawn(NamedTuple):
    """What an engine sampled for one row: ids, and their log-probs (nats, at the sampling temperature).

    ``top``: for each token at least the ``top_k`` likeliest ids with their log-probs, in any order; empty where none
    were asked for.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    top: tuple[Mapping[int, float], ...] = ()


class Backend(Protocol):
    """The interface of an engine.

    ``apart`` says whether it computes in another process, so that it can sample while the trainer trains. ``name``
    identifies it in messages, ``most_top_k`` is the largest number of likeliest tokens that it can return. No
    engine that we know returns exact entropies, so they are not requested.
    """

    name: str
    most_top_k: int
    apart: bool

    def draw(
        self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int], top_p: float = 1.0
    ) -> list[Drawn]:
        """Sample each row up to the text ``stop`` or a token of ``ends``, both included, or its token limit.

        With a ``top_p`` below 1 from the fewest tokens that have this probability together; log-probs are of these.
        The same row gives the same tokens, whatever it is sampled with.
        """
        ...

    def load(self, version: int) -> None:
        """Take over the weights of the trained model; all ranks call it."""
        ...

    def wake(self) -> None:
        """Get ready to draw; all ranks call it."""
        ...

    def rest(self) -> None:
        """Give the accelerator's memory back until the next :meth:`wake`."""
        ...


class OutsideGenerator:
    """A :class:`covrl.generation.base.Generator` on a :class:`Backend`.

    Samples are a function of (run seed, step, problem, rollout index) with the engine's own generator: the key of a
    trace is the seed of its row. They differ from the torch engine's samples. ``wasted`` counts the tokens that the
    engine sampled after the end of a trace; more than a few mean that it ignores the stop text. Weights are not
    replaced while another thread is in :meth:`generate_ahead`.

    In a ``world`` of several ranks each asks its ``backend`` for a share of the requests, and all return all rollouts.
    ``together`` ranks next to each other hold one copy of the model between them, and ask for the same share.
    """

    of_trainer = False

    def __init__(
        self, backend: Backend, model: Any, tokenizer: Any, world: World | None = None, together: int = 1
    ) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.world = world or World()
        self.together = together
        self.version = 0
        self.wasted = 0
        self._behind = False
        self._turns = Turns()
        self._rules = StopRules(tokenizer)
        self._ends = end_tokens(model, tokenizer)

    @property
    def adapters_alone(self) -> bool:
        """Whether a publish sends adapters, and no weight of their base."""
        return bool(getattr(self.backend, "adapters_alone", False))

    def start(self, engine: str) -> None:
        """Send weights for the first time, where the ranks of a world did not have them when the engine began.

        Raises:
            UserError: the setting ``generation.engine`` names an engine that cannot take them.
        """
        if self.world.size == 1:  # it got them when it was made
            return
        self._behind = True
        try:
            self._ready()
        except EngineError as error:
            raise UserError(f"generation.engine = {engine}: {error}") from error
        self.rest()

    def rest(self) -> None:
        """Give the accelerator's memory back; the next :meth:`generate` takes it again."""
        self.backend.rest()

    def publish(self, version: int) -> None:
        """Send the weights. If the engine does not answer, the next :meth:`generate` tries again first.

        So if a server died in the meantime, the step that made these weights still counts and can be saved.
        """
        with self._turns.publishing():
            self.world.any(False)  # another rank may still be sampling ahead
            self.version, self._behind = version, True
            try:
                self.catch_up()
            except EngineError:
                return

    def publish_later(self, version: int) -> None:
        """Let the next :meth:`generate` send the weights first; no other rank is waited for."""
        with self._turns.publishing():
            self.version, self._behind = version, True

    def catch_up(self) -> None:
        """Send the weights of the last publish, if they have not arrived; all ranks call it.

        Raises:
            EngineError: the engine does not answer.
        """
        if self._behind:
            self._on_all(lambda: self.backend.load(self.version))
            self._behind = False

    def generate_ahead(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """Of this rank's share of the ``requests`` the rollouts, in a thread of its own, while others train the weights
        and may sample. None of them if the engine lacks the weights of the last publish: they cannot be sent from here.
        """
        self._check(requests, sampling)
        with self._turns.sampling():
            mine = requests[part_of(len(requests), self.world.rank, self.world.size)]
            return [] if self._behind else self._sample(mine, sampling, draw)

    def _ready(self) -> None:
        with self._resting_on_error():
            self.catch_up()
            self._on_all(self.backend.wake)

    @contextmanager
    def _resting_on_error(self) -> Generator[None]:
        """After an error no rank's engine is awake, so that all begin again in the same way."""
        try:
            yield
        except BaseException:
            with suppress(EngineError):  # the first error is the one to report
                self.rest()
            raise

    def _on_all(self, work: Callable[[], None]) -> None:
        """``work`` on every rank; an error of one is raised on all.

        Without memory for a weight that all put together, this rank raises alone: the others wait where no message
        reaches them, and end with it.
        """
        failed: Exception | None = None
        try:
            work()
        except OutOfMemoryError:
            raise
        except Exception as error:
            failed = error
        self.world.raise_together(failed)

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """One rollout per request, in the same order.

        Raises:
            UserError: a request cannot be honoured; the engine was asked for nothing then.
            EngineError: the engine does not answer, or answers what cannot be used; on all ranks.
        """
        self._check(requests, sampling)
        self._ready()
        with self._resting_on_error():
            return self.world.shared(lambda share: self._sample(share, sampling, draw), requests, self.together)

    def generate_on_each(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        """As :meth:`generate`, but every rank asks its own engine for all of them: to compare engines.

        Raises:
            UserError, EngineError: as :meth:`generate`.
        """
        self._check(requests, sampling)
        self._ready()
        found: list[Rollout] = []
        with self._resting_on_error():
            self._on_all(lambda: found.extend(self._sample(requests, sampling, draw)))
        return found

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        begin(requests, sampling, self._rules[sampling.stop, sampling.after], self._ends)
        refuse_what_cannot_be_observed(requests, self.backend.name, entropy=False, most=self.backend.most_top_k)

    def _sample(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        rule = self._rules[sampling.stop, sampling.after]
        traces = begin(requests, sampling, rule, self._ends)
        keys = [trace_key(draw, r.problem_id, r.index) for r in requests]
        rows_of = _by_text(traces, lambda trace: rule.rest(trace.prefix))
        while rows_of:
            for stop, rows in rows_of.items():
                asked = [_ask(requests[i], traces[i], keys[i]) for i in rows]
                drawn = self.backend.draw(asked, sampling.temperature, stop, sorted(self._ends), sampling.top_p)
                for i, part in zip(rows, drawn, strict=True):
                    self._take(traces[i], part, rule, requests[i].observe.top_k)
            rows_of = _by_text(traces, lambda trace: rule.awaited(trace.ids, trace.prefix))
        return [trace.rollout(r, rule, self.version) for trace, r in zip(traces, requests, strict=True)]

    def _take(self, trace: Trace, part: Drawn, rule: StopRule, top_k: int) -> None:
        """Add what was sampled. An engine that stopped early is called again from there, as long as it returns more."""
        if not part.ids or len(part.ids) != len(part.log_probs):
            raise EngineError(
                f"{self.backend.name} returned {len(part.ids)} tokens with {len(part.log_probs)} log-probs for a trace "
                "that is not at its end"
            )
        if top_k and (len(part.top) != len(part.ids) or min(map(len, part.top)) < top_k):
            raise EngineError(f"{self.backend.name} was asked for the {top_k} likeliest tokens and returned fewer")
        seen = [_likeliest(told, top_k) for told in part.top] if top_k else [NOTHING] * len(part.ids)
        for token, log_prob, sight in zip(part.ids, part.log_probs, seen, strict=True):
            self.wasted += not trace.open
            trace.take(token, log_prob, rule, self._ends, sight)


class Turns:
    """Whether weights are sampled from or replaced: never both, and replacing goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sampling = self._publishing = False

    @contextmanager
    def sampling(self) -> Generator[None]:
        """Entered when nothing is being replaced; of one thread at a time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._publishing)
            self._sampling = True
        try:
            yield
        finally:
            with self._changed:
                self._sampling = False
                self._changed.notify_all()

    @contextmanager
    def publishing(self) -> Generator[None]:
        """Entered when nothing is sampled; nothing begins before it is left."""
        with self._changed:
            self._publishing = True
            self._changed.wait_for(lambda: not self._sampling)
        try:
            yield
        finally:
            with self._changed:
                self._publishing = False
                self._changed.notify_all()


def _by_text(traces: Sequence[Trace], upto: Callable[[Trace], str]) -> dict[str, list[int]]:
    """The unfinished rows, by the text that each has to be sampled ``upto``.

    An engine stops at its stop text wherever it occurs. A row that it stopped too early, as at a full stop of the
    reasoning, is continued up to the text that has to come before its end, and not up to every full stop. An engine
    searches only what it samples: of a text that begins in the row's given tokens it gets the rest.
    """
    found: dict[str, list[int]] = {}
    for i, trace in enumerate(traces):
        if trace.open:
            found.setdefault(upto(trace), []).append(i)
    return found


def _ask(request: Request, trace: Trace, key: int) -> Ask:
    """The row from where it is; its seed is the key at the position in the trace that is sampled next."""
    own = request.prefix_ids + tuple(trace.ids)
    seed = ((key + _ODD * len(own)) % 2**64) >> 1
    return Ask(request.prompt_ids + own, seed, trace.left, request.observe.top_k)


def _likeliest(told: Mapping[int, float], top_k: int) -> Seen:
    """The ``top_k`` likeliest tokens of those that an engine told, likeliest first."""
    ids, log_probs = zip(*sorted(told.items(), key=lambda pair: -pair[1])[:top_k], strict=True)
    return Seen(top_ids=ids, top_log_probs=log_probs)
