"""A small part of a pretrained model: ``python benchmarks/gpu/cut.py MODEL OUT``, for machines that take small files.

Six layers and the first 8,192 tokens in bfloat16, with the tokenizer. Of SmolLM2-135M that is about 55 MB. It writes
nonsense, but its activations are those of a pretrained model, which random weights do not have.
"""

from __future__ import annotations

import sys
from pathlib import Path

LAYERS, VOCABULARY = 6, 8192


def cut(source: str, out: Path) -> None:
    """Write the part of a Llama-like model as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:LAYERS]
    model.resize_token_embeddings(min(VOCABULARY, model.config.vocab_size))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def main() -> int:
    """The command; 2 where it was asked for wrongly."""
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    cut(sys.argv[1], Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
