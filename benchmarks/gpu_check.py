"""What covrl does on an accelerator, in ten minutes: ``python benchmarks/gpu_check.py [--part NAME] [--model FOLDER]``.

    noise      the model's own noise against every fast path, and what the proofs at load decide
    heads      the output layer: size of chunks, gradient in slices or at once
    sampling   milliseconds a token: steps recorded, launched one by one, prompts kept once; drawing
    attention  FlexAttention at real sizes against rows side by side and against float64
    sharding   FSDP2 in a world of one
    commands   the command line: methods, dtypes, references, small passes, the same bytes twice, a resume
    steps      whole steps at 0.5 B, and one that runs out of memory

Each part is a process with a time limit, 575 seconds together, and prints a JSON line for each thing that it finds, at
once, so that what was found is there if the machine is taken away. An error is a finding with ``failed`` and ends
nothing else. The last line of a part has its seconds and how it ended. Exit code 1 if anything failed.

``--model`` is a pretrained model for the part noise (``benchmarks/real_model.py`` makes one, ``benchmarks/gpu/cut.py``
a small part of it); without it that part takes the base that is shipped. ``--tiny`` runs all parts with sizes that a
CPU does in about a minute: whether the script runs, before a machine is rented.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speed.processes import commit, machine

LIMITS = {
    "noise": 90,
    "heads": 30,
    "sampling": 70,
    "attention": 100,
    "sharding": 45,
    "commands": 110,
    "steps": 130,
}
"""Seconds that each part may take."""


def main() -> int:
    """Run the parts that are asked for, each in a process of its own."""
    asked = options().parse_args()
    if asked.inside:
        return inside(asked.part[0], asked.model, asked.tiny)
    say({"commit": commit(), **machine()})
    here = [sys.executable, __file__, "--inside", "--model", asked.model, *["--tiny"] * asked.tiny]
    ends = [limited(name, [*here, "--part", name], LIMITS[name]) for name in asked.part or LIMITS]
    return int(any(end != 0 for end in ends))


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(LIMITS), action="append", help="may be repeated; default: all")
    parser.add_argument("--model", default="covrl:digits", help="pretrained model of the part noise")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def limited(name: str, command: Sequence[str], seconds: float) -> int | str:
    """Run a part's process, whose lines appear as it writes them; its exit code, or that it took too long."""
    begun = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        end: int | str = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the commands that it runs
        process.wait()
        end = f"stopped after {seconds:g} s"
    say({"part": name, "end": end, "seconds": round(time.perf_counter() - begun, 1)})
    return end


def inside(name: str, model: str, tiny: bool) -> int:
    """Run one part in this process; 1 if something in it failed."""
    import torch
    from gpu import attention, commands, heads, noise, sampling, sharding, steps
    from gpu.common import Task
    from speed.device import name_of

    parts: dict[str, Any] = {
        "noise": noise,
        "heads": heads,
        "sampling": sampling,
        "attention": attention,
        "sharding": sharding,
        "commands": commands,
        "steps": steps,
    }
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    say({"part": name, "device": name_of(device)})
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for found in parts[name].findings(Task(device, model, Path(scratch), tiny)):
            say({"part": name, **found})
            failed |= "failed" in found
    return int(failed)


def say(found: dict[str, Any]) -> None:
    """Print a line."""
    print(json.dumps(found, default=str), flush=True)


if __name__ == "__main__":
    sys.exit(main())
