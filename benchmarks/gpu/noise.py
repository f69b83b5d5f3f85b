"""How far each fast path is from the model's own forward, beside that forward's own noise, and what the proofs decide.

Nats a token, mean and largest, on ordinary text in float32, in bfloat16 products and in bfloat16 weights. A false alarm
shows as a path that the proof gives up though its difference is within the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from covrl.config import ModelConfig
from covrl.generation import decoding
from covrl.generation.engine import DecodingPaths, TorchGenerator
from covrl.generation.proof import forced_log_probs, prove
from covrl.models.flex import can_differentiate
from covrl.models.model import LanguageModel, Paths, load_model
from covrl.models.proof import (
    CONTINUED,
    Row,
    apart,
    ordinary_text,
    own_log_probs,
    path_log_probs,
    proof_rows,
    reach_of,
)
from gpu.common import Finding, Task, set_to, tried

DTYPES = ("float32", "mixed", "bfloat16")
LONGEST = 400
"""Tokens of the longest row, as a run would have it."""

COPIED, KEPT_ONCE = {"LONG": 10**6, "MANY": 10**6}, {"LONG": 1, "MANY": 1}
DECODINGS = {
    "recorded": (DecodingPaths(recorded=True), COPIED),
    "prompts copied": (DecodingPaths(), COPIED),
    "prompts kept once": (DecodingPaths(), KEPT_ONCE),
    "left padding": (DecodingPaths(shared=False), COPIED),
}


def findings(task: Task) -> Iterator[Finding]:
    """Own noise, paths of scoring, forms of decoding, and the proof, for each dtype."""
    longest = 48 if task.tiny else LONGEST
    for dtype in DTYPES:
        config = ModelConfig.model_validate({"path": task.model, "dtype": dtype, "device": task.device.type})
        model, tokenizer = load_model(config)
        engine = TorchGenerator(model.model, tokenizer, 64)
        text = ordinary_text(tokenizer, model.model.get_input_embeddings().weight.shape[0])
        rows = proof_rows(text, reach_of(model, longest))
        with torch.no_grad():
            own = [own_log_probs(model.model, [row])[0] for row in rows]
            yield from _own_noise(model, rows, own, dtype)
            yield from _scoring(model, rows, own, dtype)
            yield from _decoding(model, engine, rows, own, dtype)

        yield tried({"dtype": dtype, "path": "proof"}, partial(proved, task, model, engine, tokenizer, longest))


def proved(task: Task, model: LanguageModel, engine: TorchGenerator, tokenizer: Any, longest: int) -> Finding:
    """What the proofs at load say, and the paths that they take."""
    said = prove(model, engine, tokenizer, longest, task.model)
    return {"said": said, "scoring": model.paths._asdict(), "decoding": engine.paths._asdict()}


def gap(found: Sequence[Tensor], own: Sequence[Tensor]) -> Finding:
    """Mean and largest difference of a token's log-prob, nats."""
    differences = apart(found, own)
    return {"mean": round(float(differences.mean()), 7), "max": round(float(differences.max()), 6)}


def _own_noise(model: LanguageModel, rows: Sequence[Row], own: Sequence[Tensor], dtype: str) -> Iterator[Finding]:
    thrice = [own_log_probs(model.model, [row] * 3)[1] for row in rows]
    yield {"dtype": dtype, "path": "own forward, three rows", **gap(thrice, own)}
    longer = [own_log_probs(model.model, [(ids + ids[:CONTINUED], prompt)])[0] for ids, prompt in rows]
    cut = [a[: len(b)] for a, b in zip(longer, own, strict=True)]
    yield {"dtype": dtype, "path": f"own forward, {CONTINUED} tokens more", **gap(cut, own)}


def _scoring(model: LanguageModel, rows: Sequence[Row], own: Sequence[Tensor], dtype: str) -> Iterator[Finding]:
    ways = {"padded": Paths(shared=False), "shared prompts": Paths()}
    if can_differentiate(model.device):
        ways["FlexAttention"] = Paths(flex=True)
    for name, paths in ways.items():
        model.paths = paths
        yield tried({"dtype": dtype, "path": name}, lambda: gap(path_log_probs(model, rows), own))


def _decoding(
    model: LanguageModel, engine: TorchGenerator, rows: Sequence[Row], own: Sequence[Tensor], dtype: str
) -> Iterator[Finding]:
    together = rows[:5]  # of one prompt
    model.paths = Paths()
    for name, (paths, limits) in DECODINGS.items():
        if paths.recorded and not engine.records:
            continue
        engine.paths = paths
        work = partial(decoded, engine, together, own, limits)
        yield tried({"dtype": dtype, "path": f"decoding, {name}"}, work)


def decoded(engine: TorchGenerator, rows: Sequence[Row], own: Sequence[Tensor], limits: dict[str, int]) -> Finding:
    """The distance of log-probs as decoding gives them."""
    with set_to(decoding, **limits):
        found = forced_log_probs(engine, rows, {})
    return gap(found, [o[: len(f)] for o, f in zip(own, found, strict=False)])
