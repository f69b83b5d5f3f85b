"""Stands in for vLLM where it is not installed: the part of its interface that covrl uses, in process and over HTTP.

It has weights of its own, samples in its own way, and can be broken on purpose, to prove that the contract notices.
What it imitates was read off vLLM 0.32; ``docs/engines.md`` says which parts ran against the real one.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.core_model_loading import revert_weight_conversion

MUTANTS = ("stop", "seed", "log-prob", "top-p", "top-k", "publish", "publish in part", "stale cache")
ON_RANK = ("publish", "publish in part", "one layer")
"""What may be wrong with a single rank's engine, or a single server: it keeps all old weights, or some."""


@dataclass
class SamplingParams:
    """vLLM's, with its defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 16
    logprobs: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


class Group:
    """Stands in for an NCCL group: what the trainer broadcasts waits for each rank."""

    made: ClassVar[dict[tuple[str, int], Group]] = {}

    def __init__(self) -> None:
        self.sent: dict[int, Queue[torch.Tensor]] = {rank: Queue() for rank in range(1, 9)}
        self.here = 0
        self._changed = threading.Condition()

    @classmethod
    def of(cls, address: str, port: int) -> Group:
        """The one that meets there."""
        return cls.made.setdefault((address, port), cls())

    @classmethod
    def opened(cls, address: str, port: int, ranks: int) -> Group:
        """The trainer's end."""
        group = cls.of(address, port)
        group.enter(ranks, 1)
        return group

    def enter(self, ranks: int, count: int) -> None:
        """Returns when all are there."""
        with self._changed:
            self.here += count
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.here == ranks, timeout=60)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: None) -> None:
        """To all ranks but the sender."""
        assert src == 0
        assert stream is None
        assert tensor.is_contiguous()
        for queue in self.sent.values():
            queue.put(tensor.clone())


