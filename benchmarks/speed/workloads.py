"""The workloads as data, and the model folders that both sides load: same weights, same tokenizer, same prompts."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speed.word_problems import WORD_PROBLEMS


@dataclass(frozen=True, slots=True)
class Workload:
    """One GRPO batch: ``problems`` prompts of ``prompt`` tokens, ``rollouts`` responses of at most ``new`` tokens each.

    ``end`` is the chance that a token ends the response; 0: all have exactly ``new`` tokens. ``close`` is the chance
    of the token that closes a thought (:data:`CLOSE`), for methods that read an answer behind it.

    ``real``: the model is a pretrained one that is given, prompts are word problems in its chat template (``prompt`` is
    their mean length), and every trace and response has exactly ``new`` tokens. ``threads``: what it is measured with,
    in seconds on the wall; 0: the threads that are asked for, in CPU seconds.

    Example:
        >>> WORKLOADS["M-34"]
    """

    name: str
    hidden: int
    layers: int
    heads: tuple[int, int]  # query heads, key and value heads
    vocabulary: int
    prompt: int
    new: int = 64
    problems: int = 8
    rollouts: int = 8
    end: float = 0.0
    close: float = 0.0
    steps: int = 2  # measured, after one that is not
    inner: int = 0  # of the feed-forward layers; 0: 11/4 of hidden
    real: bool = False
    threads: int = 0

    @property
    def rows(self) -> int:
        """Responses of a step."""
        return self.problems * self.rollouts

    @property
    def clock(self) -> str:
        """Which seconds count: on the wall or of the CPU."""
        return "wall" if self.threads else "cpu"

    @property
    def model(self) -> str:
        """The folder of its model: workloads of the same architecture and end share it."""
        closing = f"-c{self.close}" if self.close else ""
        inner = f"-i{self.inner}" if self.inner else ""
        return f"{self.hidden}x{self.layers}{inner}-v{self.vocabulary}-e{self.end}{closing}"

    @property
    def mean_length(self) -> float:
        """Expected tokens of a response: one that ends or closes with a chance at each token, and at ``new``."""
        chance = self.end + self.close
        return (1 - (1 - chance) ** self.new) / chance if chance else float(self.new)


S: dict[str, Any] = {"hidden": 128, "layers": 2, "heads": (4, 2), "vocabulary": 512}
M: dict[str, Any] = {"hidden": 512, "layers": 8, "heads": (8, 2), "vocabulary": 4096}
HALF: dict[str, Any] = {"hidden": 896, "layers": 24, "heads": (14, 2), "vocabulary": 151_936, "inner": 4864}
LARGE: dict[str, Any] = {"hidden": 1536, "layers": 28, "heads": (12, 2), "vocabulary": 151_936, "inner": 8960}
"""The shapes of Qwen2.5 0.5B and 1.5B, for accelerators."""
SMOL: dict[str, Any] = {"hidden": 576, "layers": 30, "heads": (9, 3), "vocabulary": 49_152, "inner": 1536}
"""The shape of SmolLM2-135M."""

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload("S", **S, prompt=34, steps=20),
        Workload("M-34", **M, prompt=34),
        Workload("M-256", **M, prompt=256, steps=1),
        Workload("M-early", **M, prompt=34, end=1 / 16),
        Workload("M-wide", **(M | {"vocabulary": 151_936}), prompt=34, steps=1),
        Workload("M-close", **M, prompt=34, new=128, close=1 / 64, steps=1),
        Workload("S-long", **S, prompt=34, new=1024, problems=2, rollouts=4, steps=2),
        Workload("0.5B", **HALF, prompt=256, new=512, problems=16, close=1 / 128),
        Workload("1.5B", **LARGE, prompt=256, new=512, problems=16, close=1 / 128),
        Workload("REAL", **SMOL, prompt=58, new=80, steps=1, real=True, threads=2),
        Workload("tiny", **S, prompt=12, new=16, problems=2, rollouts=4, close=1 / 8, steps=1),
    )
}


STEP_WORKLOADS = ("S", "M-34", "M-256", "M-early", "M-wide", "S-long")
"""Those whose step is compared with TRL's. REAL is too where it is asked for: its model is not made here."""

