"""Whether both sides give the same tokens the same log-probs.

``python -m speed.agree '{"side": "ours", …, "file": F}'`` samples a step's first groups, reads them as training does,
and writes tokens and log-probs to F. With ``"side": "peer"``, in TRL's environment, F's tokens are read as TRL reads
them (rows with their prompts, padded, and ``selective_log_softmax``), and the differences are printed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from speed.meter import asked, begin, emit
from speed.processes import Bench, machine
from speed.workloads import Workload, workload_of

ROWS = 16
"""Responses that are compared."""

TOLERANCE = {"float32": (2e-4, 2e-5), "mixed": (0.15, 0.02)}
"""Largest and mean difference in nats that rounding explains, by dtype (bfloat16 has 8 bits)."""

REAL_TOLERANCE = {"float32": (2e-3, 2e-4), "mixed": (1.0, 0.08)}
"""The same of a pretrained model, whose distributions are sharper. Positions off by one move the mean by over 0.1."""


def agreement(bench: Bench, workload: Workload, model: str) -> dict[str, Any]:
    """Largest and mean difference for each dtype, over the same tokens; ``equal`` if all are within the tolerance.

    A real model is read in ``mixed`` only where the processor has units for it: emulated, it takes minutes.
    """
    found: dict[str, Any] = {}
    for dtype in TOLERANCE:
        if dtype == "mixed" and workload.real and not machine()["bfloat16"]:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            task: dict[str, Any] = {
                "workload": workload.name,
                "model": model,
                "dtype": dtype,
                "file": os.path.join(scratch, "rows"),
            }
            bench.worker("agree", side="ours", **task)
            found[dtype] = bench.worker("agree", peer=True, side="peer", **task)
    return found | {"equal": all(within(dtype, one, workload.real) for dtype, one in found.items())}


def within(dtype: str, found: dict[str, float], real: bool = False) -> bool:
    """Whether differences are no more than rounding in this dtype."""
    largest, mean = (REAL_TOLERANCE if real else TOLERANCE)[dtype]
    return found["largest"] <= largest and found["mean"] <= mean


def ours(asked: dict[str, Any]) -> dict[str, Any]:
    """Write (prompt ids, response ids, log-probs) of some rollouts."""
    from covrl.generation.base import Draw
    from covrl.records import Output
    from covrl.training.rollouts import sample
    from covrl.training.scores import score_groups
    from speed.ours import build_run

    workload = workload_of(asked)
    run = build_run(workload, asked["model"], asked["dtype"])
    problems = run.source.take(max(1, ROWS // workload.rollouts))
    rows = []
    for group in score_groups(run, sample(run, problems, Draw(0, 0))):
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            values = scores[Output("trace", "prior")].double().tolist()
            rows.append((rollout.request.prompt_ids, rollout.trace_ids, values))
    Path(asked["file"]).write_text(json.dumps(rows))
    return {"rows": len(rows)}


def peer(asked: dict[str, Any]) -> dict[str, float]:
    """Read the same tokens as TRL does, four rows at a time, and compare."""
    import torch
    from trl.trainer.utils import selective_log_softmax

    from speed.peer import load

    rows = json.loads(Path(asked["file"]).read_text())
    model = load(asked["model"], asked["dtype"], "sdpa").eval()
    apart: list[float] = []
    for start in range(0, len(rows), 4):
        part = rows[start : start + 4]
        width = max(len(response) for _, response, _ in part)
        ids = torch.tensor([[*prompt, *response, *[0] * (width - len(response))] for prompt, response, _ in part])
        mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (width - len(r)) for p, r, _ in part])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=asked["dtype"] == "mixed"):
            logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=width + 1).logits[:, :-1]
        logs = selective_log_softmax(logits.float(), ids[:, -width:])
        for row, (_, response, own) in zip(logs.double().tolist(), part, strict=True):
            apart += [abs(a - b) for a, b in zip(row[: len(response)], own, strict=True)]
    return {"largest": max(apart), "mean": sum(apart) / len(apart), "tokens": len(apart)}


if __name__ == "__main__":
    given = asked()
    begin(given["threads"], given.get("memory_mb"))
    emit({"ours": ours, "peer": peer}[given["side"]](given))
