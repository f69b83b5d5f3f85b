"""Engines outside of the trained model: what is asked of them, what happens when they fail, and whole runs on them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import real_vllm
import torch
from contract import DRAW, TOKENIZERS, assert_told_truly, model_of, requests, sample
from projects import write_rows
from real_vllm import need_vllm, start_server
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from covrl.api import build, resume, train, train_run
from covrl.cli.app import main
from covrl.config import RunConfig, check, config_from
from covrl.distributed.world import World
from covrl.errors import EngineError, TrainingStoppedError, UserError
from covrl.extras import install_command
from covrl.generation import engines, nccl, vllm_server
from covrl.generation.base import Sampling
from covrl.generation.engine import TorchGenerator
from covrl.generation.engines import make_generator
from covrl.generation.outside import Ask, Drawn, OutsideGenerator
from covrl.generation.vllm_local import LocalVllm
from covrl.generation.vllm_server import ServerVllm
from covrl.plugins import is_loopback
from covrl.records import StepReport
from covrl.reporting.sinks import read_metrics
from covrl.training.warm_format import warm_format

CONFIG: dict[str, Any] = {
    "model": {"device": "cpu"},
    "problems": {"train": "train.jsonl"},
    "prompts": {
        "user": "{question}",
        "prior_open": "=",
        "posterior_open": "({hint})=",
        "close": "e",
        "answer_prefix": ":",
        "answer_suffix": ";",
    },
    "generation": {"max_trace_tokens": 12, "max_answer_tokens": 4, "rows_per_pass": 4},
    "training": {"steps": 3, "problems_per_step": 2, "rollouts_per_problem": 4, "warmup_steps": 0},
    "checkpoint": {"every": 50},
    "guards": {"publish_check_every": 1},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model, four problems and a run file; fake vLLM in the place of the real one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)  # ty: ignore
    tokenizer = TOKENIZERS["characters"]()
    model_of(tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(4)]
    write_rows(Path("train.jsonl"), rows)
    lines = []
    for section, table in settings("torch").items():
        lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    Path("run.toml").write_text("\n".join(lines))
    return tmp_path


def settings(engine: str, **sections: Any) -> dict[str, Any]:
    """The run's settings; the learning rate moves weights by far more than rounding."""
    table = {name: dict(section) for name, section in CONFIG.items()}
    table["model"]["path"] = "model"
    table["training"]["learning_rate"] = 1e-3
    table["generation"]["engine"] = engine
    for name, values in sections.items():
        table.setdefault(name, {}).update(values)
    return table


