"""What is kept of a trace that made a step impossible, so that the trouble can be looked at again.

    non-finite/step-000012/
        bundle.json          what happened, the settings, and each trace's problem, ids, text, reward
        tensors.safetensors  N/scores/SPAN/NAME, N/weights/STREAM, N/constants/SPAN/NAME of trace N

With the checkpoint of the step before (the weights) it holds all that the loss of the trace depends on.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from covrl.records import Credit, OffendingRollout, Output, Problem, Rollout, Scores

_PROBLEM, _ROLLOUT, _NUMBER = TypeAdapter(Problem), TypeAdapter(Rollout), TypeAdapter(float | None)


def write_bundle(folder: Path, culprits: Sequence[OffendingRollout], facts: Mapping[str, Any]) -> Path:
    """Write ``culprits`` and ``facts`` (message, step, seed, settings) under ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}/{name}": t for i, c in enumerate(culprits) for name, t in _tensors(c).items()}
    save_file(tensors, folder / "tensors.safetensors")
    record = {
        **facts,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "traces": [_record(c) for c in culprits],
    }
    text = json.dumps(_plain(record), ensure_ascii=True, allow_nan=False, indent=1)
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    return folder


def read_bundle(folder: Path) -> tuple[dict[str, Any], list[OffendingRollout]]:
    """The facts and the traces of :func:`write_bundle`."""
    record: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "tensors.safetensors")
    return record, [_culprit(row, tensors, f"{i}/") for i, row in enumerate(record.pop("traces"))]


def _tensors(culprit: OffendingRollout) -> dict[str, Tensor]:
    found = {f"scores/{o.span}/{o.name}": t for o, t in culprit.scores.values.items()}
    if culprit.credit is not None:
        found |= {f"weights/{name}": t for name, t in culprit.credit.weights.items()}
        found |= {f"constants/{o.span}/{o.name}": t for o, t in culprit.credit.constants.items()}
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in found.items()}


def _record(culprit: OffendingRollout) -> dict[str, Any]:
    credit = culprit.credit
    worth = None if credit is None else {"reward": credit.reward, "advantage": credit.advantage}
    return {
        "problem": asdict(culprit.problem),
        "rollout": asdict(culprit.rollout),
        "score_tokens": culprit.scores.tokens,
        "credit": worth,
    }


def _culprit(row: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> OffendingRollout:
    def part(kind: str) -> dict[str, Tensor]:
        start = f"{prefix}{kind}/"
        return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}

    def by_output(kind: str) -> dict[Output, Tensor]:
        return {Output(*name.split("/", 1)): t for name, t in part(kind).items()}

    worth = row["credit"]
    credit = None
    if worth is not None:
        numbers = (_NUMBER.validate_python(worth[name]) for name in ("reward", "advantage"))
        credit = Credit(part("weights"), by_output("constants"), *numbers)
    scores = Scores(by_output("scores"), row["score_tokens"])
    problem, rollout = _PROBLEM.validate_python(row["problem"]), _ROLLOUT.validate_python(row["rollout"])
    return OffendingRollout(problem, rollout, scores, credit)


def _plain(value: Any) -> Any:
    """As strict JSON has it: NaN and infinities are their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
