"""From nothing to CoVRL on GSM8K, with the commands a user would type; no download.

    python benchmarks/gsm8k_road.py --data FOLDER [--out FOLDER] [--steps 30]

FOLDER holds GSM8K's train.jsonl and test.jsonl. Trains a byte-level BPE on its text, makes a small Qwen2 from config,
teaches it the format (`covrl warm-format`) until half of its sampled traces are valid, runs CoVRL (`covrl train`), and
checks: kept groups, a gradient from each stream, and held-out log p(y|x,z) before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

CONFIG = """
[model]
path = "{model}"
device = "cpu"

[problems]
train = "{data}/train.jsonl"
held_out = "{data}/test.jsonl"
extract = "hash"

[prompts]
user = "Question: {{question}}\\n"
prior_open = "Reasoning: <think>\\n"
posterior_open = "The answer is {{hint}}.\\nReasoning: <think>\\n"

[generation]
max_trace_tokens = 200
max_answer_tokens = 12
rows_per_pass = 64

[training]
steps = {steps}
problems_per_step = 16
rollouts_per_problem = 8
learning_rate = 3e-4
schedule = "constant"
warmup_steps = 0
stream_norms_every = 5

[evaluation]
every = 10
problems = 256

[report]
traces_every = 10
"""


def make_model(data: Path, out: Path, vocabulary: int = 1024) -> None:
    """A byte-level BPE of GSM8K's training text, and a Qwen2 of about 1.5 M parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<eos>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator((row["question"] + "\n" + row["answer"] for row in rows), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"made a Qwen2 with {model.num_parameters() / 1e6:.2f} M parameters", flush=True)


def covrl(*arguments: str) -> None:
    """Run the command line as a user would."""
    print("$ covrl " + " ".join(arguments), flush=True)
    subprocess.run(
        [sys.executable, "-m", "covrl", *arguments], check=True, env=os.environ | {"OMP_WAIT_POLICY": "passive"}
    )


def main() -> None:
    """Walk the road and print what it showed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gsm8k-road"))
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True)
    make_model(options.data, out / "raw")
    for name, model in (("warm", out / "raw"), ("train", out / "warm")):
        text = CONFIG.format(model=model, data=options.data, steps=options.steps)
        (out / f"{name}.toml").write_text(text, encoding="utf-8")
    covrl(
        "warm-format", "--config", str(out / "warm.toml"), "--out", str(out / "warm"),
        "--steps", "600", "--learning-rate", "2e-3", "--every", "25",
        "--set", "training.problems_per_step=32", "--set", "training.rollouts_per_problem=2",
    )  # fmt: skip
    covrl("train", "--config", str(out / "train.toml"), "--out", str(out / "run"))
    rows = [json.loads(line)["metrics"] for line in (out / "run/metrics.jsonl").read_text().splitlines()]
    looked = [row for row in rows if "eval/log_prob" in row]
    norms = {s: [r[f"grad_norm/{s}"] for r in rows if f"grad_norm/{s}" in r] for s in ("policy", "kl", "nll")}
    print(f"groups kept: {min(r['groups/kept'] for r in rows):.0f} at least of 16")
    print("gradient norms at least: " + ", ".join(f"{name} {min(values):.2g}" for name, values in norms.items()))
    for name, text in (
        ("eval/log_prob", "held-out log p(y|x,z), nats, traces without an end at the floor"),
        ("eval/log_prob_closed", "the same, only after traces with an end"),
        ("eval/closed_share", "share of held-out traces with an end"),
    ):
        print(f"{text}: " + " ".join(f"{row[name]:.2f}" for row in looked))


if __name__ == "__main__":
    main()