@pytest.fixture
def server(project: Path) -> Iterator[fake_vllm.Server]:
    with fake_vllm.serve("model") as running:
        yield running


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command, line breaks taken out."""
    monkeypatch.setattr(sys, "argv", ["covrl", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), " ".join(capsys.readouterr().err.split())


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "server"])
@pytest.mark.parametrize("method", ["covrl", "rationalise"])
def test_a_run_trains_on_another_engine(engine: str, method: str, server: fake_vllm.Server) -> None:
    """Its samples have the trainer's log-probs up to rounding on every step, so the engine always had its weights."""
    address = server.address if engine == "server" else "vllm"
    trained = train(settings(address, algorithm={"name": method}), out="run")
    before, after = load_file("model/model.safetensors"), load_file(trained.last / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(trained.reports) == 3
    for report in trained.reports:
        assert 0 < report.metrics["sampler/gap_max"] < 1e-3
        assert report.metrics["sampler/truncated_share"] == 0
        assert report.metrics["guard/publish_gap"] < 1e-3
        assert not [w for w in report.warnings if "sampler" in w]


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_a_run_trains_on_the_real_one(engine: str, rank: int, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights, and LoRA adapters, which are handed over as whole matrices."""
    monkeypatch.delitem(sys.modules, "vllm")
    need_vllm()
    own = {"generation": {"engine_memory": 0.25}, "training": {"learning_rate": 1e-2}, "lora": {"rank": rank}}
    if engine == "vllm":
        trained = train(settings("vllm", **own), out="run")
    else:
        address, process = start_server(str(project / "model"), project / "log")
        trained = train(settings(address, **own), out="run")
        process.terminate()
        process.wait()
    for report in trained.reports:
        assert 0 < report.metrics["sampler/gap_max"] < 1e-3
        assert report.metrics["guard/publish_gap"] < 1e-3


def test_a_real_server_that_is_killed_ends_the_run_and_the_run_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vllm")
    need_vllm()
    address, process = start_server(str(project / "model"), project / "log")

    class Killer:
        def write(self, report: StepReport) -> None:
            process.kill()
            process.wait()

        def close(self) -> None:
            pass

    with pytest.raises(EngineError, match=f"the vLLM server at {address} does not answer .*--resume"):
        train(settings(address), out="run", sinks=[Killer()])
    other, process = start_server(str(project / "model"), project / "log")
    run = resume(Path("run"), engine=other)
    try:
        assert run.done == 1
        assert [r.step for r in train_run(run, Path("run")).reports] == [2, 3]
    finally:
        process.terminate()
        process.wait()


def test_vllm_that_cannot_be_imported_is_a_skip_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm.py").write_text("raise ImportError('its kernels are of another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setattr(real_vllm, "_why_not", real_vllm._why_not.__wrapped__)
    with pytest.raises(pytest.skip.Exception, match="cannot be imported: its kernels are of another torch"):
        need_vllm()


def test_on_the_torch_engine_the_correction_changes_no_byte_of_a_run(project: Path) -> None:
    found = []
    for level in ("token", "sequence", "off"):
        trained = train(settings("torch", generation={"sampler_correction": level}), out=level)
        found.append((trained.last / "model.safetensors").read_bytes())
        assert trained.reports[-1].metrics["sampler/gap_max"] < 1e-4
    assert found[0] == found[1] == found[2]


def test_warm_format_samples_from_the_weights_that_it_trains(project: Path) -> None:
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i), "solution": f"add {i}"} for i in range(4)]
    write_rows(Path("train.jsonl"), rows)
    run = build(check(RunConfig, settings("vllm", problems={"solution_field": "solution"})))
    list(warm_format(run, steps=2, rate=1e-2, until=2.0, every=1))
    engine = dict(fake_vllm.LLM.made[-1].model.named_parameters())
    for name, trained in run.models["policy"].model.named_parameters():
        assert torch.equal(engine[name], trained)


@pytest.mark.parametrize("broken", ["publish", "publish in part", "stale cache"])
def test_an_engine_that_keeps_old_weights_ends_the_run(
    broken: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_vllm.LLM, "broken", broken)
    with pytest.raises(TrainingStoppedError, match="the generator's log-probs of known rows"):
        train(settings("vllm", training={"learning_rate": 3e-2}), out="run")


@pytest.mark.parametrize("broken", ["ends", "one layer"])
def test_an_engine_that_takes_some_weights_is_found_before_the_first_step(
    broken: str, server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little a step moves them: the embedding and the output layer are changed on purpose too."""
    monkeypatch.setattr(server.llm, "broken", broken)
    with pytest.raises(TrainingStoppedError, match="stopped before step 1: its weights were changed on purpose"):
        train(settings(server.address, training={"learning_rate": 1e-9}), out="run")


def test_a_sampler_far_from_the_trainer_has_a_warning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reported log-prob without the temperature, say by a server that was started without processed_logprobs."""
    monkeypatch.setattr(fake_vllm.LLM, "broken", "log-prob")
    off = {"generation": {"temperature": 2.0}, "guards": {"publish_check_every": 0}}
    trained = train(settings("vllm", **off), out="run")
    assert all(any("sampler mismatch: its log-probs are" in w for w in r.warnings) for r in trained.reports)
    assert trained.reports[0].metrics["sampler/truncated_share"] > 0
    with pytest.raises(TrainingStoppedError, match="after publish the generator's log-probs"):
        train(settings("vllm", generation={"temperature": 2.0}), out="checked")


# --- a server that fails ------------------------------------------------------------------------------------------


def test_no_server_is_one_line_with_its_address(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_vllm.serve("model") as gone:
        pass
    code, said = command(
        monkeypatch,
        capsys,
        "train",
        "--config",
        "run.toml",
        "--out",
        "run",
        "--set",
        f"generation.engine={gone.address}",
    )
    assert code == 2
    assert f"generation.engine = {gone.address}: the vLLM server at {gone.address} does not answer" in said
    assert "Connection refused" in said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("at", "look", "kept"), [("/v1/completions", 0, 2), ("/collective_rpc", 0, 2), ("/collective_rpc", 1, 1)]
)
def test_a_server_that_dies_inside_a_run_ends_it_and_the_run_goes_on_on_another(
    at: str,
    look: int,
    kept: int,
    server: fake_vllm.Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was done is on disk, whether the server died while it sampled or when it was given new weights.

    Where the step would have ended in a look at the generator, that step is not whole and is taken again.
    """
    calls = {"publish": 0}
    load = ServerVllm.load

    def counting(self: ServerVllm, version: int) -> None:
        calls["publish"] += 1
        if calls["publish"] == 3 + 2 * look:  # before the run (twice more with changed weights), after step 1, after 2
            server.die_at = at
        load(self, version)

    monkeypatch.setattr(ServerVllm, "load", counting)
    arguments = ["train", "--config", "run.toml", "--out", "run", "--set", f"generation.engine={server.address}"]
    arguments += ["--set", f"guards.publish_check_every={look}", "--set", "checkpoint.every=1"]
    code, said = command(monkeypatch, capsys, *arguments)
    assert code == 1
    assert f"the vLLM server at {server.address} does not answer" in said
    assert "--resume" in said
    assert max(p.name for p in Path("run/checkpoints").glob("step-*")) == f"step-{kept:06d}"
    monkeypatch.setattr(ServerVllm, "load", load)
    with fake_vllm.serve("model") as other:
        file = Path("run/config.toml")
        file.write_text(file.read_text().replace(server.address, other.address))
        run = resume(Path("run"))
        assert any("resumed with generation.engine" in note for note in run.notes)
        assert len(train_run(run, Path("run")).reports) == 3 - kept
    assert [r.step for r in read_metrics(Path("run/metrics.jsonl"))] == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/collective_rpc", (404, {}), "has no /collective_rpc, .* start it with VLLM_SERVER_DEV_MODE=1"),
        ("/collective_rpc", (401, {}), "wants a key: set VLLM_API_KEY"),
        (
            "/collective_rpc",
            (500, {"error": {"message": "no\nsuch folder"}}),
            r"refuses /collective_rpc \(500\): no such",
        ),
        ("/collective_rpc", (500, b"<html>"), r"refuses /collective_rpc \(500\): Internal Server Error"),
        ("/collective_rpc", (200, b"<html>"), "does not answer in JSON"),
        ("/collective_rpc", (500, {}), "does the server see that folder?"),
    ],
)
def test_a_refusal_says_what_to_do(path: str, answer: tuple[int, Any], said: str, server: fake_vllm.Server) -> None:
    server.refuse[path] = answer
    with pytest.raises(UserError, match=f"generation.engine = {server.address}: .*{said}"):
        ServerVllm(server.address, model_of(TOKENIZERS["characters"]()), 4)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, {"error": {"message": "maximum context length is 8"}}), "maximum context length is 8"),
        ((200, {"choices": [{"logprobs": None}]}), "answers without token ids and log-probs; vLLM 0.32 or newer"),
        (
            (200, {"choices": [{"logprobs": {"token_logprobs": []}, "token_ids": []}]}),
            "returned 0 tokens with 0 log-probs",
        ),
    ],
)
def test_an_answer_that_cannot_be_used_names_the_server(answer: Any, said: str, server: fake_vllm.Server) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = OutsideGenerator(ServerVllm(server.address, model, 4), model, tokenizer)
    server.refuse["/v1/completions"] = answer
    with pytest.raises(EngineError, match=f"{server.address} .*{said}"):
        engine.generate(requests(3), Sampling(4, "Q"), DRAW)


