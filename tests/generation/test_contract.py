"""The contract of :mod:`generation.contract` on every engine: torch, vLLM and a vLLM server, faked and, where it is
installed, real. And the proof that the contract notices an engine that is broken."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import torch
from contract import CONTRACT, Make
from models import prove
from real_vllm import need_vllm, start_server

from covrl.config import LoraConfig
from covrl.generation import decoding
from covrl.generation.base import Draw, Generator, Sampling
from covrl.generation.engine import DecodingPaths, TorchGenerator
from covrl.generation.outside import OutsideGenerator
from covrl.generation.vllm_local import LocalVllm
from covrl.generation.vllm_server import ServerVllm
from covrl.models.adapters import adapter_weights, add_adapter
from covrl.models.model import LanguageModel
from covrl.records import Observe, Request, Rollout

TORCH = ["torch", "torch with shared prompts", "torch in recorded steps", "torch padded", "torch uncached"]
ADAPTERS = "fake server of adapters"
ENGINES = [*TORCH, "fake vllm", "fake vllm that sleeps", "fake server", ADAPTERS, "vllm", "server"]
MORTAL = ["fake server", "server"]
"""Those that can die apart from the trainer."""

ROWS = 16


def folder_of(root: Path, model: Any, tokenizer: Any) -> str:
    """Where ``model`` is written, a place for each vocabulary: an engine keeps its tokenizer when weights change."""
    folder = root / str(len(tokenizer))
    if not folder.exists():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def local(source: str, model: Any) -> LocalVllm:
    return LocalVllm(source, model, "float32", 0.1, ROWS)


def torch_engine(how: str) -> Callable[[Path, contextlib.ExitStack], Make]:
    """The torch engine in one way of decoding; "torch": as it is before anything is proved."""
    paths = {
        "torch with shared prompts": DecodingPaths(),
        "torch in recorded steps": DecodingPaths(recorded=True),
        "torch padded": DecodingPaths(shared=False),
        "torch uncached": DecodingPaths(shared=False, padded=False, cached=False),
    }

    def make(model: Any, tokenizer: Any) -> Generator:
        engine = TorchGenerator(model, tokenizer, ROWS)
        if how in paths:
            prove(LanguageModel(model))  # which gives it the attention that shared prompts need
            engine.paths = paths[how]
        return engine

    return lambda root, stack: make


def fake_local(root: Path, stack: contextlib.ExitStack) -> Make:
    def make(model: Any, tokenizer: Any) -> Generator:
        model.save_pretrained(root / "model")
        tokenizer.save_pretrained(root / "model")
        return OutsideGenerator(local(str(root / "model"), model), model, tokenizer)

    return make


class Sleeper(OutsideGenerator):
    """As on an accelerator, where the engine sleeps while others work and has lost its weights when it wakes."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        try:
            return super().generate(requests, sampling, draw)
        finally:
            self.rest()


def fake_sleeper(root: Path, stack: contextlib.ExitStack) -> Make:
    def make(model: Any, tokenizer: Any) -> Generator:
        backend: Any = fake_local(root, stack)(model, tokenizer).backend  # ty: ignore
        backend._sleeps = True
        backend._llm.settings["enable_sleep_mode"] = True
        return Sleeper(backend, model, tokenizer)

    return make


def fake_server(root: Path, stack: contextlib.ExitStack) -> Make:
    def make(model: Any, tokenizer: Any) -> Generator:
        server = stack.enter_context(fake_vllm.serve(folder_of(root, model, tokenizer)))
        make.kill = server.stop
        return OutsideGenerator(ServerVllm(server.address, model, ROWS), model, tokenizer)

    return make


def fake_server_of_adapters(root: Path, stack: contextlib.ExitStack) -> Make:
    """The model has an adapter that matters, which is all that the server gets."""
    pytest.importorskip("peft")

    def make(model: Any, tokenizer: Any) -> Generator:
        folder = root / "base"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        add_adapter(model, LoraConfig(rank=2), 0, str(folder))
        noise = torch.Generator().manual_seed(1)
        for name, weight in adapter_weights(model).items():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight, std=0.1, generator=noise)
        server = stack.enter_context(fake_vllm.serve(str(folder)))
        return OutsideGenerator(ServerVllm(server.address, model, ROWS, way="adapters"), model, tokenizer)

    return make


REAL_ENGINES: dict[tuple[str, int], Any] = {}
"""Real engines take long to start: one for each vocabulary serves all checks, as its weights can be replaced."""


def real_local(root: Path, stack: contextlib.ExitStack) -> Make:
    def make(model: Any, tokenizer: Any) -> Generator:
        key = ("vllm", len(tokenizer))
        if key not in REAL_ENGINES:
            REAL_ENGINES[key] = local(folder_of(root, model, tokenizer), model)
        REAL_ENGINES[key]._model = model
        engine = OutsideGenerator(REAL_ENGINES[key], model, tokenizer)
        engine.publish(0)
        return engine

    return make


def real_server(root: Path, stack: contextlib.ExitStack) -> Make:
    def make(model: Any, tokenizer: Any) -> Generator:
        key = ("server", len(tokenizer))
        if key not in REAL_ENGINES:
            REAL_ENGINES[key] = start_server(folder_of(root, model, tokenizer), root / f"{len(tokenizer)}.log")
        make.kill = lambda: end(REAL_ENGINES.pop(key)[1], "kill")
        return OutsideGenerator(ServerVllm(REAL_ENGINES[key][0], model, ROWS), model, tokenizer)

    return make


