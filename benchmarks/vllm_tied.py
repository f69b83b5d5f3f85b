"""Does vLLM take new weights where the output layer is the embedding? Run it in an environment with vLLM:

    PYTHONPATH=src PYTHON benchmarks/vllm_tied.py tied
    PYTHONPATH=src PYTHON benchmarks/vllm_tied.py apart

A random two-layer model, with a tied output layer or with one of its own. Each kind of its weights is changed and
handed over by ``reload_weights``, as covrl does it; then the mean difference of sampled tokens' log-probs between vLLM
and the model is printed, in nats a token. Rounding makes about 3e-6 in float32.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from covrl.generation.handover import weights_of

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
CHANGED = {"matrices of the blocks": ("proj",), "embedding and output layer": ("embed", "lm_head")}
PROMPT, TOKENS = list(range(3, 40)), 8


def engine_of(folder: str) -> Any:
    """vLLM with the model of a folder."""
    from vllm import LLM  # ty: ignore[unresolved-import]

    return LLM(
        model=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=8,
        gpu_memory_utilization=0.1, logprobs_mode="processed_logprobs", load_format="safetensors",
    )  # fmt: skip


@torch.no_grad()
def gap(llm: Any, model: Any) -> float:
    """Mean difference of the log-probs of sampled tokens, nats."""
    from vllm import SamplingParams  # ty: ignore[unresolved-import]

    params = SamplingParams(temperature=1.0, max_tokens=TOKENS, seed=1, logprobs=0, ignore_eos=True, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": PROMPT}], [params], use_tqdm=False)[0].outputs
    ids = list(output.token_ids)
    logs = torch.log_softmax(model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1], -1)
    told = torch.tensor([by_id[i].logprob for i, by_id in zip(ids, output.logprobs, strict=True)])
    return float((logs.gather(-1, torch.tensor(ids)[:, None])[:, 0] - told).abs().mean())


def main() -> int:
    """Print the differences."""
    kind = sys.argv[1]
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES, num_key_value_heads=2, vocab_size=512, max_position_embeddings=256, initializer_range=0.15,
        tie_word_embeddings=kind == "tied", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        llm = engine_of(folder)
    print(f"{kind}, at first: {gap(llm, model):.1e}", flush=True)
    for what, names in CHANGED.items():
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if any(part in name for part in names):
                    weight.add_(0.05 * torch.randn_like(weight))
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights_of(model)})
        llm.reset_prefix_cache()
        print(f"{kind}, new {what}: {gap(llm, model):.1e}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