def test_another_kind_of_server_is_refused(server: fake_vllm.Server) -> None:
    with pytest.raises(UserError, match="what answers there is no vLLM server"):
        ServerVllm(server.address + "/elsewhere", model_of(TOKENIZERS["characters"]()), 4)


def test_what_a_server_is_asked(server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to a default that a model's folder or a server may set; the key goes in its header alone."""
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = OutsideGenerator(ServerVllm(server.address, model, 4), model, tokenizer)
    engine.generate(requests(2), Sampling(5, "Q", 0.7), DRAW)
    asked = [body for path, body, _ in server.seen if path == "/v1/completions"][:2]
    plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    for body in asked:
        assert plain.items() <= body.items()
        assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.7, 5, ["Q"])
        assert body["frequency_penalty"] == 0.0
        assert body["ignore_eos"] is True
        assert 0 <= body["seed"] < 2**63
    assert asked[0]["seed"] != asked[1]["seed"]
    assert all(headers["Authorization"] == "Bearer hush" for _, _, headers in server.seen)
    assert "hush" not in json.dumps([body for _, body, _ in server.seen])
    server.refuse["/v1/completions"] = (400, {"error": {"message": "no"}})
    with pytest.raises(EngineError) as error:
        engine.generate(requests(1), Sampling(5, "Q"), DRAW)
    assert "hush" not in str(error.value)


