"""The real vLLM, where it is installed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from urllib.request import urlopen

import pytest

from covrl.errors import UserError
from covrl.generation.vllm_local import import_vllm


def need_vllm() -> None:
    """Skip the test, with the reason, where vLLM is not installed or cannot be imported."""
    if why := _why_not():
        pytest.skip(why)


@cache
def _why_not() -> str | None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else what several engines in one process have is odd
    try:
        import_vllm()
    except UserError as error:
        return str(error)
    return None


def start_server(folder: str, log: Path, lora: bool = False) -> tuple[str, subprocess.Popen[bytes]]:
    """The command of ``docs/engines.md``, by its module, on a free port; ``lora``: that of adapters in place."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", "128", "--logprobs-mode", "processed_logprobs"]
    command += ["--generation-config", "vllm", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--gpu-memory-utilization", "0.1"]
    command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"] * lora
    settings = {"VLLM_SERVER_DEV_MODE": "1"} | ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if lora else {})
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **settings})
    for _ in range(300):
        assert server.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return f"http://127.0.0.1:{port}", server
        time.sleep(1)
    raise AssertionError(log.read_text()[-2000:])
