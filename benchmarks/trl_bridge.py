"""Three steps of TRL's GRPOTrainer with our likelihood reward: that the bridge works in the trainer it is for.

    python benchmarks/trl_bridge.py covrl:digits MODEL_FOLDER [--forms rlpr,verifree,jepo] [--threads 1]
    python benchmarks/trl_bridge.py --table

In an environment with TRL 1.16 (`pip install trl==1.16.0`), covrl beside it by PYTHONPATH. Each run is one problem of
four responses a step, in float32, at the rate 1e-5, without a KL. At every step the rewards are computed a second time,
by the model's own forward on each row alone, without any code of the bridge's scoring: the largest difference is on the
page. Three steps teach nothing. A line of ``docs/results/trl-bridge.jsonl`` takes the place of the old one of its model
and form.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from covrl.bridges.trl import AnswerLikelihood
from covrl.models.model import load_tokenizer, resolve_path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
LINES, PAGE = RESULTS / "trl-bridge.jsonl", RESULTS / "trl-bridge.md"
STEPS, RESPONSES, TOKENS, RATE = 3, 4, 20, 1e-5
FORMS = ("rlpr", "verifree", "jepo")

SUMS = [(2, 3), (14, 5), (8, 9), (31, 6), (7, 7), (25, 12)]
DIGITS = ["12507", "34971", "80263", "59142", "67380", "21654"]


def rows_of(tiny: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows with ``prompt`` and ``answer``, and how responses to them are written."""
    if tiny:  # the shipped task: the middle three of the sorted digits
        rows = [{"prompt": f"<user>{d}<assistant><think>", "answer": "".join(sorted(d))[1:4]} for d in DIGITS]
        return rows, {"close": "</think>", "answer_prefix": "<answer>", "answer_suffix": "</answer>"}
    system = {"role": "system", "content": "Answer in one short sentence."}
    rows = [
        {"prompt": [system, {"role": "user", "content": f"What is {a} plus {b}?"}], "answer": str(a + b)}
        for a, b in SUMS
    ]
    return rows, {"close": ".", "answer_prefix": " So it is", "answer_suffix": "."}  # as in real/three_steps.py


