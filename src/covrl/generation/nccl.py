"""New weights to vLLM servers over NCCL, some layers at a time: vLLM's weight transfer with the backend ``nccl``.

The trainer is rank 0 of a group in which every worker of every server has a rank. For each piece the servers are told
names, shapes and dtypes over HTTP, and take the tensors that are broadcast meanwhile. vLLM has to be installed on the
trainer's side too, for its end of the group.

Written from the source of vLLM 0.32 and never run: no GPU was at hand. In tests a stand-in takes the group's place.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor

from covrl.errors import EngineError
from covrl.plugins import is_loopback


class Server(Protocol):
    """What is asked of a server."""

    address: str

    def ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Its answer; an EngineError where it refuses."""
        ...


class Group(Protocol):
    """The trainer's end of an NCCL group (vLLM's ``PyNcclCommunicator``)."""

    def broadcast(self, tensor: Tensor, src: int, stream: Any) -> None:
        """Send a tensor to all ranks, when the stream comes to it."""
        ...


OpenGroup = Callable[[str, int, int], Group]
"""From address, port and number of ranks to the trainer's end; returns when all ranks are there."""


def open_group(address: str, port: int, ranks: int) -> Group:
    """vLLM's own."""
    vllms = import_module("vllm.distributed.weight_transfer.nccl_common")
    return vllms.trainer_init({"master_address": address, "master_port": port, "world_size": ranks})


def join(servers: Sequence[Server], opened: OpenGroup = open_group) -> Group:
    """A group of the trainer and all workers of ``servers``.

    Raises:
        EngineError: a server refuses, or the group does not come about.
    """
    counts = [int(server.ask("/get_world_size", None)["world_size"]) for server in servers]
    address, port = _own_address(servers)
    offsets = [1 + sum(counts[:i]) for i in range(len(servers))]
    place = {"master_address": address, "master_port": port, "world_size": 1 + sum(counts), "packed": False}
    with ThreadPoolExecutor(len(servers)) as pool:  # they answer when all ranks are there
        waiting = [
            pool.submit(server.ask, "/init_weight_transfer_engine", {"init_info": place | {"rank_offset": offset}})
            for server, offset in zip(servers, offsets, strict=True)
        ]
        try:
            group = opened(address, port, 1 + sum(counts))
        except Exception as error:  # whatever NCCL or its rendezvous raises
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(f"no NCCL group of the trainer and {len(servers)} vLLM servers: {said}") from error
        for answer in waiting:
            answer.result()
    return group


def _own_address(servers: Sequence[Server]) -> tuple[str, int]:
    """Where the servers reach this process: the loopback interface if all are on this machine, and a free port."""
    away = [server.address for server in servers if not is_loopback(server.address)]
    address = "127.0.0.1"
    if away:
        parts = urlsplit(away[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:  # sends nothing
            towards.connect((parts.hostname, parts.port or 80))
            address = towards.getsockname()[0]
    with socket.socket() as free:
        free.bind((address, 0))
        return address, free.getsockname()[1]


def send(pieces: Iterator[Mapping[str, Tensor]], servers: Sequence[Server], group: Group) -> None:
    """Hand all ``pieces`` of the weights to the servers, which use them when the last is there.

    Raises:
        EngineError: a server refuses. The group is of no use after that.
    """
    with ThreadPoolExecutor(len(servers)) as pool:

        def on_each(path: str, body: Mapping[str, Any]) -> list[Any]:
            return [pool.submit(server.ask, path, body) for server in servers]

        _wait(on_each("/start_weight_update", {}))
        for piece in pieces:
            told = {
                "names": list(piece),
                "dtype_names": [str(w.dtype).removeprefix("torch.") for w in piece.values()],
                "shapes": [list(w.shape) for w in piece.values()],
            }
            taking = on_each("/update_weights", {"update_info": told})
            whole = [w.contiguous() for w in piece.values()]  # alive until they are sent
            for weight in whole:
                stream = torch.cuda.current_stream() if weight.is_cuda else None
                group.broadcast(weight, src=0, stream=stream)
            _wait(taking)
        _wait(on_each("/finish_weight_update", {}))
        _wait(on_each("/reset_prefix_cache", {}))  # computed with the old weights


def _wait(answers: Sequence[Any]) -> None:
    for answer in answers:
        answer.result()
