"""Our side: ``python -m speed.ours WORKLOAD MODEL THREADS DTYPE [ALGORITHM]`` prints one JSON line."""

from __future__ import annotations

import os
import resource
import sys
import time

from speed.workloads import WORKLOADS, emit, letter, questions, reward

NO_STOP = 8 * letter(1)  # eight given letters in a row are not sampled


def main(name: str, model: str, threads: int, dtype: str, algorithm: str = "grpo") -> None:
    """Steps of the production loop, timed one by one."""
    import torch

    torch.set_num_threads(threads)
    from covrl.api import build
    from covrl.config import RunConfig, check
    from covrl.records import Problem

    workload = WORKLOADS[name]
    config = {
        "model": {"path": model, "device": "cpu", "dtype": dtype},
        "algorithm": {"name": algorithm},
        "prompts": {
            "chat": "never",
            "user": "{question}",
            "prior_open": "",
            "posterior_open": "{hint}",
            "close": NO_STOP,
            "answer_prefix": letter(2),
            "answer_suffix": 8 * letter(3),
        },
        "generation": {"max_trace_tokens": workload.new - 10, "max_answer_tokens": 1, "rows_per_pass": 512},
        "training": {
            "steps": workload.steps + 1,
            "problems_per_step": workload.problems,
            "rollouts_per_problem": workload.rollouts,
            "learning_rate": 1e-6,
            "schedule": "constant",
            "warmup_steps": 0,
            "stream_norms_every": 0,
        },
        "evaluation": {"every": 0},
        "guards": {"publish_check_every": 0},
    }
    if algorithm != "grpo":
        config["generation"] |= {"max_trace_tokens": workload.new}  # type: ignore[operator]
    asked = questions(workload, workload.steps + 1)
    problems = [
        Problem(id=str(i), question=text, answer=letter(5) + letter(6) + letter(7)) for i, text in enumerate(asked)
    ]
    hand = (lambda _, text: reward(text)) if algorithm == "grpo" else None
    run = build(check(RunConfig, config), problems, reward=hand)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall, metrics = [], [], []
    steps = run.steps()
    for _ in range(workload.steps + 1):
        before, clock = time.process_time(), time.perf_counter()
        metrics.append(next(steps).metrics)
        cpu.append(time.process_time() - before)
        wall.append(time.perf_counter() - clock)
    tokens = metrics[-1]["tokens/generated"]
    phases = {name: [m.get(f"time/{name}", 0.0) for m in metrics[1:]] for name in ("generate", "score", "train")}
    emit(
        {
            "cpu": cpu[1:],
            "wall": wall[1:],
            "tokens": tokens,
            "phases": phases,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "loaded_mb": loaded / 1024,
            "threads": threads,
            "omp": os.environ.get("OMP_NUM_THREADS"),
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