MAKERS: dict[str, Callable[[Path, contextlib.ExitStack], Make]] = {
    **{how: torch_engine(how) for how in TORCH},
    "fake vllm": fake_local,
    "fake vllm that sleeps": fake_sleeper,
    "fake server": fake_server,
    ADAPTERS: fake_server_of_adapters,
    "vllm": real_local,
    "server": real_server,
}


def end(process: Any, how: str) -> None:
    getattr(process, how)()
    process.wait()


@pytest.fixture(scope="module", autouse=True)
def _real_engines_end() -> Iterator[None]:
    yield
    for (kind, _), engine in REAL_ENGINES.items():
        if kind == "server":
            end(engine[1], "terminate")
    REAL_ENGINES.clear()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@contextlib.contextmanager
def maker(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    if name in ("vllm", "server"):
        need_vllm()
    if name == "torch with shared prompts":  # from the first row on, and for prompts of any length
        monkeypatch.setattr(decoding, "LONG", 1)
        monkeypatch.setattr(decoding, "MANY", 1)
    if name.startswith("fake"):
        monkeypatch.setitem(sys.modules, "vllm", fake_vllm)  # ty: ignore
    with contextlib.ExitStack() as stack:
        yield MAKERS[name](root, stack)


CASES = [
    (check, engine)
    for check in CONTRACT
    for engine in (MORTAL if "dies" in check else ENGINES)
    if (check, engine) != ("a_publish_changes_the_next_sample", ADAPTERS)  # which publishes all weights
]


@pytest.mark.parametrize(("check", "engine"), CASES)
def test_the_contract(check: str, engine: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with maker(engine, root, monkeypatch) as make:
        CONTRACT[check](make)


CAUGHT_BY = {
    "stop": "a_trace_ends_at_the_stop_text_or_at_its_limit",
    "seed": "a_sample_depends_on_its_key_alone",
    "log-prob": "log_probs_are_the_models_own",
    "top-p": "a_nucleus_is_sampled_from_its_tokens_alone",
    "top-k": "the_likeliest_tokens_come_back_where_they_are_asked_for",
    "prefix": "a_prefix_is_read_and_part_of_the_text_and_not_returned_as_sampled",
    "seam": "an_end_that_begins_in_the_prefix_counts",
    "budget": "a_request_has_its_own_budget",
    "entropy": "what_cannot_be_observed_is_refused_before_anything_is_sampled",
    "publish": "a_publish_changes_the_next_sample",
    "publish in part": "a_publish_changes_the_next_sample",
    "stale cache": "a_publish_changes_the_next_sample",
}


@pytest.mark.parametrize(
    ("engine", "broken"), [(engine, how) for engine in ("fake vllm", "fake server") for how in fake_vllm.MUTANTS]
)
def test_the_contract_rejects_an_engine_that_is_broken(
    engine: str, broken: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with maker(engine, root, monkeypatch) as make:
        if engine != "fake server":  # whose control, the contract itself, takes seconds
            CONTRACT[CAUGHT_BY[broken]](make)
        monkeypatch.setattr(fake_vllm.LLM, "broken", broken)
        with pytest.raises(AssertionError):
            CONTRACT[CAUGHT_BY[broken]](make)


class Broken:
    """The torch engine with one promise broken in what it returns: the contract judges engines, not one adapter."""

    def __init__(self, inner: TorchGenerator, how: str) -> None:
        self.inner, self.how, self.calls = inner, how, 0

    def publish(self, version: int) -> None:
        self.inner.publish(version)

    def generate(self, requests: list[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        self.calls += 1
        if self.how == "seed":
            draw = Draw(self.calls, draw.step, draw.purpose)
        own, requests = requests, [self._asked(r) for r in requests]
        if self.how == "stop":
            sampling = Sampling(sampling.max_tokens, "\x00never", sampling.temperature)
        if self.how == "top-p":
            sampling = replace(sampling, top_p=1.0)
        found = self.inner.generate(requests, sampling, draw)
        found = [replace(self._told(r), request=asked) for r, asked in zip(found, own, strict=True)]
        if self.how == "log-prob":
            found = [replace(r, log_probs=tuple(x - 0.01 for x in r.log_probs)) for r in found]
        return found

    def _asked(self, request: Request) -> Request:
        """The request without what this engine does not know."""
        if self.how == "budget":
            return replace(request, max_tokens=None)
        if self.how == "seam":
            return replace(request, prompt_ids=request.prompt_ids + request.prefix_ids, prefix_ids=())
        return replace(request, observe=Observe()) if self.how == "entropy" else request

    def _told(self, rollout: Rollout) -> Rollout:
        observed = rollout.observed
        if self.how == "top-k" and observed.top_ids is not None:
            return replace(rollout, observed=observed._replace(top_ids=tuple(row[::-1] for row in observed.top_ids)))
        if self.how == "prefix":
            return replace(rollout, text=rollout.text[len(rollout.request.prefix_ids) :])
        return rollout


@pytest.mark.parametrize(
    "broken", ["stop", "seed", "log-prob", "top-p", "publish", "top-k", "prefix", "seam", "budget", "entropy"]
)
def test_the_contract_rejects_any_engine_that_breaks_a_promise(broken: str) -> None:
    """And takes the same engine, wrapped alike, where nothing is broken: the wrapper is not what it rejects."""

    def wrapped(how: str) -> Make:
        def make(model: Any, tokenizer: Any) -> Generator:
            own = copy.deepcopy(model) if how == "publish" else model
            return Broken(TorchGenerator(own, tokenizer, ROWS), how)  # ty: ignore

        return make

    CONTRACT[CAUGHT_BY[broken]](wrapped("nothing"))
    with pytest.raises(AssertionError):
        CONTRACT[CAUGHT_BY[broken]](wrapped(broken))
