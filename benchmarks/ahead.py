"""Sampling ahead against waiting: ``python benchmarks/ahead.py [--steps N] [--servers N] [--workload NAME] [--json]``.

A run of CoVRL on stand-in servers (tests/generation/fake_vllm.py, processes of their own, one thread each) with
``generation.ahead`` = 0 and 1, in turn, twice each. Seconds are on the wall, of a step after the first two; beside them
what the trainer waited for traces, and the CPU seconds of trainer and servers. Sampling and training that overlap
cannot be faster than their CPU seconds together over the cores, so on a machine whose cores the servers and the trainer
share, there is little or nothing to gain. The stand-in samples each row alone and reads it again for every token: its
seconds say nothing about vLLM.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from speed.processes import machine
from speed.workloads import WORKLOADS, make_model

TESTS = Path(__file__).parent.parent / "tests"
WARM = 2
"""Steps that are not counted: the first one samples before anything trains."""


def serve(folder: str, told: Any) -> None:
    """A stand-in server, until its process is ended; its address goes to ``told``."""
    import torch

    torch.set_num_threads(1)
    sys.path[:0] = [str(TESTS), str(TESTS / "generation")]
    import fake_vllm

    with fake_vllm.serve(folder) as server:
        told.put(server.address)
        while True:
            time.sleep(60)


@contextmanager
def servers(folder: str, count: int) -> Iterator[tuple[str, list[int]]]:
    """Their addresses, and their processes' ids."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    started = [context.Process(target=serve, args=(folder, told), daemon=True) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield ",".join(told.get(timeout=600) for _ in started), [process.pid or 0 for process in started]
    finally:
        for process in started:
            process.terminate()
            process.join()
        told.close()


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(name: str, folder: str, address: str, pids: list[int], ahead: int, count: int) -> dict[str, Any]:
    """The medians of a run's steps."""
    from speed.ours import build_run

    from covrl.training.loop import steps

    settings = {"generation": {"engine": address, "ahead": ahead, "rows_per_pass": 8}}
    run = build_run(WORKLOADS[name], folder, "float32", "covrl", WARM + count, settings)
    rows: list[dict[str, float]] = []
    now = [0.0, 0.0, 0.0]
    for report in steps(run):
        before, now = now, [time.perf_counter(), time.process_time(), sum(map(cpu_seconds, pids))]
        wall, own, theirs = (b - a for a, b in zip(before, now, strict=True))
        waited, metrics = report.metrics["time/generate"], report.metrics
        found = {"wall": wall, "waited": waited, "trainer_cpu": own, "servers_cpu": theirs}
        found |= {"staleness": metrics.get("sampler/staleness_mean", 0.0), "gap": metrics["sampler/gap_mean"]}
        rows.append(found)
    run.ahead.close()
    return {key: median(row[key] for row in rows[WARM:]) for key in rows[0]}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="of each run, that are counted")
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="tiny")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with ExitStack() as open_:
        made = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        folder = str(make_model(WORKLOADS[asked.workload], made))
        address, pids = open_.enter_context(servers(folder, asked.servers))
        runs = {k: [] for k in (0, 1)}
        for _ in range(2):
            for k, found in runs.items():
                found.append(measured(asked.workload, folder, address, pids, k, asked.steps))
    medians = {k: {key: median(run[key] for run in found) for key in found[0]} for k, found in runs.items()}
    least = {k: (m["trainer_cpu"] + m["servers_cpu"]) / (os.cpu_count() or 1) for k, m in medians.items()}
    if asked.json:
        print(json.dumps({"ahead": medians, "least": least, "runs": runs, "machine": machine()}))
        return 0
    print(f"{asked.workload}, {asked.servers} stand-in servers, {asked.steps} steps a run, two runs each; {machine()}")
    for k, m in medians.items():
        print(
            f"ahead = {k}: {m['wall']:.2f} s a step, of which {m['waited']:.2f} s waiting for traces; CPU seconds "
            f"{m['trainer_cpu']:.2f} trainer + {m['servers_cpu']:.2f} servers, at least {least[k]:.2f} s on the cores; "
            f"weights {m['staleness']:.0f} steps old, gap {m['gap']:.1e} nats a token"
        )
    print(f"seconds a step, ahead 0 / 1: {medians[0]['wall'] / medians[1]['wall']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
