"""Makes the base model of the laptop task: ``python benchmarks/make_base.py``.

It builds a tokenizer and trains a Llama model of 0.34 M parameters, supervised, on the questions of the ``base``
split. The result is a plain Hugging Face folder. The base follows all eight procedures without false steps, but
under the prior prompt it takes the right one in about 0.5 % of its traces: that share is what reinforcement
learning has to raise. Under the posterior prompt it has learnt to prefer a procedure that ends in the hint.
``--right-share 0.2 --rival-share 0.3`` makes the base of the setting in which the right procedure is common
(``base_common``): without a rival it would be the most likely one, and greedy decoding right from the start.

The same seed gives the same bytes on the same machine.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import base_texts as task
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from covrl.models.model import SHIPPED
from covrl.problems.digits import RIGHT, Habit, questions, result, write_trace

BASE_FOLDER = SHIPPED / "base"

RIGHT_SHARE = 0.005


RIVAL = Habit.LOW


def prior_weights(right_share: float, rival_share: float | None = None) -> dict[Habit, float]:
    """How often each procedure is shown under the prior prompt: the right one and the rival so often, others alike.

    ``None`` counts the rival among the others.
    """
    given = {RIGHT: right_share} | ({} if rival_share is None else {RIVAL: rival_share})
    rest = (1 - sum(given.values())) / (len(Habit) - len(given))
    return {h: given.get(h, rest) for h in Habit}


PRIOR_WEIGHTS = prior_weights(RIGHT_SHARE)

TRUE_HINTS = 0.8
"""Share of posterior rows whose hint is the trace's own result, with all procedures alike. The others show the result
of some procedure on another question, and the procedure is drawn as under the prior prompt: a hint that leads nowhere
leaves the habits as they were, and copying it does not pay."""

STRAY_ANSWERS = 0.02
"""Share of prior rows whose answer is not the trace's result but another question's, as in any real text. Without
them the model puts wrong answers at −15 nats a digit, where they cannot be told apart."""

STEPS = 2000
PRIOR_ROWS = 64
POSTERIOR_ROWS = 128
PEAK_RATE = 3e-3
WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised row: the loss is on ``target`` alone. ``hint`` is ``None`` under the prior prompt."""

    question: str
    habit: StrEnum
    hint: str | None
    prompt: str
    target: str

    @classmethod
    def prior(cls, question: str, habit: StrEnum, trace: str, said: str) -> Example:
        """A trace under the prior prompt, and the answer after it."""
        target = f"{trace}{task.TRACE_CLOSE}{task.ANSWER_OPEN}{said}{task.ANSWER_CLOSE}{task.EOS}"
        return cls(question, habit, None, task.PRIOR_PROMPT.format(question=question), target)

    @classmethod
    def posterior(cls, question: str, habit: StrEnum, hint: str, trace: str) -> Example:
        """A trace under the posterior prompt; it stops at the closing tag: no answer is learnt with a hint in sight."""
        prompt = task.POSTERIOR_PROMPT.format(question=question, hint=hint)
        return cls(question, habit, hint, prompt, f"{trace}{task.TRACE_CLOSE}")


def prior_example(rng: random.Random, pool: Sequence[str], weights: Mapping[Habit, float] = PRIOR_WEIGHTS) -> Example:
    """A row under the prior prompt: trace, then (mostly) the trace's own result as the answer, be it right or wrong."""
    question = rng.choice(pool)
    habit = _draw(rng, weights)
    said = _stray_result(rng, pool) if rng.random() < STRAY_ANSWERS else result(habit, question)
    return Example.prior(question, habit, write_trace(habit, question), said)


def posterior_example(
    rng: random.Random, pool: Sequence[str], weights: Mapping[Habit, float] = PRIOR_WEIGHTS
) -> Example:
    """A row under the posterior prompt, whose hint mostly is the trace's own result."""
    question = rng.choice(pool)
    if rng.random() < TRUE_HINTS:
        habit = rng.choice(list(Habit))
        hint = result(habit, question)
    else:
        habit, hint = _draw(rng, weights), _stray_result(rng, pool)
    return Example.posterior(question, habit, hint, write_trace(habit, question))


def _draw(rng: random.Random, weights: Mapping[Habit, float]) -> Habit:
    return rng.choices(list(weights), list(weights.values()))[0]


def _stray_result(rng: random.Random, pool: Sequence[str]) -> str:
    return result(rng.choice(list(Habit)), rng.choice(pool))


def supervised_rows(
    rng: random.Random, pool: Sequence[str], weights: Mapping[Habit, float] = PRIOR_WEIGHTS
) -> list[Example]:
    """One batch: rows under the prior prompt, then rows under the posterior prompt, questions drawn from ``pool``."""
    prior = [prior_example(rng, pool, weights) for _ in range(PRIOR_ROWS)]
    return prior + [posterior_example(rng, pool, weights) for _ in range(POSTERIOR_ROWS)]


