"""A vLLM server, on this machine or another, over HTTP; nothing but the standard library is needed on this side.

Written against vLLM 0.32, started with

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm

New weights are exchanged in a folder that both sides see under the same path: the trainer writes safetensors below its
temporary folder (``TMPDIR``), and the server's ``reload_weights`` reads them. The server answers anybody who can reach
it, and its development endpoints load any file they are given: keep it on the loopback interface or in a network of
your own.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

from safetensors import SafetensorError

from covrl.errors import EngineError, UserError
from covrl.generation.outside import MOST_TOP_K, Ask, Drawn, weights_of
from covrl.remote import opener_for

ANSWER_WITHIN_S = 1800.0
"""Seconds after which one row, or one loading of weights, counts as lost."""


class ServerVllm:
    """A :class:`covrl.generation.outside.Backend`.

    ``model`` is the trained model, whose weights are published; ``rows`` how many requests run at the same time.
    """

    most_top_k = MOST_TOP_K

    def __init__(self, address: str, model: Any, rows: int) -> None:
        self.name = f"the vLLM server at {address}"
        self._address = address
        self._opener = opener_for(address)
        self._model = model
        self._rows = rows
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="covrl-weights-"))
        except OSError as error:
            raise UserError(f"generation.engine = {address}: no temporary folder for the weights: {error}") from error
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        try:
            self._served = str(self._ask("/v1/models", None, 30.0)["data"][0]["id"])
            self.load(0)
        except EngineError as error:
            raise UserError(f"generation.engine = {address}: {error}") from error
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"generation.engine = {address}: what answers there is no vLLM server") from error

    def draw(
        self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int], top_p: float = 1.0
    ) -> list[Drawn]:
        """Each row is a request of its own, as each has its own seed."""
        common = {
            "model": self._served,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop": [stop],
            "stop_token_ids": list(ends),
            "include_stop_str_in_output": True,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # the likeliest tokens too are told by id: several may look alike
        }
        with ThreadPoolExecutor(min(self._rows, max(len(rows), 1))) as pool:
            return list(pool.map(lambda row: self._draw(row, common), rows))

    def _draw(self, row: Ask, common: Mapping[str, Any]) -> Drawn:
        own = {"prompt": list(row.ids), "seed": row.seed, "max_tokens": row.max_tokens, "logprobs": row.top_k}
        answer = self._ask("/v1/completions", {**common, **own})
        try:
            choice = answer["choices"][0]
            told = choice["logprobs"]
            top = tuple(map(_by_id, told["top_logprobs"])) if row.top_k else ()
            return Drawn(tuple(choice["token_ids"]), tuple(map(float, told["token_logprobs"])), top)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"{self.name} answers without token ids and log-probs; vLLM 0.32 or newer is needed"
            ) from error

    def load(self, version: int) -> None:
        folder = self._folder / f"step-{version:06d}"
        try:
            self._write(folder)
            self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self._ask("/reset_prefix_cache", {})  # its content was computed with the old weights
        except _NotWrittenError:
            raise
        except EngineError as error:
            raise EngineError(f"{error} (the new weights are in {folder}: does the server see that folder?)") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        try:
            self._model.save_pretrained(folder, state_dict=dict(weights_of(self._model)))
        except (OSError, SafetensorError) as error:  # safetensors' own error for a full disk
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise _NotWrittenError(
                f"the new weights for {self.name} cannot be written to {folder} ({why}); TMPDIR names another disk"
            ) from error

    def _ask(self, path: str, body: Mapping[str, Any] | None, within: float = ANSWER_WITHIN_S) -> Any:
        """What the server answers, as JSON; a GET without a ``body``.

        Raises:
            EngineError: it does not answer, or refuses; the message has its address and its answer.
        """
        key = os.environ.get("VLLM_API_KEY", "").strip()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with self._opener.open(Request(self._address + path, data, headers), timeout=within) as answer:
                said = answer.read()
            return json.loads(said) if said else {}
        except HTTPError as error:
            raise EngineError(f"{self.name} {_refusal(error, path)}") from error
        except (URLError, OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise EngineError(f"{self.name} does not answer ({why or type(error).__name__}); {ADVICE}") from error
        except ValueError as error:
            raise EngineError(f"{self.name} does not answer in JSON at {path}") from error


def _by_id(told: Mapping[str, float]) -> dict[int, float]:
    """Log-probs by token id, from those by the names ``token_id:ID``."""
    return {int(name.removeprefix("token_id:")): float(value) for name, value in told.items()}


class _NotWrittenError(EngineError):
    """The weights did not reach the server."""


ADVICE = "start it (docs/engines.md has the command); a run goes on from its checkpoint with --resume"


def _refusal(error: HTTPError, path: str) -> str:
    if error.code == 404 and path in ("/collective_rpc", "/reset_prefix_cache"):
        return f"has no {path}, by which it gets new weights; start it with VLLM_SERVER_DEV_MODE=1"
    if 300 <= error.code < 400:
        return f"answers {path} with a redirect ({error.code}), which is not followed; give the address that it is at"
    if error.code in (401, 403):
        return "wants a key: set VLLM_API_KEY to the one that it was started with"
    try:
        said = json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        said = error.reason
    return f"refuses {path} ({error.code}): {' '.join(str(said).split())[:300]}"