def full_disk(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """From now on weights for a server are written in part only."""

    def write_a_part(weights: Any, path: Path) -> None:
        path.write_bytes(b"a part")
        raise error

    monkeypatch.setattr(vllm_server, "save_file", write_a_part)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [FULL, SafetensorError("No space left on device (os error 28)")])
def test_weights_that_cannot_be_written_are_one_line_and_leave_nothing(
    error: Exception, server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ServerVllm(server.address, model_of(TOKENIZERS["characters"]()), 4)
    full_disk(monkeypatch, error)
    folder = backend._folder / "step-000007"
    with pytest.raises(
        EngineError, match=rf"cannot be written to {folder}/000 \(No space left on device.*TMPDIR"
    ) as said:
        backend.load(7)
    assert "does the server see that folder" not in str(said.value)
    assert not folder.exists()


def test_a_full_temporary_folder_costs_no_step(
    server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step whose weights could not be handed over is done and saved."""
    load = ServerVllm.load

    def full_from_the_first_step_on(self: ServerVllm, version: int) -> None:
        if version == 1:
            full_disk(monkeypatch, FULL)
        load(self, version)

    monkeypatch.setattr(ServerVllm, "load", full_from_the_first_step_on)
    arguments = ["train", "--config", "run.toml", "--out", "run", "--set", f"generation.engine={server.address}"]
    code, said = command(monkeypatch, capsys, *arguments, "--set", "guards.publish_check_every=0")
    assert code == 1
    assert "cannot be written to" in said
    assert "covrl train --resume run" in said
    assert [p.name for p in Path("run/checkpoints").glob("step-*")] == ["step-000001"]


def test_no_temporary_folder_is_one_line(server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "SHARED_MEMORY", Path("/nowhere"))
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(UserError, match=f"generation.engine = {server.address}: no temporary folder"):
        ServerVllm(server.address, model_of(TOKENIZERS["characters"]()), 4)


# --- where prompts and the key go -----------------------------------------------------------------------------------


AWAY = "http://gpu-box.invalid:8000"


def test_a_file_alone_names_no_engine_on_another_machine(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the file of a new run nor that of a run that is resumed: where a person types it, it counts."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    file = Path("run.toml")
    file.write_text(file.read_text().replace('engine = "torch"', f'engine = "{AWAY}"'))
    begin, typed = ["train", "--config", "run.toml", "--out", "run"], ["--set", f"generation.engine={AWAY}"]
    code, said = command(monkeypatch, capsys, *begin)
    assert code == 2
    assert f"a file may name an engine on this machine only (127.0.0.1), {WHY}" in said
    code, said = command(monkeypatch, capsys, *begin, "--set", "generation.engine_memory=0.1")  # something else
    assert "a file may name an engine on this machine only" in said
    code, said = command(monkeypatch, capsys, *begin, *typed)
    assert f"the vLLM server at {AWAY} does not answer" in said
    train(settings("torch", training={"steps": 1}), out="run")
    saved = Path("run/config.toml")
    changed = saved.read_text().replace('engine = "torch"', f'engine = "{AWAY}"')
    saved.write_text(changed.replace("steps = 1", "steps = 2"))
    code, said = command(monkeypatch, capsys, "train", "--resume", "run")
    assert code == 2
    assert f"a file may name an engine on this machine only (127.0.0.1), {WHY}" in said
    code, said = command(monkeypatch, capsys, "train", "--resume", "run", *typed)
    assert f"the vLLM server at {AWAY} does not answer" in said
    code, said = command(monkeypatch, capsys, "train", "--resume", "run", "--set", "generation.engine=torch")
    assert code == 0, said


WHY = "as prompts and VLLM_API_KEY go there; give it on the command line instead: --set generation.engine=" + AWAY


@pytest.mark.parametrize(
    ("address", "here"),
    [
        *((f"http://{host}:8000", True) for host in ("127.0.0.1", "127.8.9.1", "localhost", "[::1]")),
        *((f"http://{host}:8000", False) for host in ("0.0.0.0", "localhost.a.example", "127.0.0.1.a.example")),
        *((f"http://{host}", False) for host in ("[::2]", "10.0.0.1", "2130706433", "127.1", "LOCALHOST.", "[::1")),
    ],
)
def test_what_counts_as_this_machine(address: str, here: bool) -> None:
    assert is_loopback(address) is here


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1\\.a.example", "http://127.0.0.1:8.a.example", "http://127.0.0.1:1:2", "http://127.0.0.1\n.a.example",
     "http://a b", "http://127.0.0.1%2ea.example", "http://127.0.0.1#.a.example", "http://127.0.0.1/?a", "ftp://127.0.0.1",
     "http://me:planted@127.0.0.1"],
)  # fmt: skip
def test_an_address_that_could_be_read_in_two_ways_is_none(address: str) -> None:
    with pytest.raises(UserError, match=r"setting generation\.engine") as error:
        check(RunConfig, settings(address))
    assert "planted" not in str(error.value)


def test_a_redirect_is_not_followed(server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host would get the key, and with a 307 the prompts."""
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = OutsideGenerator(ServerVllm(server.address, model, 4), model, tokenizer)
    with fake_vllm.serve("model") as other:
        for code in (301, 302, 303, 307, 308):
            server.refuse["/v1/completions"] = (code, {}, {"Location": other.address + "/v1/models"})
            with pytest.raises(EngineError, match=rf"with a redirect \({code}\), which is not followed"):
                engine.generate(requests(1), Sampling(4, "Q"), DRAW)
        assert not other.gets
        assert not other.seen


def test_what_is_meant_for_this_machine_passes_no_proxy(
    server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is meant for another goes through the one that the environment names."""
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    with fake_vllm.serve("model") as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.address)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        ServerVllm(server.address, model_of(TOKENIZERS["characters"]()), 4)
        assert server.seen
        assert not proxy.seen
        assert not proxy.gets
        with pytest.raises(UserError):
            ServerVllm(AWAY, model_of(TOKENIZERS["characters"]()), 4)
        assert proxy.gets == [f"{AWAY}/v1/models"]


def test_written_weights_are_gone_when_they_were_read(server: fake_vllm.Server) -> None:
    backend = ServerVllm(server.address, model_of(TOKENIZERS["characters"]()), 4)
    backend.load(3)
    folder = backend._folder
    assert [body["kwargs"]["weights_path"] for path, body, _ in server.seen if path == "/collective_rpc"] == [
        str(folder / "step-000000" / "000"),
        str(folder / "step-000003" / "000"),
    ]
    assert folder.is_dir()
    assert not list(folder.iterdir())
    del backend
    assert not folder.exists()


# --- vLLM in this process -----------------------------------------------------------------------------------------


def test_vllm_that_is_not_installed_is_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # ty: ignore
    arguments = ["train", "--config", "run.toml", "--out", "run", "--set", "generation.engine=vllm"]
    code, said = command(monkeypatch, capsys, *arguments)
    assert code == 2
    assert f"generation.engine = vllm: vllm is not installed; {install_command('vllm')}" in said
    assert "Traceback" not in said
    assert not Path("run").exists()


def test_how_vllm_is_loaded(project: Path) -> None:
    """Log-probs of the sampled distribution, nothing from the model's folder but weights, no code of others."""
    LocalVllm("model", model_of(TOKENIZERS["characters"]()), "float32", 0.25, 4)
    found = fake_vllm.LLM.made[-1].settings
    wanted = {
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "gpu_memory_utilization": 0.25,
        "max_num_seqs": 4,
        "dtype": "float32",
        "enable_sleep_mode": False,
        "load_format": "safetensors",
    }
    assert wanted.items() <= found.items()


def test_an_engine_that_cannot_load_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise ValueError("no room for the cache\nsecond line")

    monkeypatch.setattr(fake_vllm, "LLM", refuse)
    with pytest.raises(UserError, match=r"generation.engine = vllm: it cannot load model: no room for the cache$"):
        LocalVllm("model", model_of(TOKENIZERS["characters"]()), "float32", 0.25, 4)


@pytest.mark.parametrize("engine", ["vllm", "server"])
def test_adapters_are_handed_over_as_whole_matrices(engine: str, server: fake_vllm.Server) -> None:
    """The engine's log-probs are those of the model with its adapter, and without it when it is turned off."""
    peft = pytest.importorskip("peft")
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    peft.inject_adapter_in_model(config, model, adapter_name="policy")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    backend = LocalVllm("model", model, "float32", 0.2, 4) if engine == "vllm" else ServerVllm(server.address, model, 4)
    outside = OutsideGenerator(backend, model.eval(), tokenizer)
    with_adapter = sample(outside, requests(6))
    assert_told_truly(model, with_adapter)
    for module in model.modules():
        if hasattr(module, "get_delta_weight"):
            module.enable_adapters(False)
    outside.publish(1)
    without = sample(outside, requests(6))
    assert_told_truly(model, without)
    assert [r.trace_ids for r in with_adapter] != [r.trace_ids for r in without]


# --- adapters on their own ------------------------------------------------------------------------------------------


def separate(address: str, **sections: Any) -> dict[str, Any]:
    """A LoRA run whose servers get the adapter alone."""
    pytest.importorskip("peft")
    table = settings(address, lora={"rank": 4}, training={"learning_rate": 1e-2})
    table["generation"]["handover"] = "adapters"
    for name, values in sections.items():
        table.setdefault(name, {}).update(values)
    return table


def test_a_server_takes_the_adapter_alone_each_time_under_a_new_name(server: fake_vllm.Server) -> None:
    """Its samples have the trainer's log-probs at every step; whole matrices never go, and no endpoint for developers
    is asked."""
    trained = train(separate(server.address), out="run")
    for report in trained.reports:
        assert 0 < report.metrics["sampler/gap_max"] < 1e-3
        assert report.metrics["guard/publish_gap"] < 1e-3
    assert {path for path, *_ in server.seen} == {
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/completions",
    }
    loaded = [body for path, body, _ in server.seen if path == "/v1/load_lora_adapter"]
    assert len(loaded) == 1 + 2 + 3  # at the start, with weights changed on purpose and back, after each of three steps
    names = [body["lora_name"] for body in loaded]
    assert len(set(names)) == len(names)
    assert list(server.llm.adapters) == names[-1:], "those before are unloaded"
    assert not any(Path(body["lora_path"]).exists() for body in loaded)
    asked = {body["model"] for path, body, _ in server.seen if path == "/v1/completions"}
    assert asked == set(names)
    factors = load_file(trained.last / "adapter_model.safetensors")
    assert any(w.abs().max() > 1e-3 for name, w in factors.items() if "lora_B" in name), "or the servers could keep 0"


def test_a_run_is_resumed_on_a_server_that_has_an_adapter_of_later_steps(server: fake_vllm.Server) -> None:
    """It gets the checkpoint's: the resumed run ends with the bytes of the whole one."""
    whole = train(separate(server.address, checkpoint={"every": 1}), out="run")
    expected = (whole.last / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(whole.last.parent)
    run = resume(Path("run"))
    assert run.done == 2
    again = train_run(run, Path("run"))
    assert (again.last / "adapter_model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("broken", ["publish", "one layer"])
def test_a_server_that_keeps_the_old_adapter_or_takes_a_part_of_it_ends_the_run(
    broken: str, server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.llm, "broken", broken)
    with pytest.raises(TrainingStoppedError, match="stopped before step 1: its weights were changed on purpose"):
        train(separate(server.address), out="run")


def test_a_server_with_another_base_ends_the_run(server: fake_vllm.Server) -> None:
    with torch.no_grad():
        server.llm.model.get_submodule("model.layers.0.mlp.down_proj").weight.neg_()
    with pytest.raises(TrainingStoppedError, match="stopped before step 1: after publish"):
        train(separate(server.address), out="run")


def test_separate_adapters_where_they_cannot_be(server: fake_vllm.Server) -> None:
    for engine in ("torch", "vllm"):
        with pytest.raises(UserError, match=f"handover = adapters is for vLLM servers, and engine is {engine}"):
            check(RunConfig, separate(engine))
    with pytest.raises(
        UserError, match=r"generation\.handover = adapters: lora\.rank is 0, so all weights are trained"
    ):
        train(separate(server.address, lora={"rank": 0}), out="run")
    server.refuse["/v1/load_lora_adapter"] = (400, {"error": {"message": "rank 4 is greater than max_lora_rank 2"}})
    with pytest.raises(UserError, match=r"refuses /v1/load_lora_adapter \(400\): rank 4 is greater"):
        train(separate(server.address), out="run")
    with (
        fake_vllm.serve("model", lora=False) as plain,
        pytest.raises(UserError, match="start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"),
    ):
        train(separate(plain.address), out="run")


def test_the_real_server_takes_adapters_on_their_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm")  # the stand-in
    need_vllm()
    address, real = start_server("model", project / "server.log", lora=True)
    try:
        trained = train(separate(address), out="run")
    finally:
        real.terminate()
        real.wait()
    for report in trained.reports:
        assert 0 < report.metrics["sampler/gap_max"] < 1e-3
        assert report.metrics["guard/publish_gap"] < 1e-3


# --- weights over NCCL, with a stand-in for the group ---------------------------------------------------------------


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for NCCL, and for the device that it wants."""
    monkeypatch.setattr(nccl.join, "__defaults__", (fake_vllm.Group.opened,))
    monkeypatch.setattr(engines, "_check_handover", lambda *_: None)


@pytest.mark.usefixtures("group")
def test_servers_take_weights_over_nccl_some_layers_at_a_time(
    server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers, one of them of two workers; no file is written."""
    monkeypatch.setattr(vllm_server, "PIECE_BYTES", 1)
    with fake_vllm.serve("model") as second:
        server.llm.workers = 2
        both = f"{server.address},{second.address}"
        trained = train(settings(both, generation={"handover": "nccl"}), out="run")
        seen = [[path for path, *_ in one.seen] for one in (server, second)]
        (told,) = [body["init_info"] for path, body, _ in second.seen if path == "/init_weight_transfer_engine"]
        names = [body["update_info"]["names"] for path, body, _ in second.seen if path == "/update_weights"]
    for report in trained.reports:
        assert 0 < report.metrics["sampler/gap_max"] < 1e-3
    assert (told["rank_offset"], told["world_size"], told["master_address"]) == (3, 4, "127.0.0.1")
    for paths in seen:
        assert "/collective_rpc" not in paths
        assert paths.count("/init_weight_transfer_engine") == 1
        publishes = paths.count("/start_weight_update")
        assert publishes == 1 + 2 + 3 == paths.count("/finish_weight_update") == paths.count("/reset_prefix_cache")
        assert paths.count("/update_weights") == publishes * len(names) // 6
    layers = names[: len(names) // 6]
    assert len(layers) >= 4, "embedding, two layers, norm"
    assert [name for layer in layers for name in layer] == list(
        dict(AutoModelForCausalLM.from_pretrained("model").named_parameters())
    )


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("broken", ["publish", "one layer", "stale cache"])
def test_a_server_that_keeps_what_came_over_nccl_to_itself_ends_the_run(
    broken: str, server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.llm, "broken", broken)
    with pytest.raises(TrainingStoppedError, match="stopped before step 1: its weights were changed on purpose"):
        train(settings(server.address, generation={"handover": "nccl"}), out="run")


def test_nccl_where_it_cannot_be(server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(server.address, generation={"handover": "nccl"})
    with pytest.raises(UserError, match=r"handover = nccl: NCCL is between CUDA devices, and the model is on cpu"):
        train(asked, out="run")
    monkeypatch.setattr(engines, "_check_handover", lambda *_: None)
    server.refuse["/init_weight_transfer_engine"] = (500, {})
    monkeypatch.setattr(nccl.join, "__defaults__", (lambda *_: None,))
    with pytest.raises(UserError, match=r"start it with --weight-transfer-config .\{.backend.: .nccl.\}"):
        train(asked, out="run")

    def no_way(address: str, port: int, ranks: int) -> None:
        raise RuntimeError("unhandled system error\nsecond line")

    del server.refuse["/init_weight_transfer_engine"]
    monkeypatch.setattr(nccl.join, "__defaults__", (no_way,))
    server.refuse["/init_weight_transfer_engine"] = (200, {})
    with pytest.raises(UserError, match=r"no NCCL group of the trainer and 1 vLLM servers: unhandled system error$"):
        train(asked, out="run")


def test_weights_that_are_refused_say_so(project: Path) -> None:
    model = model_of(TOKENIZERS["characters"]())
    backend = LocalVllm("model", model, "float32", 0.25, 4)
    fake_vllm.LLM.made[-1].collective_rpc = refuse_weights  # ty: ignore
    with pytest.raises(EngineError, match="vllm cannot take the new weights: wrong shape"):
        backend.load(1)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (["wake_up"], "cannot wake up: wake_up failed"),
        (["sleep"], "cannot sleep: sleep failed"),
        (["collective_rpc"], "cannot take the new weights: collective_rpc failed"),
        (["reset_prefix_cache"], "cannot drop its prefix cache: reset_prefix_cache failed"),
        (["generate", "sleep"], "cannot sample: generate failed"),
        (["wake_up", "sleep"], "cannot wake up: wake_up failed"),
    ],
)
def test_whatever_vllm_fails_at_is_said_first_things_first(
    broken: list[str], said: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an engine that failed once is asked again from the beginning: it wakes, and takes its weights anew."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    backend = LocalVllm("model", model, "float32", 0.25, 4)
    backend._sleeps = True
    fake_vllm.LLM.made[-1].settings["enable_sleep_mode"] = True
    engine = OutsideGenerator(backend, model, tokenizer)
    sample(engine, requests(3))
    engine.rest()

    def failing(name: str) -> Any:
        def fail(self: Any, *given: Any, **named: Any) -> None:
            raise RuntimeError(f"{name} failed\nsecond line")

        return fail

    with monkeypatch.context() as patched:
        for name in broken:
            patched.setattr(fake_vllm.LLM, name, failing(name))

        def once() -> None:
            engine.generate(requests(3), Sampling(4, "Q"), DRAW)
            engine.rest()

        with pytest.raises(EngineError, match=f"^vllm {said}$"):
            once()
    assert_told_truly(model, sample(engine, requests(3)))


def refuse_weights(method: str, kwargs: dict[str, Any]) -> None:
    raise AssertionError("wrong shape")


# --- which engine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["vllm", "http://127.0.0.1:9"])
def test_settings_that_another_engine_cannot_serve(engine: str) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    config = check(RunConfig, {"model": {"path": "x", "dtype": "float64"}})
    with pytest.raises(UserError, match="vLLM has no float64; use float32 or the torch engine"):
        make_generator(config, engine, model, tokenizer, World())


def test_processes_that_cannot_be_parted_into_groups(project: Path) -> None:
    asked = {"model": {"path": "model", "dtype": "float32"}, "generation": {"engine": "vllm", "engine_ranks": 2}}
    config = check(RunConfig, asked)
    model = AutoModelForCausalLM.from_pretrained("model")
    with pytest.raises(UserError, match=r"engine_ranks = 2: 1 processes cannot be parted into groups of 2"):
        make_generator(config, "vllm", model, TOKENIZERS["characters"](), World())


def test_several_addresses_are_read_apart(project: Path) -> None:
    config = check(RunConfig, settings("http://127.0.0.1:8000/, http://127.0.0.1:8001"))
    assert config.generation.engine == "http://127.0.0.1:8000,http://127.0.0.1:8001"
    for wrong in ("http://127.0.0.1:8000,torch", "http://127.0.0.1:8000,", "http://a:1,http://me:planted@b:1"):
        with pytest.raises(UserError, match=r"setting generation\.engine") as error:
            check(RunConfig, settings(wrong))
        assert "planted" not in str(error.value)
    Path("run.toml").write_text(f'[generation]\nengine = "http://127.0.0.1:8000,{AWAY}"')
    with pytest.raises(UserError, match="a file may name an engine on this machine only"):
        config_from(Path("run.toml"), ())


def test_mixed_precision_samples_in_bfloat16(project: Path) -> None:
    tokenizer = TOKENIZERS["characters"]()
    config = check(RunConfig, {"model": {"path": "model", "dtype": "mixed"}})
    make_generator(config, "vllm", AutoModelForCausalLM.from_pretrained("model"), tokenizer, World())
    assert fake_vllm.LLM.made[-1].settings["dtype"] == "bfloat16"


# --- traces from pieces -------------------------------------------------------------------------------------------


class Piecewise:
    """Returns up to three tokens of a model's greedy row at a time, as an engine that stops early would."""

    name, most_top_k = "pieces", 0

    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, []

    def draw(
        self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int], top_p: float = 1.0
    ) -> list[Drawn]:
        self.asked.append(list(rows))
        found = []
        for row in rows:
            ids, logs = list(row.ids), []
            for _ in range(min(3, row.max_tokens)):
                log_probs = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -1].detach(), -1)
                ids.append(int(log_probs.argmax()))
                logs.append(float(log_probs.max()))
            found.append(Drawn(tuple(ids[len(row.ids) :]), tuple(logs)))
        return found

    def load(self, version: int) -> None:
        pass

    def wake(self) -> None:
        pass

    def rest(self) -> None:
        pass


def test_an_engine_that_stops_early_is_asked_again_from_there() -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    backend = Piecewise(model)
    found = OutsideGenerator(backend, model, tokenizer).generate(requests(6), Sampling(11, "Q", 0.0), DRAW)
    expected = TorchGenerator(model, tokenizer, 8).generate(requests(6), Sampling(11, "Q", 0.0), DRAW)
    assert [(r.trace_ids, r.finish, r.text) for r in found] == [(r.trace_ids, r.finish, r.text) for r in expected]
    assert len(backend.asked) == 4
    seeds = [row.seed for rows in backend.asked for row in rows]
    assert len(set(seeds)) == len(seeds)


def test_what_is_sampled_behind_the_end_is_dropped_and_counted() -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    stop = str(tokenizer.decode([int(model(torch.tensor([requests(1)[0].prompt_ids])).logits[0, -1].argmax())]))
    engine = OutsideGenerator(Piecewise(model), model, tokenizer)
    (rollout,) = engine.generate(requests(1), Sampling(11, stop, 0.0), DRAW)
    assert (rollout.text, len(rollout.trace_ids), rollout.finish) == (stop, 1, "closed")
    assert engine.wasted == 2
