"""Sampling responses of different lengths: useful tokens a CPU second, ours against transformers' ``generate``.

Responses of the workload M-early end with chance 1/16 at each token, and at 64. A wave is 8 prompts x 8 responses of
the public engine, or one call of ``generate`` on the same 64 rows, as TRL makes it. Useful tokens are those up to the
end token, which counts; waves with other seeds and prompts make the sums alike. Each side is at its best settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from speed.meter import asked, begin, emit
from speed.processes import Bench, spread
from speed.step import Search, named, search
from speed.workloads import WORKLOADS, Workload, questions, workload_of

WORKLOAD = "M-early"
WAVES = 10
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "ours": {"dtype": ("mixed", "float32", "bfloat16")},
    "peer": {
        "dtype": ("mixed", "float32", "bfloat16"),
        "cache": ("dynamic", "static"),
        "attention": ("sdpa", "eager"),
    },
}
GOAL = 2.5


def measure(bench: Bench) -> dict[str, Any]:
    """Useful tokens a CPU second of both sides, in turn, and their ratio."""
    model = bench.model(WORKLOADS[WORKLOAD])

    def once(side: str, settings: Mapping[str, Any], waves: int) -> dict[str, Any]:
        task: dict[str, Any] = {"workload": WORKLOAD, "model": model, "side": side, "waves": waves}
        return bench.worker("generation", peer=side == "peer", **task, **settings)

    searches: dict[str, Search] = {}
    for side, choices in CHOICES.items():
        searches[side] = search(
            choices,
            lambda settings, side=side: 1 / once(side, settings, 2)["tokens_per_cpu_s"],
            lambda _: None,
        )
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in CHOICES}
    for _ in range(bench.repeats):
        for side, found in searches.items():
            runs[side].append(once(side, found.best(), WAVES))
    shown: dict[str, Any] = {
        side: {
            **{
                name: spread([run[name] for run in found])
                for name in ("tokens_per_cpu_s", "tokens_per_wall_s", "tokens")
            },
            "settings": searches[side].best(),
        }
        for side, found in runs.items()
    }
    rates = {side: shown[side]["tokens_per_cpu_s"][0] for side in shown}
    tried = {side: found.record() for side, found in searches.items()}
    return {
        "workload": WORKLOAD,
        "waves": WAVES,
        **shown,
        "search": tried,
        "ratio": rates["ours"] / rates["peer"],
        "goal": GOAL,
    }


def text(found: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    rows = [
        f"{side} {named(found[side]['settings'])}: useful tokens a CPU second {v[0]:.0f} ({v[1]:.0f} to {v[2]:.0f}), "
        f"{found[side]['tokens'][0]:.0f} tokens"
        for side in ("ours", "peer")
        for v in [found[side]["tokens_per_cpu_s"]]
    ]
    return [*rows, f"ratio ours / generate {found['ratio']:.2f} (goal: at least {found['goal']})"]


def ours(workload: Workload, asked: dict[str, Any]) -> list[tuple[int, float, float]]:
    """(useful tokens, CPU seconds, wall seconds) of each wave of the run's own generator."""
    from covrl.generation.base import Draw
    from covrl.training.rollouts import sampling_of
    from speed.ours import build_run

    waves = asked["waves"] + 1
    run = build_run(workload, asked["model"], asked["dtype"], problems=waves * workload.problems)
    sampling, found = sampling_of(run), []
    for wave in range(waves):
        draw = Draw(0, wave)
        requests = [r for p in run.source.take(workload.problems) for r in run.algorithm.plan(p, [], draw)]
        cpu, wall = time.process_time(), time.perf_counter()
        rollouts = run.generator.generate(requests, sampling, draw)
        spent = time.process_time() - cpu, time.perf_counter() - wall
        found.append((sum(len(r.trace_ids) for r in rollouts), *spent))
    return found[1:]


def peer(workload: Workload, asked: dict[str, Any]) -> list[tuple[int, float, float]]:
    """The same of ``generate``, with every prompt once for each of its responses."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from speed.peer import load

    model = load(asked["model"], asked["dtype"], asked["attention"]).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(asked["model"])
    texts, found = questions(workload, asked["waves"] + 1), []
    cache = {} if asked["cache"] == "dynamic" else {"cache_implementation": asked["cache"]}
    for wave in range(asked["waves"] + 1):
        prompts = texts[wave * workload.problems : (wave + 1) * workload.problems]
        ids = torch.tensor(tokenizer(prompts)["input_ids"]).repeat_interleave(workload.rollouts, dim=0)
        torch.manual_seed(wave)
        cpu, wall = time.process_time(), time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=asked["dtype"] == "mixed"):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=workload.new,
                **cache,
            )
        spent = time.process_time() - cpu, time.perf_counter() - wall
        found.append((useful(out[:, ids.shape[1] :].tolist(), tokenizer.eos_token_id), *spent))
    return found[1:]


def useful(rows: list[list[int]], end: int) -> int:
    """Tokens up to the end token, with it.

    Example:
        >>> useful([[4, 9, 0, 0], [4, 4, 4, 4]], end=9)
        6
    """
    return sum(row.index(end) + 1 if end in row else len(row) for row in rows)


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """The rates of one side over its waves."""
    begin(asked["threads"], asked.get("memory_mb"))
    waves = {"ours": ours, "peer": peer}[asked["side"]](workload_of(asked), asked)
    tokens, cpu, wall = (sum(column) for column in zip(*waves, strict=True))
    return {"tokens": tokens, "tokens_per_cpu_s": tokens / cpu, "tokens_per_wall_s": tokens / wall}


if __name__ == "__main__":
    emit(main(asked()))