class LLM:
    """vLLM's, for a folder; ``broken`` names what it does wrong, ``made`` are those that were made."""

    broken: ClassVar[str | None] = None
    made: ClassVar[list[LLM]] = []

    def __init__(self, model: str, **settings: Any) -> None:
        if settings.get("distributed_executor_backend") == "external_launcher":  # torchrun's, with its groups of ranks
            assert int(os.environ["WORLD_SIZE"]) % settings["tensor_parallel_size"] == 0
            assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        self.settings = settings
        self.asked: list[tuple[int, ...]] = []
        self.woken = 0
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.fresh: dict[str, torch.Tensor] = {}
        self.adapters: dict[str, Any] = {}
        self.workers = 1
        self.group: Group | None = None
        self.rank = 0
        self.asleep: set[str] = set()
        self.slept = 0
        self.noise = torch.Generator().manual_seed(1)
        LLM.made.append(self)

    def generate(
        self, prompts: Sequence[dict[str, Any]], params: Sequence[SamplingParams], use_tqdm: bool, adapter: str = ""
    ) -> list[SimpleNamespace]:
        if self.asleep:
            raise RuntimeError("asked for samples while asleep")
        model = self.adapters[adapter] if adapter else self.model
        self.asked += [tuple(prompt["prompt_token_ids"]) for prompt in prompts]
        rows = [_Row(self, list(prompt["prompt_token_ids"]), p) for prompt, p in zip(prompts, params, strict=True)]
        while running := [row for row in rows if row.finish is None]:
            ids = [row.prompt + row.ids for row in running]
            padded = torch.tensor([r + [0] * (max(map(len, ids)) - len(r)) for r in ids])
            with torch.no_grad():
                logits = model(padded).logits
            for row, at, own in zip(running, logits, ids, strict=True):
                row.take(at[len(own) - 1])
        return [SimpleNamespace(outputs=[row.output()]) for row in rows]

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights"
        known = self._in_files()
        if "weights_path" in kwargs:  # some layers at a time: what is not there stays as it is
            weights = load_file(Path(kwargs["weights_path"]) / "model.safetensors")
            assert set(weights) <= set(known)
        else:
            weights = dict(kwargs["weights_iterator"])
            assert set(known) == set(weights)
        if self.broken == "publish":
            return [None]
        if self.broken == "ends":  # as one that has packed its output layer
            weights = {
                name: w for name, w in weights.items() if not name.endswith(("embed_tokens.weight", "lm_head.weight"))
            }
        if self.broken == "one layer":
            weights = {name: w for name, w in weights.items() if ".layers.1." not in name}
        if self.broken == "publish in part":  # as an engine that keeps packed copies of its matrices
            weights = {name: w for name, w in weights.items() if "proj" not in name}
        self.fresh |= {name: w.to(torch.float32, copy=True) for name, w in weights.items()}
        if self.slept:
            self._apply()
        return [None]

    def join(self, told: dict[str, Any]) -> None:
        """Take the ranks of a group of the trainer, as NCCL's; answers when all are there."""
        assert not told["packed"]
        self.rank, self.group = told["rank_offset"], Group.of(told["master_address"], told["master_port"])
        self.group.enter(told["world_size"], self.workers)

    def receive(self, told: dict[str, Any]) -> None:
        """Take the tensors that are broadcast, in the order in which they were told."""
        assert self.group is not None
        known = self._in_files()
        for name, dtype, shape in zip(told["names"], told["dtype_names"], told["shapes"], strict=True):
            tensor = self.group.sent[self.rank].get(timeout=60)
            assert (str(tensor.dtype), list(tensor.shape)) == (f"torch.{dtype}", shape)
            assert tensor.shape == known[name].shape
            if self.broken != "publish" and not (self.broken == "one layer" and ".layers.1." in name):
                self.fresh[name] = tensor.float()

    def load_adapter(self, name: str, folder: Path) -> None:
        """Hold an adapter of PEFT's, on the base, under a name; broken, it is the last one under the new name."""
        if name in self.adapters:
            raise ValueError(f"The lora adapter '{name}' has already been loaded.")
        table = json.loads((folder / "adapter_config.json").read_text())
        assert not table["use_dora"]
        weights = load_file(folder / "adapter_model.safetensors")
        if self.broken == "publish" and self.adapters:
            self.adapters[name] = next(reversed(self.adapters.values()))
            return
        model = copy.deepcopy(self.model)
        for key, a in weights.items():
            if ".lora_A." in key and not (self.broken == "one layer" and ".layers.1." in key):
                layer = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                delta = weights[key.replace("lora_A", "lora_B")] @ a * (table["lora_alpha"] / table["r"])
                with torch.no_grad():
                    layer.weight += delta
        self.adapters[name] = model

    def reset_prefix_cache(self) -> bool:
        """Until then, prompts that were read before are answered with the old weights."""
        if self.broken != "stale cache":
            self._apply()
        return True

    def _in_files(self) -> dict[str, torch.Tensor]:
        """The weights as a model's files have them: fused experts one by one."""
        return revert_weight_conversion(self.model, dict(self.model.named_parameters()))

    def _apply(self) -> None:
        if self.fresh.keys() - dict(self.model.named_parameters()).keys():  # only transformers can fuse experts
            with TemporaryDirectory() as folder:
                self.model.config.save_pretrained(folder)
                every = {name: w.detach().contiguous() for name, w in (self._in_files() | self.fresh).items()}
                save_file(every, Path(folder) / "model.safetensors")
                self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.fresh:
                    parameter.copy_(self.fresh[name])
        self.fresh = {}

    def sleep(self, level: int) -> None:
        assert level == 2
        assert self.settings["enable_sleep_mode"]
        self.asleep, self.slept = {"weights", "kv_cache"}, self.slept + 1
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()

    def wake_up(self, tags: Sequence[str]) -> None:
        self.woken += "weights" in tags
        self.asleep -= set(tags)


class _Row:
    def __init__(self, llm: LLM, prompt: list[int], params: SamplingParams) -> None:
        self.llm, self.prompt, self.params = llm, prompt, params
        self.ids: list[int] = []
        self.logs: list[float] = []
        self.told: list[dict[int, SimpleNamespace]] = []
        self.finish: str | None = None
        own = params.seed is not None and llm.broken != "seed"
        self.noise = torch.Generator().manual_seed(params.seed) if own else llm.noise  # ty: ignore

    def take(self, logits: torch.Tensor) -> None:
        p, llm = self.params, self.llm
        raw = torch.log_softmax(logits, -1)
        processed = torch.log_softmax(logits / (p.temperature or 1.0), -1)
        if p.top_p < 1 and llm.broken != "top-p":
            probs, ids = processed.exp().sort(descending=True)
            processed[ids[int((probs.cumsum(0) < p.top_p).sum()) + 1 :]] = -torch.inf
            processed = torch.log_softmax(processed, -1)
        draw = torch.empty_like(raw).exponential_(generator=self.noise)
        token = int(logits.argmax() if p.temperature == 0 else (processed.exp() / draw).argmax())
        told = processed if llm.settings.get("logprobs_mode") == "processed_logprobs" else raw
        self.ids.append(token)
        self.logs.append(float((raw if llm.broken == "log-prob" else told)[token]))
        self.told.append(self._told(told, token))
        text = llm.tokenizer.decode(self.ids, skip_special_tokens=p.skip_special_tokens)
        ends = [] if p.ignore_eos else [llm.tokenizer.eos_token_id]
        if llm.broken != "stop" and (any(s in text for s in p.stop) or token in (*p.stop_token_ids, *ends)):
            self.finish = "stop"
        elif len(self.ids) >= p.max_tokens:
            self.finish = "length"

    def _told(self, logs: torch.Tensor, token: int) -> dict[int, SimpleNamespace]:
        """The sampled token first, then the likeliest, as many as were asked for, among which it may be again."""
        if (most := self.params.logprobs or 0) > 20:
            raise ValueError(f"Requested sample logprobs of {most}, which is greater than max allowed: 20")
        if self.llm.broken == "top-k":
            logs = -logs
        best = logs.topk(most)
        found = {token: SimpleNamespace(logprob=self.logs[-1])}
        return found | {int(i): SimpleNamespace(logprob=float(x)) for x, i in zip(*best, strict=True)}

    def output(self) -> SimpleNamespace:
        return SimpleNamespace(token_ids=self.ids, logprobs=self.told, finish_reason=self.finish)