def build_tokenizer(vocabulary: Sequence[str] = task.VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a digit, word or tag; decoding gives back every text made of these."""
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=task.UNK))
    # A token that begins another stands after it in the vocabulary; any other character is <unk>.
    words = "|".join(_literal(token) for token in vocabulary if token not in task.SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{words}|."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=task.PAD,
        eos_token=task.EOS,
        unk_token=task.UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def _literal(token: str) -> str:
    """A token as a regular expression; re.escape would also change those of the bases that are there."""
    return re.sub(r"[+*()]", r"\\\g<0>", token)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model; its weights depend on torch's seed alone.

    It is a Llama and not a Qwen2: for ``model_type`` qwen2, transformers 5 ignores the folder's own tokenizer class
    and rebuilds a byte-level tokenizer, without an error, and every tag and word is lost.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return LlamaForCausalLM(config)


def collate(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Example]) -> dict[str, Tensor]:
    """Ids and labels of the rows, padded on the right; labels are -100 on the prompt and the padding."""
    prompts = tokenizer([row.prompt for row in rows])["input_ids"]
    targets = tokenizer([row.target for row in rows])["input_ids"]
    pairs = list(zip(prompts, targets, strict=True))
    width = max(len(prompt) + len(target) for prompt, target in pairs)
    ids = torch.full((len(rows), width), task.VOCABULARY.index(task.PAD))
    labels = torch.full((len(rows), width), -100)
    for index, (prompt, target) in enumerate(pairs):
        stop = len(prompt) + len(target)
        ids[index, :stop] = torch.tensor(prompt + target)
        labels[index, len(prompt) : stop] = torch.tensor(target)
    # Padding stands on the right, where causal attention keeps it out of every position that carries loss.
    return {"input_ids": ids, "labels": labels}


def digit_rows(rng: random.Random, weights: Mapping[Habit, float] = PRIOR_WEIGHTS) -> list[Example]:
    """One batch of the digits task, from all questions of its ``base`` split."""
    return supervised_rows(rng, questions("base"), weights)


def train(
    seed: int,
    steps: int,
    vocabulary: Sequence[str] = task.VOCABULARY,
    batch: Callable[[random.Random], list[Example]] = digit_rows,
) -> Iterator[tuple[int, float, PreTrainedTokenizerFast, LlamaForCausalLM]]:
    """Trains a base on what ``batch`` draws and yields (steps done, loss, tokenizer, model) after every step."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = build_tokenizer(vocabulary)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))
    )
    for step in range(steps):
        loss = model(**collate(tokenizer, batch(rng)), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step + 1, loss.item(), tokenizer, model


def make(
    name: str,
    folder: Path,
    steps: int,
    run: Callable[[int, int], Iterator[tuple[int, float, PreTrainedTokenizerFast, LlamaForCausalLM]]],
    arguments: Sequence[str] | None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> None:
    """The script ``name``: trains a base by ``run(seed, steps)`` and writes its folder.

    ``parents`` are parsers of further options, which the caller has read.
    """
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py", description="Makes the base model of an embedded task.", parents=parents
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=folder, help="the folder to write (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=steps)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums are split by thread, so their number would change the bytes
    start = time.perf_counter()
    for step, loss, tokenizer, model in run(options.seed, options.steps):
        if step % 100 == 0 or step == options.steps:
            print(f"step {step}/{options.steps}  loss {loss:.4f}  {time.perf_counter() - start:.0f} s", flush=True)
        if step == options.steps:
            model.save_pretrained(options.out)
            tokenizer.save_pretrained(options.out)
            print(f"wrote {options.out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: trains the base of the digits task and writes its folder."""
    parser = argparse.ArgumentParser("python benchmarks/make_base.py", add_help=False)
    parser.add_argument(
        "--right-share",
        type=_share,
        default=RIGHT_SHARE,
        metavar="SHARE",
        help=f"share of the right procedure under the prior prompt (default: {RIGHT_SHARE})",
    )
    parser.add_argument(
        "--rival-share",
        type=_share,
        metavar="SHARE",
        help=f"share of the procedure {RIVAL} (default: that of the other wrong ones)",
    )
    shares = parser.parse_known_args(arguments)[0]
    weights = prior_weights(shares.right_share, shares.rival_share)
    if min(weights.values()) < 0:
        parser.error("the right procedure and its rival have shares of more than 1 together")
    run = partial(train, batch=partial(digit_rows, weights=weights))
    make("make_base", BASE_FOLDER, STEPS, run, arguments, [parser])


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text}")
    return value


if __name__ == "__main__":
    main()
