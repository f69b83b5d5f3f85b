"""Hand-made scored groups for the methods' golden values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from models import character_tokenizer

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.config import AlgorithmTable, PromptConfig
from covrl.prompts import Prompts
from covrl.records import Output, Problem, Request, Rollout, ScoredGroup, Scores

PROBLEM = Problem("p", "q?", "7")
PROMPTS = Prompts(character_tokenizer(), PromptConfig())

Pair = tuple[Rollout, Scores]


def method(name: str, group: int = 4, **settings: Any) -> Any:
    return make_algorithm(AlgorithmTable.model_validate({"name": name, **settings}), Setup(PROMPTS, group))


def trace(
    answer: Sequence[float] | None,
    *,
    source: str = "prior",
    reward: float | None = None,
    trains: bool = True,
    index: int = 0,
    **values: Sequence[float],
) -> Pair:
    """Two tokens, and an answer with these token probabilities (None: cut at the limit)."""
    finish, closing = ("length", "none") if answer is None else ("closed", "sampled")
    request = Request("p", index, (1,), source, trains=trains)
    rollout = Rollout(request, (5, 6), (0.0, 0.0), finish, closing, "x", reward=reward)  # ty: ignore
    found = {Output("trace", "prior"): torch.tensor([-1.0, -1.0], dtype=torch.float64)}
    found |= {Output("trace", name): torch.tensor(v, dtype=torch.float64) for name, v in values.items()}
    if answer is not None:
        logs = [math.log(p) for p in answer]
        found[Output("answer", "prior")] = torch.tensor(logs, dtype=torch.float64)
    return rollout, Scores(found)


def response(
    text: str, answer: Sequence[float] | None, index: int = 0, direct: Sequence[float] = (), finish: str = "closed"
) -> Pair:
    """A whole response with this text, one token a character; ``direct``: token probabilities without a thought."""
    ids = PROMPTS.encode(text)
    rollout = Rollout(Request("p", index, (1,), "prior"), ids, (0.0,) * len(ids), finish, "sampled", text)  # ty: ignore
    found = {Output("trace", name): torch.full((len(ids),), -1.0) for name in ("prior", "reference")}
    for output, values in ((Output("answer", "prior"), answer), (Output("direct", "reference"), direct)):
        if values:
            found[output] = torch.tensor([math.log(p) for p in values], dtype=torch.float64)
    return rollout, Scores(found)


def said(thought: str, answer: str = "7") -> str:
    return f"{thought}</think>\n<answer>{answer}</answer>"


def group_of(*pairs: Pair) -> ScoredGroup:
    return ScoredGroup(PROBLEM, tuple(r for r, _ in pairs), tuple(s for _, s in pairs))


def credits(name: str, *pairs: Pair, **settings: Any) -> list[Any]:
    return method(name, max(len(pairs), 3), **settings).credit([group_of(*pairs)])[0]


def weights(found: Sequence[Any], stream: str) -> list[float | None]:
    """The weight of each trace in a stream, which is the same at all its tokens."""
    rows = [c.weights.get(stream) for c in found]
    assert all(row is None or bool((row == row[0]).all()) for row in rows)
    return [None if row is None else float(row[0]) for row in rows]
