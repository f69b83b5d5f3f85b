"""What 4 bits cost a real model: ``python benchmarks/four_bit.py MODEL [--threads 1]``, as real_model.py makes it.

Nats a token on the text of this repository's pages, with whole weights and with linear layers in 4 bits; bytes of the
weights; CPU seconds of a forward pass over all of the text, and of a token after another with a cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from covrl.config import ModelConfig
from covrl.models.four_bit import quantise
from covrl.models.model import load_model

PAGES = Path(__file__).resolve().parents[1] / "docs"
TEXT = ("guards.md", "kl.md", "rewards.md")
TOKENS, ONE_BY_ONE = 512, 16
"""Tokens of each page, and how many are read one after the other."""


@torch.no_grad()
def measured(model: Any, rows: torch.Tensor) -> dict[str, float]:
    """The figures of a model on ``rows`` [B, T]."""
    begun = time.process_time()
    logits = model(rows).logits
    whole = time.process_time() - begun
    logs = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, rows[:, 1:, None])
    cache = model(rows[:1, :TOKENS], use_cache=True).past_key_values
    begun = time.process_time()
    for i in range(ONE_BY_ONE):
        cache = model(rows[:1, i : i + 1], use_cache=True, past_key_values=cache).past_key_values
    single = (time.process_time() - begun) / ONE_BY_ONE
    size = sum(p.nbytes for p in model.parameters())
    return {"nats": -float(logs.mean()), "MiB": size / 2**20, "pass_s": whole, "token_s": single}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded, tokenizer = load_model(ModelConfig(path=given.model, dtype="float32", device="cpu"))
    texts = [tokenizer.encode((PAGES / name).read_text(encoding="utf-8"))[:TOKENS] for name in TEXT]
    rows = torch.tensor(texts)
    found = {"whole": measured(loaded.model, rows)}
    count = quantise(loaded.model)
    found["4 bits"] = measured(loaded.model, rows)
    print(f"{rows.numel()} tokens; {count:,} weights in 4 bits; torch {torch.__version__}, {given.threads} thread(s)")
    for name, one in found.items():
        print(
            f"{name:7s} {one['nats']:.3f} nats a token, {one['MiB']:.0f} MiB, {one['pass_s']:.2f} CPU s a pass, "
            f"{one['token_s'] * 1e3:.0f} ms a single token"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