def plain_log_probs(model: Any, ids: Sequence[int], answer: int) -> torch.Tensor:
    """Log-probs ``[A]`` of the last ``answer`` ids by the model's own forward on this row alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
    taken = logits[-answer - 1 : -1].log_softmax(-1)
    return taken.gather(1, torch.tensor(list(ids[-answer:]))[:, None])[:, 0]


def second_opinion(
    model: Any, tokenizer: Any, form: str, tags: dict[str, str], base: Any, call: dict[str, Any]
) -> list:
    """Each response's reward, computed the plain way; None where the form needs a group to decide."""
    found: list[float | None] = []
    for prompt, ids, answer in zip(call["prompts"], call["completion_ids"], call["answer"], strict=True):
        if isinstance(prompt, str):
            before = list(tokenizer(prompt)["input_ids"])
        else:
            before = list(
                tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            )
        thought = next((n for n in range(1, len(ids) + 1) if tags["close"] in tokenizer.decode(ids[:n])), None)

        def encoded(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        tail = encoded(answer) + encoded(tags["answer_suffix"])
        opening = encoded(tags["answer_prefix"])
        if thought is None:
            logs = None
        elif tokenizer.decode(ids[:thought]).endswith(tags["close"]):
            logs = plain_log_probs(model, [*before, *ids[:thought], *opening, *tail], len(tail))
        else:  # the tag ends inside a token: the bridge puts the canonical ids there
            kept = [*ids[: thought - 1], *encoded(tags["close"])]
            logs = plain_log_probs(model, [*before, *kept, *opening, *tail], len(tail))
        if form == "verifree":
            found.append(0.0 if logs is None else float(logs.sum().exp()))
        elif form == "jepo":
            found.append(None if logs is None else max(float(logs.sum()), -30.0))
        else:
            row = [*before, *encoded(tags["close"]), *opening, *tail]
            empty = float(plain_log_probs(base, row, len(tail)).exp().mean())
            raw = 0.0 if logs is None else float(logs.exp().mean())
            found.append(0.9 * max(0.0, raw - empty))
    return found


class Watched:
    """The reward function with a record of what it gave, and of how far a second computation was from it."""

    def __init__(self, reward: AnswerLikelihood, model: Any, tokenizer: Any, form: str, tags: dict[str, str]) -> None:
        from copy import deepcopy

        self.reward, self.model, self.tokenizer, self.form, self.tags = reward, model, tokenizer, form, tags
        self.base = deepcopy(model).eval() if form == "rlpr" else None
        self.given: list[list[float]] = []
        self.gap = 0.0
        self.__name__ = reward.__name__

    def __call__(self, **call: Any) -> list[float]:
        rewards = self.reward(**call)
        self.given.append(rewards)
        training = self.model.training
        self.model.eval()
        plain = second_opinion(self.model, self.tokenizer, self.form, self.tags, self.base, call)
        self.model.train(training)
        for got, wanted in zip(rewards, plain, strict=True):
            if wanted is not None:  # of rlpr the format's 0.1 is no matter of scoring
                rest = got - wanted
                self.gap = max(self.gap, min(abs(rest), abs(rest - 0.1)) if self.form == "rlpr" else abs(rest))
        return rewards


def run(source: str, form: str, threads: int) -> dict[str, Any]:
    """Three steps; what was rewarded, how far it moved the weights, and what TRL logged."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    folder = str(resolve_path(source))
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows, tags = rows_of(source.startswith("covrl:"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    reward = Watched(AnswerLikelihood(model, tokenizer, form, **tags), model, tokenizer, form, tags)
    with tempfile.TemporaryDirectory() as out:
        config = trl.GRPOConfig(
            output_dir=out,
            max_steps=STEPS,
            per_device_train_batch_size=RESPONSES,
            num_generations=RESPONSES,
            max_completion_length=TOKENS,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            seed=0,
        )
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=reward,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            args=config,
        )
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    logged = [line for line in trainer.state.log_history if "loss" in line]
    moved = max(float((p.detach() - b).abs().max()) for p, b in zip(model.parameters(), before, strict=True))
    return {
        "model": Path(folder).name if not source.startswith("covrl:") else source,
        "form": form,
        "rewards": [[float(f"{value:.6g}") for value in step] for step in reward.given],
        "gap": reward.gap,
        "loss": [line["loss"] for line in logged],
        "grad_norm": [line["grad_norm"] for line in logged],
        "moved": moved,
        "cpu_seconds": round(seconds, 1),
        "trl": trl.__version__,
        "torch": torch.__version__,
        "threads": threads,
        "machine": platform.machine(),
    }


def recorded() -> dict[tuple[str, str], dict[str, Any]]:
    """The lines that there are, by model and form."""
    lines = map(json.loads, LINES.read_text().splitlines()) if LINES.exists() else ()
    return {(line["model"], line["form"]): line for line in lines}


def write_page() -> None:
    """The page of the recorded lines."""
    found = recorded()
    text = [
        "# TRL's trainer with our reward\n",
        "Written by `python benchmarks/trl_bridge.py covrl:digits FOLDER` from [trl-bridge.jsonl](trl-bridge.jsonl): "
        f"{STEPS} steps of TRL's `GRPOTrainer` with [`AnswerLikelihood`](../bridges.md), one problem of {RESPONSES} "
        f"responses a step of up to {TOKENS} tokens, float32, rate {RATE:g}. The second model, where it is listed, is "
        "SmolLM2-135M-Instruct (`python benchmarks/real_model.py FOLDER`). It shows that the reward works there and "
        "moves the weights. Three steps teach nothing, and figures of different forms are not to be compared.\n",
        "The difference is the largest, over all responses, between a reward and a second computation of it by the "
        "model's own forward on each row alone; of `jepo`, over responses whose thought was closed.\n",
        "| model | form | mean reward, by step | gradient norm | largest change | difference | CPU seconds |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for line in found.values():
        means = " ".join(f"{sum(step) / len(step):.4g}" for step in line["rewards"])
        norms = " ".join(f"{norm:.3g}" for norm in line["grad_norm"])
        text.append(
            f"| `{line['model']}` | `{line['form']}` | {means} | {norms} | {line['moved']:.1e} | {line['gap']:.1e} | "
            f"{line['cpu_seconds']:.0f} |"
        )
    last = next(reversed(found.values()))
    text.append(
        f"\nMachine: AMD EPYC, {last['threads']} thread(s), torch {last['torch']}, TRL {last['trl']}. The command was "
        "run in an environment of its own, outside the tests.\n"
    )
    PAGE.write_text("\n".join(text))


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the page of what is recorded, and run nothing")
    options = parser.parse_args()
    for source in options.models:
        for form in options.forms.split(","):
            line = run(source, form, options.threads)
            print(json.dumps(line), flush=True)
            found = recorded() | {(line["model"], line["form"]): line}
            LINES.write_text("".join(json.dumps(each) + "\n" for each in found.values()))
    write_page()


if __name__ == "__main__":
    main()
