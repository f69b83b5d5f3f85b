"""A process reward model behind an HTTP server, as a scorer of steps. Nothing but the standard library is needed here.

Two protocols:

``plain``, ours, for any server that somebody writes. A POST of

    {"items": [{"question": "6 x 7?", "answer": null, "steps": ["6 x 7 = 42\\n", "so 42"]}]}

to the address is answered by ``{"scores": [[0.98, 0.91]]}``: a list an item, a number a step.

``vllm``, a model that vLLM serves with its step pooling, such as Qwen2.5-Math-PRM. A POST to ``/pooling`` at the
address holds a chat whose last turn is the steps with a mark after each; the answer has the class probabilities at each
mark, of which ``positive`` says which one is the score (CONFIRMED-2nd: vLLM's documentation and clients of others; it
was not run against a real vLLM).
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, Request

from covrl.errors import EngineError, UserError
from covrl.remote import opener_for
from covrl.rewards.calls import CallFailedError, Calls, results_of
from covrl.rewards.steps import StepsToScore

MOST_BYTES = 64 << 20
"""Of an answer."""

FIRST_PAUSE_S = 0.25
"""Seconds before the first repetition of a request; before each further one twice as many."""

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of a server that may answer the same request a little later."""


@dataclass(frozen=True, slots=True)
class StepServer:
    """Scores steps by a server at ``address``, ``http://HOST:PORT`` and a path.

    Example:
        >>> scorer = StepServer("http://127.0.0.1:8001", "vllm", model="Qwen/Qwen2.5-Math-PRM-7B")

    ``timeout_s`` bounds each request (seconds), ``retries`` how often one is repeated that failed or found the server
    busy, and ``at_once`` how many are under way. ``traces`` go into one request of the plain protocol. ``key`` is sent
    as a bearer token, to this address only. ``mark``, ``system`` and ``positive`` (index of the score among the numbers
    at a mark; -1: the last) are of the vllm protocol; the defaults are those of Qwen2.5-Math-PRM.

    Raises:
        UserError: the address or a limit cannot be used.
    """

    address: str
    protocol: Literal["plain", "vllm"] = "plain"
    model: str = ""
    key: str = ""
    timeout_s: float = 60.0
    retries: int = 2
    at_once: int = 16
    traces: int = 16
    mark: str = "<extra_0>"
    system: str = "Please reason step by step, and put your final answer within \\boxed{}."
    positive: int = -1

    def __post_init__(self) -> None:
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise UserError(
                f"step scorer: {self.address!r} is no address; expected http://HOST:PORT, and a key apart from it"
            )
        if self.protocol not in ("plain", "vllm"):
            raise UserError(f"step scorer: protocol = {self.protocol!r}: known are plain and vllm")
        for name, least in (("timeout_s", 1e-3), ("retries", 0), ("at_once", 1), ("traces", 1)):
            if not getattr(self, name) >= least:
                raise UserError(f"step scorer: {name} = {getattr(self, name)!r}: it must be at least {least:g}")

    @property
    def name(self) -> str:
        """The scorer as messages name it."""
        return f"the process reward model at {self.address}"

    def __call__(self, asked: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
        """The score of each step of each trace.

        Raises:
            EngineError: the server does not answer, or answers what cannot be used; with its address and why.
        """
        size = self.traces if self.protocol == "plain" else 1
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        ask = self._plain if self.protocol == "plain" else self._pooled
        opener = opener_for(self.address)
        try:
            (found,) = results_of([Calls([partial(ask, opener, part) for part in parts], 0.0, self.at_once)])
        except CallFailedError as error:
            if isinstance(error.__cause__, EngineError):
                raise error.__cause__ from error
            raise
        return [row for part in found for row in part]

    def _plain(self, opener: OpenerDirector, part: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
        items = [{"question": each.question, "answer": each.answer, "steps": list(each.steps)} for each in part]
        said = self._post(opener, self.address, {"items": items})
        return self._read(said, part, lambda: [tuple(map(_number, row)) for row in said["scores"]])

    def _pooled(self, opener: OpenerDirector, part: Sequence[StepsToScore]) -> list[tuple[float, ...]]:
        (only,) = part
        steps = [text.replace(self.mark, "") for text in only.steps]  # a trace must not mark steps of its own
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": only.question.replace(self.mark, "")},
            {"role": "assistant", "content": "".join(f"{text.strip()}{self.mark}" for text in steps)},
        ]
        body = {"model": self.model, "messages": messages if self.system else messages[1:]}
        said = self._post(opener, self.address.rstrip("/") + "/pooling", body)
        return self._read(said, part, lambda: [tuple(map(self._at_mark, said["data"][0]["data"]))])

    def _at_mark(self, given: Any) -> float:
        return _number(given[self.positive] if isinstance(given, list) else given)

    def _read(
        self, said: Any, part: Sequence[StepsToScore], rows: Callable[[], list[tuple[float, ...]]]
    ) -> list[tuple[float, ...]]:
        try:
            found = rows()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            shown = json.dumps(said)[:100]
            raise EngineError(f"{self.name} answers what is no list of scores: {shown}") from error
        counts, wanted = [len(row) for row in found], [len(each.steps) for each in part]
        if counts != wanted:
            raise EngineError(f"{self.name} gives {counts} scores for {wanted} steps of {len(part)} trace(s)")
        return found

    def _post(self, opener: OpenerDirector, url: str, body: Mapping[str, Any]) -> Any:
        """The answer as JSON; a request that may succeed later is repeated, ``retries`` times at most."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = Request(url, json.dumps(body).encode(), headers)
        why = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
            try:
                return json.loads(self._answer(opener, request))
            except HTTPError as error:
                why = f"refuses the request ({error.code}: {_reason(error)})"
                if error.code not in BUSY:
                    raise EngineError(f"{self.name} {why}") from error
            except (OSError, http.client.HTTPException) as error:  # URLError and a timeout are of the first kind
                reason = error.reason if isinstance(error, URLError) else error
                why = f"does not answer ({' '.join(str(reason).split())[:200] or type(reason).__name__})"
            except ValueError as error:
                raise EngineError(f"{self.name} does not answer in JSON") from error
        tried = f"{self.retries + 1} times, {self.timeout_s:g} s at most each"
        raise EngineError(f"{self.name} {why}; tried {tried}")

    def _answer(self, opener: OpenerDirector, request: Request) -> bytes:
        """All that is sent back, within the limit: the socket's own bounds each piece alone."""
        deadline = time.monotonic() + self.timeout_s
        said = b""
        with opener.open(request, timeout=self.timeout_s) as answer:
            while piece := answer.read1(1 << 16):
                said += piece
                if time.monotonic() > deadline:
                    raise TimeoutError("the answer came too slowly")
                if len(said) > MOST_BYTES:
                    raise EngineError(f"{self.name} answers more than {MOST_BYTES >> 20} MiB")
        return said


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _reason(error: HTTPError) -> str:
    """What the server says, in one line."""
    try:
        said = json.loads(error.read(1 << 16))
        text = said["error"]["message"] if isinstance(said.get("error"), dict) else said.get("error", error.reason)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        text = error.reason
    return " ".join(str(text).split())[:200]