@dataclass
class Server:
    """A running fake server: its address, the engine behind it, the requests that it saw, and what it refuses."""

    address: str
    llm: LLM
    http: ThreadingHTTPServer
    seen: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    refuse: dict[str, Any] = field(default_factory=dict)
    die_at: str = ""

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def serve(folder: str, logprobs_mode: str = "processed_logprobs", lora: bool = True) -> Iterator[Server]:
    """``vllm serve`` on a free port of the loopback interface; ``lora``: with what loads adapters while it runs."""
    llm, lock = LLM(folder, logprobs_mode=logprobs_mode), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            server.gets.append(self.path)
            known = {"/v1/models": {"data": [{"id": folder}]}, "/get_world_size": {"world_size": llm.workers}}
            self._answer(200, known.get(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, body, dict(self.headers)))
            if server.die_at == self.path:
                self.connection.close()
                return
            if self.path == "/v1/load_lora_adapter" and not lora:
                self._answer(404, {"detail": "Not Found"})
                return
            if self.path in server.refuse:
                self._answer(*server.refuse[self.path])
                return
            with lock:
                try:
                    self._answer(200, self._do(body))
                except ValueError as error:
                    self._answer(400, {"error": {"message": str(error)}})

        def _do(self, body: dict[str, Any]) -> Any:
            if self.path == "/collective_rpc":
                return {"results": llm.collective_rpc(body["method"], body["kwargs"])}
            if self.path == "/reset_prefix_cache":
                return {"success": llm.reset_prefix_cache()}
            if self.path == "/init_weight_transfer_engine":
                llm.join(body["init_info"])
                return {"message": "Weight transfer initialized"}
            if self.path == "/start_weight_update":
                return {"message": "Weight update started"}
            if self.path == "/update_weights":
                llm.receive(body["update_info"])
                return {"message": "Weights updated"}
            if self.path == "/finish_weight_update":
                return {"message": "Weight update finished"}
            if self.path == "/v1/load_lora_adapter":
                llm.load_adapter(body["lora_name"], Path(body["lora_path"]))
                return b"Success: LoRA adapter added successfully."
            if self.path == "/v1/unload_lora_adapter":
                del llm.adapters[body["lora_name"]]
                return b"Success: LoRA adapter removed successfully."
            assert self.path == "/v1/completions"
            assert body["model"] == folder or body["model"] in llm.adapters
            known = SamplingParams.__dataclass_fields__
            row = llm.generate(
                [{"prompt_token_ids": body["prompt"]}],
                [SamplingParams(**{k: v for k, v in body.items() if k in known})],
                False,
                body["model"] if body["model"] in llm.adapters else "",
            )[0].outputs[0]
            logs = [by_id[i].logprob for i, by_id in zip(row.token_ids, row.logprobs, strict=True)]
            by_token = [{self._named(i, body): x.logprob for i, x in by_id.items()} for by_id in row.logprobs]
            told = {"token_logprobs": logs, "top_logprobs": by_token}
            choice = {"finish_reason": row.finish_reason, "logprobs": told}
            return {"choices": [choice | ({"token_ids": row.token_ids} if body.get("return_token_ids") else {})]}

        def _named(self, token: int, body: Mapping[str, Any]) -> str:
            return f"token_id:{token}" if body.get("return_tokens_as_token_ids") else llm.tokenizer.decode([token])

        def _answer(self, code: int, content: Any, headers: Mapping[str, str] = MappingProxyType({})) -> None:
            said = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(said)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

    class Http(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128

    http = Http(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}", llm, http)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
