"""vLLM servers, on this machine or others, over HTTP; nothing but the standard library is needed on this side.

Written against vLLM 0.32, started with

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --generation-config vllm

New weights are exchanged in a folder that both sides see under the same path, some layers at a time: the trainer writes
safetensors there, and the server's ``reload_weights`` reads them; what is not in a file stays as it was (CONFIRMED in
its source). Over NCCL no file is written (:mod:`.nccl`). Of a LoRA run the adapter alone may be sent, each time under a
new name. The folder is in shared memory
where all servers are on this machine, else below the temporary folder; if ``TMPDIR`` is set, it is there. The server
answers anybody who can reach it, and its development endpoints load any file they are given: keep it on the loopback
interface or in a network of your own.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from covrl.config import addresses
from covrl.distributed.world import World
from covrl.errors import EngineError, UserError
from covrl.generation.handover import handed_over, layers_of
from covrl.generation.nccl import Group, join, send
from covrl.generation.outside import MOST_TOP_K, Ask, Drawn
from covrl.models.adapters import POLICY, save_adapter
from covrl.plugins import is_loopback
from covrl.remote import opener_for

ANSWER_WITHIN_S = 1800.0
"""Seconds after which one row, or one loading of weights, counts as lost."""


PIECE_BYTES = 512 << 20
"""Weights are handed over in pieces of so many bytes; a layer that has more is a piece of its own."""

SHARED_MEMORY = Path("/dev/shm")
"""Where processes of a Linux machine exchange files without a disk."""


class ServerVllm:
    """A :class:`covrl.generation.outside.Backend` on one server or several.

    ``address``: of each, with commas between them. ``model`` is the trained model, whose weights are published;
    ``rows`` how many requests run at the same time; ``dtype`` what weights are sent in. Of a ``world`` each rank asks
    its own servers, or shares one where there are fewer; the first rank sends the weights to all. ``way``: by "files",
    over "nccl", or "adapters" alone, where the servers hold the base already.
    """

    most_top_k = MOST_TOP_K
    apart = True

    def __init__(
        self,
        address: str,
        model: Any,
        rows: int,
        world: World | None = None,
        dtype: torch.dtype | None = None,
        way: str = "files",
    ) -> None:
        world = world or World()
        self._servers = [_Server(one) for one in addresses(address)]
        self._own = self._servers[world.rank :: world.size] or [self._servers[world.rank % len(self._servers)]]
        self.name = " and ".join(server.name for server in self._servers)
        self._model, self._rows, self._dtype = model, rows, dtype
        self._sends = world.first
        self._way = way
        self._group: Group | None = None
        if self._sends:
            self._folder = _folder([server.address for server in self._servers])
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for server in self._servers:
            server.find_model()
        self._name, self._loads = world.broadcast(f"covrl-{secrets.token_hex(4)}"), 0
        if world.size > 1:  # the ranks' weights are not there yet
            return
        try:
            self.load(0)
        except EngineError as error:
            raise UserError(f"generation.engine = {address}: {error}") from error

    @property
    def adapters_alone(self) -> bool:
        """Whether no weight of the base is sent."""
        return self._way == "adapters"

    def wake(self) -> None:
        """Nothing: a server does not sleep."""

    def rest(self) -> None:
        """Nothing: its memory is not the trainer's."""

    def draw(
        self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int], top_p: float = 1.0
    ) -> list[Drawn]:
        """Each row is a request of its own, as each has its own seed; this rank's servers take turns."""
        common = {
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
        asked = zip(cycle(self._own), rows)
        with ThreadPoolExecutor(min(self._rows, max(len(rows), 1))) as pool:
            return list(pool.map(lambda pair: pair[0].draw(pair[1], common), asked))

    def load(self, version: int) -> None:
        """Hand over the weights, a piece at a time: what was read is deleted before the next is written."""
        folder = getattr(self, "_folder", Path()) / f"step-{version:06d}"
        if self.adapters_alone:
            self._loads += 1  # the same on all ranks
            self._send_adapter(f"{self._name}-{self._loads}", folder)
            return
        with handed_over(layers_of(self._model, self._dtype)) as layers:
            if not self._sends:
                return
            if self._way == "nccl":
                self._group = self._group or join(self._servers)
                send(_pieces(layers), self._servers, self._group)
                return
            try:
                for number, weights in enumerate(_pieces(layers)):
                    self._send(weights, folder / f"{number:03d}")
                self._on_each(lambda server: server.ask("/reset_prefix_cache", {}))  # computed with the old weights
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _send(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        def write() -> None:
            folder.mkdir(parents=True)
            save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors")

        what = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._exchange(folder, write, lambda server: server.ask("/collective_rpc", what))

    def _send_adapter(self, name: str, folder: Path) -> None:
        """Let servers load the adapter, which is whole on every rank, under a new ``name``, and unload the last one.

        Under the same name (vLLM's ``load_inplace``) a server would read the folder again whenever it computes, and
        keep what prompts were read as with the last one (CONFIRMED in its source).
        """
        if self._sends:
            what = {"lora_name": name, "lora_path": str(folder)}
            write = partial(save_adapter, self._model, POLICY, folder)
            self._exchange(folder, write, lambda server: server.tell("/v1/load_lora_adapter", what))
            self._on_each(_Server.unload)
        for server in self._servers:
            server.served = server.adapter = name

    def _exchange(self, folder: Path, write: Callable[[], None], take: Callable[[_Server], object]) -> None:
        """Let the servers take what is written to ``folder``, which is gone afterwards."""
        try:
            write()
            self._on_each(take)
        except (OSError, SafetensorError) as error:  # safetensors' own error for a full disk
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise EngineError(
                f"the new weights for {self.name} cannot be written to {folder} ({why}); TMPDIR names another disk"
            ) from error
        except EngineError as error:
            raise EngineError(f"{error} (the new weights are in {folder}: does the server see that folder?)") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _on_each(self, work: Callable[[_Server], object]) -> None:
        """``work`` on all servers at a time; the first error in their order is raised."""
        with ThreadPoolExecutor(len(self._servers)) as pool:
            list(pool.map(work, self._servers))


def _folder(servers: Sequence[str]) -> Path:
    """A folder for weights: where ``TMPDIR`` says, else in shared memory if all servers are on this machine.

    Raises:
        UserError: there is none.
    """
    shared = "TMPDIR" not in os.environ and all(map(is_loopback, servers)) and os.access(SHARED_MEMORY, os.W_OK)
    try:
        return Path(tempfile.mkdtemp(prefix="covrl-weights-", dir=SHARED_MEMORY if shared else None))
    except OSError as error:
        said = f"generation.engine = {','.join(servers)}: no temporary folder for the weights: {error}"
        raise UserError(said) from error


def _pieces(layers: Iterator[tuple[str, dict[str, Tensor]]]) -> Iterator[dict[str, Tensor]]:
    """Whole layers, as many at a time as :data:`PIECE_BYTES` hold."""
    held: dict[str, Tensor] = {}
    for _, weights in layers:
        if held and sum(w.nbytes for w in (*held.values(), *weights.values())) > PIECE_BYTES:
            yield held
            held = {}
        held |= weights
    if held:
        yield held


class _Server:
    """One server: its address, and the names of the model that it is asked for and of the adapter that it holds."""

    def __init__(self, address: str) -> None:
        self.name = f"the vLLM server at {address}"
        self.address = address
        self._opener = opener_for(address)
        self.served = self.adapter = ""

    def find_model(self) -> None:
        """Ask for the model's name.

        Raises:
            UserError: no vLLM server answers.
        """
        try:
            self.served = str(self.ask("/v1/models", None, 30.0)["data"][0]["id"])
        except EngineError as error:
            raise UserError(f"generation.engine = {self.address}: {error}") from error
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"generation.engine = {self.address}: what answers there is no vLLM server") from error

    def unload(self) -> None:
        """Forget the adapter that it was asked for last, if there is one."""
        if self.adapter:
            self.tell("/v1/unload_lora_adapter", {"lora_name": self.adapter})

    def draw(self, row: Ask, common: Mapping[str, Any]) -> Drawn:
        """Sample one row.

        Raises:
            EngineError: it does not answer, or not with token ids and log-probs.
        """
        own: dict[str, Any] = {"prompt": list(row.ids), "seed": row.seed, "max_tokens": row.max_tokens}
        own |= {"logprobs": row.top_k, "model": self.served}
        answer = self.ask("/v1/completions", {**common, **own})
        try:
            choice = answer["choices"][0]
            told = choice["logprobs"]
            top = tuple(map(_by_id, told["top_logprobs"])) if row.top_k else ()
            return Drawn(tuple(choice["token_ids"]), tuple(map(float, told["token_logprobs"])), top)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"{self.name} answers without token ids and log-probs; vLLM 0.32 or newer is needed"
            ) from error

    def ask(self, path: str, body: Mapping[str, Any] | None, within: float = ANSWER_WITHIN_S) -> Any:
        """What the server answers, as JSON; a GET without a ``body``.

        Raises:
            EngineError: it does not answer, or refuses; the message has its address and its answer.
        """
        said = self.tell(path, body, within)
        try:
            return json.loads(said) if said else {}
        except ValueError as error:
            raise EngineError(f"{self.name} does not answer in JSON at {path}") from error

    def tell(self, path: str, body: Mapping[str, Any] | None, within: float = ANSWER_WITHIN_S) -> bytes:
        """The same, as it comes.

        Raises:
            EngineError: as :meth:`ask`.
        """
        key = os.environ.get("VLLM_API_KEY", "").strip()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with self._opener.open(Request(self.address + path, data, headers), timeout=within) as answer:
                return answer.read()
        except HTTPError as error:
            raise EngineError(f"{self.name} {_refusal(error, path)}") from error
        except (URLError, OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise EngineError(f"{self.name} does not answer ({why or type(error).__name__}); {ADVICE}") from error


def _by_id(told: Mapping[str, float]) -> dict[int, float]:
    """Log-probs by token id, from those by the names ``token_id:ID``."""
    return {int(name.removeprefix("token_id:")): float(value) for name, value in told.items()}


ADVICE = "start it (docs/engines.md has the command); a run goes on from its checkpoint with --resume"


def _refusal(error: HTTPError, path: str) -> str:
    if error.code == 404 and path in ("/collective_rpc", "/reset_prefix_cache", "/get_world_size"):
        return f"has no {path}, by which it gets new weights; start it with VLLM_SERVER_DEV_MODE=1"
    if path == "/init_weight_transfer_engine":
        return f'refuses {path} ({error.code}); start it with --weight-transfer-config \'{{"backend": "nccl"}}\''
    if error.code == 404 and path == "/v1/load_lora_adapter":
        return f"has no {path}; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
    if 300 <= error.code < 400:
        return f"answers {path} with a redirect ({error.code}), which is not followed; give the address that it is at"
    if error.code in (401, 403):
        return "wants a key: set VLLM_API_KEY to the one that it was started with"
    try:
        said = json.loads(error.read())["error"]["message"]
    except (ValueError, KeyError, TypeError, OSError):
        said = error.reason
    return f"refuses {path} ({error.code}): {' '.join(str(said).split())[:300]}"
