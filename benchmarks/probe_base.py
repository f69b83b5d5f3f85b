"""Measures the base model of an embedded task: ``python benchmarks/probe_base.py [--task animals]``.

It samples traces for questions of the ``dev`` split, at temperature 1 and from the whole distribution. Under the
prior prompt it prints the share of each procedure, the share of traces with a false step, the accuracy of the
answers, and log p of the reference answer (closing tag included) behind written traces: true ones of the right
procedure, and true ones of the others. Under the posterior prompt it samples with two hints, the true answer and a
shuffled one (that of another problem): what the model does with a hint is the difference between the two.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import base_texts as task
import make_base
import make_text_base
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from covrl.generation.decoding import cache_keyword
from covrl.problems import animals, digits
from covrl.problems.embedded import TraceCheck
from covrl.problems.tasks import Task, find_task
from covrl.records import Problem

BATCH = 512


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probe has to know of a task.

    ``most_tokens`` is where sampling stops; no true trace of five digits or animals has more. ``ends_in`` says
    whether a trace comes to what a hint says.
    """

    task: Task
    base: Path
    most_tokens: int
    habits: Sequence[StrEnum]
    right: StrEnum
    write_trace: Callable[..., str]
    read_trace: Callable[[str, str], TraceCheck]
    ends_in: Callable[[str, str], bool]


def _takes(trace: str, hint: str) -> bool:
    """Whether the animals that a trace takes are those that the hint names, in that order."""
    taken = trace.partition(" take ")[2].partition(" leave")[0].split(" ")[1:]
    return taken == [word for word in hint.split(" ") if word in animals.ANIMALS]


PROBED = {
    "digits": Probed(
        find_task("digits"),
        make_base.BASE_FOLDER,
        12,
        list(digits.Habit),
        digits.RIGHT,
        digits.write_trace,
        digits.read_trace,
        str.endswith,
    ),
    "animals": Probed(
        find_task("animals"),
        make_text_base.BASE_FOLDER,
        15,
        list(animals.Habit),
        animals.RIGHT,
        animals.write_trace,
        animals.read_trace,
        _takes,
    ),
}


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    stop: str,
    most_tokens: int,
    greedy: bool = False,
) -> list[str]:
    """One continuation of each prompt, up to and without the tag ``stop`` (or cut at ``most_tokens`` tokens)."""
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(list(prompts[start : start + BATCH]), return_tensors="pt", padding=True, padding_side="left")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        named = {cache_keyword(type(model)): DynamicCache(config=model.config)}
        sampled: list[Tensor] = []
        for _ in range(most_tokens):
            # Rotary positions are relative, so the padding on the left only has to be masked.
            logits = model(input_ids=ids, attention_mask=mask, use_cache=True, **named).logits[:, -1]
            ids = logits.argmax(-1, keepdim=True) if greedy else torch.multinomial(logits.softmax(-1), 1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            sampled.append(ids)
        texts += [text.split(stop)[0] for text in tokenizer.batch_decode(torch.cat(sampled, dim=1))]
    return texts


@torch.no_grad()
def answer_log_probs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem], traces: Sequence[str]
) -> list[float]:
    """log p of each problem's reference answer and closing tag behind the trace, in nats."""
    found: list[float] = []
    pairs = list(zip(_answering(chosen, traces), [p.answer + task.ANSWER_CLOSE for p in chosen], strict=True))
    for start in range(0, len(pairs), BATCH):
        heads, tails = zip(*pairs[start : start + BATCH], strict=True)
        ids = [h + t for h, t in zip(*(tokenizer(list(x))["input_ids"] for x in (heads, tails)), strict=True)]
        tail_sizes = [len(t) for t in tokenizer(list(tails))["input_ids"]]
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        log_probs = model(input_ids=rows).logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
        for line, row, size in zip(log_probs, ids, tail_sizes, strict=True):
            found.append(float(line[len(row) - 1 - size : len(row) - 1].sum()))
    return found


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _prior_prompts(chosen: Sequence[Problem]) -> list[str]:
    return [task.PRIOR_PROMPT.format(question=problem.question) for problem in chosen]


def _answering(chosen: Sequence[Problem], traces: Sequence[str]) -> list[str]:
    return [
        f"{prompt}{trace}{task.TRACE_CLOSE}{task.ANSWER_OPEN}"
        for prompt, trace in zip(_prior_prompts(chosen), traces, strict=True)
    ]


