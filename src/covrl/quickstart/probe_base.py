"""Measures a base model of the laptop task: ``python -m covrl.quickstart.probe_base``.

It samples traces for questions of the ``dev`` split, at temperature 1 and from the whole distribution. Under the
prior prompt it prints the share of each procedure, the share of traces with a false step, and the accuracy of the
answers. Under the posterior prompt it does so with two hints, the true answer and a shuffled one (that of another
problem): what the model does with a hint is the difference between the two.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from covrl.problems.digits import Habit, TraceCheck, chance, problems, read_trace
from covrl.quickstart import task
from covrl.quickstart.make_base import BASE_FOLDER
from covrl.records import Problem

MOST_TOKENS = 12
"""Sampling stops here; no true trace of five digits has more than 11 tokens, the closing tag included."""

BATCH = 512


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    stop: str,
    greedy: bool = False,
) -> list[str]:
    """One continuation of each prompt, up to and without the tag ``stop`` (or cut at ``MOST_TOKENS`` tokens)."""
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(list(prompts[start : start + BATCH]), return_tensors="pt", padding=True, padding_side="left")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        cache = DynamicCache(config=model.config)
        sampled: list[Tensor] = []
        for _ in range(MOST_TOKENS):
            # Rotary positions are relative, so the padding on the left only has to be masked.
            logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits[:, -1]
            ids = logits.argmax(-1, keepdim=True) if greedy else torch.multinomial(logits.softmax(-1), 1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            sampled.append(ids)
        texts += [text.split(stop)[0] for text in tokenizer.batch_decode(torch.cat(sampled, dim=1))]
    return texts


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _prior_prompts(chosen: Sequence[Problem]) -> list[str]:
    return [task.PRIOR_PROMPT.format(question=problem.question) for problem in chosen]


def _accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Problem],
    traces: Sequence[str],
    *,
    greedy: bool,
) -> float:
    answering = [
        f"{prompt}{trace}{task.TRACE_CLOSE}{task.ANSWER_OPEN}"
        for prompt, trace in zip(_prior_prompts(chosen), traces, strict=True)
    ]
    answers = complete(model, tokenizer, answering, stop=task.ANSWER_CLOSE, greedy=greedy)
    return _share([answer == problem.answer for answer, problem in zip(answers, chosen, strict=True)])


def _check(chosen: Sequence[Problem], traces: Sequence[str]) -> list[TraceCheck]:
    return [read_trace(problem.question, trace) for problem, trace in zip(chosen, traces, strict=True)]


def probe_prior(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem]
) -> dict[str, float]:
    """Shares of the procedures, false steps and accuracies under the prior prompt."""
    prompts = _prior_prompts(chosen)
    sampled = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE)
    best = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE, greedy=True)
    checks = _check(chosen, sampled)
    return {f"share/{habit}": _share([check.habit == habit for check in checks]) for habit in Habit} | {
        "false_step": _share([check.false_step for check in checks]),
        "accuracy/sampled": _accuracy(model, tokenizer, chosen, sampled, greedy=False),
        "accuracy/greedy": _accuracy(model, tokenizer, chosen, best, greedy=True),
    }


def probe_posterior(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem], hints: Sequence[str]
) -> dict[str, float]:
    """Shares of sound traces, of traces with a false step and of traces that end in the hint."""
    prompts = [
        task.POSTERIOR_PROMPT.format(question=problem.question, hint=hint)
        for problem, hint in zip(chosen, hints, strict=True)
    ]
    traces = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE)
    checks = _check(chosen, traces)
    return {
        "right": _share([check.sound for check in checks]),
        "false_step": _share([check.false_step for check in checks]),
        "ends_in_hint": _share([trace.endswith(hint) for trace, hint in zip(traces, hints, strict=True)]),
    }


def probe(folder: Path, count: int, seed: int) -> dict[str, dict[str, float]]:
    """All figures of the model in ``folder``, on ``count`` traces each; dev questions repeat if there are fewer."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    dev = problems("dev")
    chosen = [dev[index % len(dev)] for index in range(count)]
    hints = [problem.answer for problem in chosen]
    shuffled = random.Random(seed).sample(hints, len(hints))
    return {
        "prior": probe_prior(model, tokenizer, chosen),
        "posterior/true": probe_posterior(model, tokenizer, chosen, hints),
        "posterior/shuffled": probe_posterior(model, tokenizer, chosen, shuffled),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: prints the figures as lines, or as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m covrl.quickstart.probe_base", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=BASE_FOLDER, help="a model folder (default: the shipped base)")
    parser.add_argument("--problems", type=int, default=4096, help="traces for each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    figures = probe(options.model, options.problems, options.seed)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{options.problems} traces each, dev questions; always giving the same answer is right in {chance():.1%}")
    for prompt, shares in figures.items():
        for name, value in shares.items():
            print(f"{prompt:20}{name:20}{value:8.2%}")


if __name__ == "__main__":
    main()