LETTERS = 480
"""Tokens that are one letter of text; further ones only widen the vocabulary."""


def letter(number: int) -> str:
    """The text of a token: one letter, so that texts and tokens are in step without spaces."""
    return chr(0x4E00 + number)


CLOSE = letter(1)
"""The token that closes a thought where a workload has a chance for it."""


def workload_of(asked: dict[str, Any]) -> Workload:
    """The workload that a worker is asked for: its name, and what is changed of it."""
    return replace(WORKLOADS[asked["workload"]], **asked.get("changes", {}))


def questions(workload: Workload, steps: int) -> list[str]:
    """Prompts of exactly ``prompt`` tokens, all different, the same on both sides; word problems for a real model."""
    if workload.real:
        return [text for text, _ in word_problems(steps * workload.problems)]
    chosen = random.Random(0)
    return [
        "".join(letter(chosen.randrange(8, LETTERS - 8)) for _ in range(workload.prompt))
        for _ in range(steps * workload.problems)
    ]


def word_problems(count: int) -> list[tuple[str, str]]:
    """The first of them, as (question, answer), from the start again where there are not as many."""
    return [WORD_PROBLEMS[i % len(WORD_PROBLEMS)] for i in range(count)]


def reward(text: str) -> float:
    """A reward that differs within every group and costs nothing."""
    return (sum(map(ord, text)) * 2_654_435_761 % 1000) / 1000


def make_model(workload: Workload, folder: Path) -> Path:
    """Write the workload's model and tokenizer under ``folder``, once; returns their folder."""
    import torch
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    target = folder / workload.model
    if (target / "ready").exists():
        return target
    size = workload.vocabulary
    words = {letter(i) if i < LETTERS else f"<{i}>": i for i in range(size - 2)}
    tokenizer = Tokenizer(WordLevel(words | {"<pad>": size - 2, "<eos>": size - 1}, unk_token=letter(0)))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(target)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(model_config(workload))
    fix_chances(model, {size - 1: workload.end, 1: workload.close} if workload.close else {size - 1: workload.end})
    model.save_pretrained(target)
    (target / "ready").write_text("")
    return target


def model_config(workload: Workload) -> Any:
    """The architecture of the workload's model."""
    from transformers import Qwen2Config

    query, key = workload.heads
    size = workload.vocabulary
    return Qwen2Config(
        hidden_size=workload.hidden,
        intermediate_size=workload.inner or workload.hidden * 11 // 4,
        num_hidden_layers=workload.layers,
        num_attention_heads=query,
        num_key_value_heads=key,
        vocab_size=size,
        max_position_embeddings=4096,
        eos_token_id=size - 1,
        pad_token_id=size - 2,
        tie_word_embeddings=True,
    )


def fix_chances(model: Any, chances: dict[int, float]) -> None:
    """Give tokens their chance at every position: one feature of the hidden state is made constant for them."""
    import torch

    trunk, head = model.model, model.lm_head.weight.data  # tied: what all tokens share cancels in the softmax
    with torch.no_grad():
        trunk.embed_tokens.weight[:, 0] = 1.0
        for layer in trunk.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        ids = torch.arange(2, min(len(head) - 8, 66))[None]
        hidden = trunk(input_ids=ids).last_hidden_state[0]
        others = torch.logsumexp(hidden @ head.T, dim=-1).mean()
        for token, chance in chances.items():
            wanted = math.log(chance / (1 - chance)) if chance else -30.0
            head[token] = 0.0  # a row that is read again only behind the end
            head[token, 0] = (wanted + float(others)) / float(hidden[:, 0].mean())