def _accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Problem],
    traces: Sequence[str],
    *,
    most_tokens: int,
    greedy: bool,
) -> float:
    prompts = _answering(chosen, traces)
    answers = complete(model, tokenizer, prompts, stop=task.ANSWER_CLOSE, most_tokens=most_tokens, greedy=greedy)
    return _share([a in (problem.answer, *problem.accepted) for a, problem in zip(answers, chosen, strict=True)])


def probe_prior(
    probed: Probed, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[Problem], seed: int
) -> dict[str, float]:
    """Shares of the procedures, false steps and accuracies under the prior prompt, and the answer's likelihoods."""
    prompts, most = _prior_prompts(chosen), probed.most_tokens
    sampled = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE, most_tokens=most)
    best = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE, most_tokens=most, greedy=True)
    checks = [probed.read_trace(problem.question, trace) for problem, trace in zip(chosen, sampled, strict=True)]
    rng = random.Random(seed)
    others = [habit for habit in probed.habits if habit != probed.right]
    right = [probed.write_trace(probed.right, problem.question) for problem in chosen]
    wrong = [probed.write_trace(rng.choice(others), problem.question) for problem in chosen]
    return {f"share/{habit}": _share([check.habit == habit for check in checks]) for habit in probed.habits} | {
        "false_step": _share([check.false_step for check in checks]),
        "accuracy/sampled": _accuracy(model, tokenizer, chosen, sampled, most_tokens=most, greedy=False),
        "accuracy/greedy": _accuracy(model, tokenizer, chosen, best, most_tokens=most, greedy=True),
        "accuracy/behind_right": _accuracy(model, tokenizer, chosen, right, most_tokens=most, greedy=False),
        **_spread("log_p/right", answer_log_probs(model, tokenizer, chosen, right)),
        **_spread("log_p/wrong", answer_log_probs(model, tokenizer, chosen, wrong)),
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean and the 5 % and 95 % points."""
    ordered = sorted(values)
    return {name: sum(values) / len(values)} | {
        f"{name}/{percent}%": ordered[round(percent / 100 * (len(ordered) - 1))] for percent in (5, 95)
    }


def probe_posterior(
    probed: Probed,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: Sequence[Problem],
    hints: Sequence[str],
) -> dict[str, float]:
    """Shares of sound traces, of traces with a false step and of traces that come to what the hint says."""
    prompts = [
        task.POSTERIOR_PROMPT.format(question=problem.question, hint=hint)
        for problem, hint in zip(chosen, hints, strict=True)
    ]
    traces = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE, most_tokens=probed.most_tokens)
    checks = [probed.read_trace(problem.question, trace) for problem, trace in zip(chosen, traces, strict=True)]
    return {
        "right": _share([check.sound for check in checks]),
        "false_step": _share([check.false_step for check in checks]),
        "ends_in_hint": _share([probed.ends_in(trace, hint) for trace, hint in zip(traces, hints, strict=True)]),
    }


def probe(name: str, folder: Path, count: int, seed: int) -> dict[str, dict[str, float]]:
    """All figures of the model in ``folder``, on ``count`` traces each; dev questions repeat if there are fewer."""
    torch.manual_seed(seed)
    probed = PROBED[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    dev = probed.task.problems("dev")
    chosen = [dev[index % len(dev)] for index in range(count)]
    hints = [problem.answer for problem in chosen]
    shuffled = random.Random(seed).sample(hints, len(hints))
    return {
        "prior": probe_prior(probed, model, tokenizer, chosen, seed),
        "posterior/true": probe_posterior(probed, model, tokenizer, chosen, hints),
        "posterior/shuffled": probe_posterior(probed, model, tokenizer, chosen, shuffled),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: prints the figures as lines, or as one JSON object."""
    parser = argparse.ArgumentParser(prog="python benchmarks/probe_base.py", description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=list(PROBED), default="digits")
    parser.add_argument("--model", type=Path, help="a model folder (default: the task's shipped base)")
    parser.add_argument("--problems", type=int, default=4096, help="traces for each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    probed = PROBED[options.task]
    figures = probe(options.task, options.model or probed.base, options.problems, options.seed)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{options.problems} traces each, dev questions; without the right procedure {probed.task.chance():.1%}")
    for prompt, values in figures.items():
        for name, value in values.items():
            print(f"{prompt:20}{name:24}" + (f"{value:8.2f} nats" if name.startswith("log_p") else f"{value:8.2%}"))


if __name__ == "__main__":
    main()
