"""Tokens and the rest of the environment land in no file and on no screen: planted ones, looked for byte by byte."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from generation import fake_vllm
from safe_project import Command

from covrl.models.model import SHIPPED
from covrl.records import Problem
from covrl.rewards.code_tests import CodeVerifier
from covrl.rewards.verifiers import MathVerifier

PLANTED = {
    "HF_TOKEN": "hf_plantedAAAA1111",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedBBBB2222",
    "WANDB_API_KEY": "planted-cccc-3333",
    "AWS_SECRET_ACCESS_KEY": "planted/dddd+4444",
    "HTTPS_PROXY": "http://somebody:planted-eeee@proxy.example:1",
    "VLLM_API_KEY": "planted-gggg-7777",
    "COVRL_PLANTED_MARK": "planted-ffff-6666",
}

HURT = '''
import math, time
from covrl.algorithms.covrl import CoVRL

class Hurt(CoVRL):
    """Its credit is not finite."""
    def credit(self, groups):
        found = super().credit(groups)
        for row in found:
            for credit in row:
                for weights in credit.weights.values():
                    weights.fill_(math.nan)
        return found

def slow(problem, text):
    time.sleep(600)
'''


SMALL = ["--config", str(SHIPPED / "quickstart.toml"), "--set", "training.steps=1", "--set", "evaluation.problems=4"]
SMALL += ["--set", "training.problems_per_step=2", "--set", "evaluation.every=1"]
ON = ["--problems", "digits:train", "--limit", "4"]


@pytest.fixture
def planted(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    (project / "hurt.py").write_text(HURT)
    return project


def look(content: bytes, where: object) -> None:
    for name, value in PLANTED.items():
        bare = value.rpartition("@")[0].rpartition(":")[2] or value
        for form in {value, bare, json.dumps(value)[1:-1], base64.b64encode(value.encode()).decode()}:
            assert form.encode() not in content, f"{name} is in {where}"


def look_everywhere(folder: Path) -> list[str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    for path in files:
        look(path.read_bytes(), path)
        look(str(path.relative_to(folder)).encode(), path)
    return [str(p.relative_to(folder)) for p in files]


def test_a_run_with_trackers_an_evaluation_and_a_page(
    planted: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    run = SimpleNamespace(log=lambda metrics, step: sent.append((metrics, step)), finish=lambda: None)
    client = SimpleNamespace(init=lambda **options: sent.append(options) or run, Table=lambda **table: table)
    monkeypatch.setitem(sys.modules, "wandb", client)
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    for arguments in (
        ["train", *SMALL, "--dry-run"],
        ["train", *SMALL, "--out", "run", "--set", 'report.trackers=["wandb", "tensorboard"]'],
        ["view", "run"],
        ["eval", "--model", "run", *ON, "--out", "eval", "-n", "1"],
        ["calibrate", "--model", "run", *ON, "-n", "2", "--out", "calibrate"],
        ["leak", "--model", "run", *ON, "-n", "1", "--traces", "leaks.jsonl"],
        ["doctor"],
    ):
        found = command(*arguments)
        assert found.code == 0, found.err
        look((found.out + found.err).encode(), arguments)
    assert len(sent) == 2
    look(repr(sent).encode(), "what a tracker was sent")
    files = look_everywhere(planted)
    for name in ("run/report.html", "run/config.toml", "run/traces.jsonl", "run/best/manifest.json", "leaks.jsonl"):
        assert name in files
    assert any("tensorboard" in name for name in files)
    assert any(name.startswith("run/checkpoints/") for name in files)
    assert any(name.startswith("eval/") and name.endswith(".html") for name in files)


def test_a_run_on_a_server_that_has_a_key(planted: Path, command: Command) -> None:
    """The server gets it in its header and nowhere else; its refusal, which quotes it, is printed without."""
    key = PLANTED["VLLM_API_KEY"]
    with fake_vllm.serve("model") as server:
        arguments = ["train", "--config", "run.toml", "--out", "run", "--set", f"generation.engine={server.address}"]
        found = command(*arguments)
        assert found.code == 0, found.err
        assert {headers["Authorization"] for _, _, headers in server.seen} == {f"Bearer {key}"}
        for _, body, _ in server.seen:
            look(json.dumps(body).encode(), "a request")
        look((found.out + found.err).encode(), "the screen")
        server.refuse["/v1/completions"] = (500, {"error": {"message": f"odd header: Bearer {key}"}})
        found = command(*arguments, "--out", "refused")
    assert found.code == 1
    assert "odd header: Bearer [VLLM_API_KEY]" in found.err
    look((found.out + found.err).encode(), "the message")
    files = look_everywhere(planted)
    assert {"run/config.toml", "run/metrics.jsonl", "run/report.html"} <= set(files)


def test_a_crash_bundle(planted: Path, command: Command) -> None:
    found = command("train", *SMALL, "--out", "run", "--algorithm", "hurt:Hurt")
    assert found.code == 1
    look((found.out + found.err).encode(), "the message")
    assert "run/non-finite/step-000001/bundle.json" in look_everywhere(planted)


def test_the_stacks_of_a_step_that_hung(planted: Path) -> None:
    arguments = ["train", "--config", "run.toml", "--out", "run", "--reward", "hurt:slow"]
    arguments += ["--set", "guards.step_deadline_s=0.5"]
    found = subprocess.run([sys.executable, "-m", "covrl", *arguments], cwd=planted, capture_output=True, timeout=120)
    assert b"step 1 hung" in found.stderr
    look(found.stdout + found.stderr, "the message")
    assert any(name.startswith("run/hung-") for name in look_everywhere(planted))


# Processes that handle what strangers wrote


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_workers_of_the_math_verifier_have_no_token(planted: Path) -> None:
    with MathVerifier(workers=1) as verify:
        assert verify(Problem("p", "q", r"\frac{x}{2}"), r"\boxed{0.5x}").verdict == "right"
        (pid,) = verify.workers.pids
        there = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PATH=" in there
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        assert PLANTED[name].encode() not in there


def code(program: str, test: str = "assert True") -> Any:
    return CodeVerifier(workers=1)(Problem("p", "q", test), f"```python\n{program}\n```")


@pytest.mark.usefixtures("isolator")
def test_a_program_has_no_token_in_its_environment(planted: Path) -> None:
    assert code(
        "import os\nfound = dict(os.environ)", "assert not any('lanted' in v for v in found.values())"
    ).verdict == ("right")


@pytest.mark.usefixtures("isolator")
def test_a_program_cannot_read_the_environment_of_its_caller(planted: Path) -> None:
    program = f"text = open('/proc/{os.getpid()}/environ', 'rb').read()"
    assert Path(f"/proc/{os.getpid()}/environ").read_bytes()
    judged = code(program)
    assert (judged.verdict, judged.why) == ("wrong", "tests failed: program ended with FileNotFoundError")


@pytest.mark.usefixtures("isolator")
def test_a_program_cannot_write_into_its_verdict(planted: Path) -> None:
    judged = code("raise type('planted-ffff-6666', (Exception,), {})()")
    assert judged.why == "tests failed: program ended with an exception of its own"
