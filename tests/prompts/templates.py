"""Chat templates of the kinds that public models have, in their smallest form, and prompts made with them."""

from __future__ import annotations

from typing import Any

from models import byte_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from covrl.config import PromptConfig
from covrl.prompts import Prompts
from covrl.records import Problem

TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"


def generation(opened: str) -> str:
    """A template of plain turns whose generation prompt is ``opened``."""
    return f"{TURNS}{{% if add_generation_prompt %}}{opened}{{% endif %}}"


HEADER = "<|assistant|>\n"
PLAIN = generation(HEADER)
OPENS = generation(HEADER + "<think>\n")
CLOSES = generation(HEADER + "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}")
NO_GENERATION = TURNS
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role\nhere') }}{% endif %}" + PLAIN
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}<|end|>\n<|assistant|>\n"
    "{% endif %}{% endfor %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% endif %}{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DATED = "<|system|>Today is {{ strftime_now('%-d %B %Y, 100%%') }}<|end|>\n" + PLAIN

PROBLEM = Problem("p", "What is 2 + 2?", "4")


def tokenizer_with(template: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the tokens of the templates."""
    tokenizer = byte_tokenizer()
    special = [AddedToken(t, special=True, normalized=False) for t in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    tokenizer.chat_template = template
    return tokenizer


def prompts_with(template: Any, **settings: Any) -> Prompts:
    """Prompts of default settings but ``settings``."""
    return Prompts(tokenizer_with(template), PromptConfig(**settings))


def read(prompts: Prompts, ids: tuple[int, ...]) -> str:
    """The text of ids, special tokens included."""
    return str(prompts.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def both(prompts: Prompts, problem: Problem = PROBLEM) -> tuple[str, str]:
    """The prior and the posterior prompt of a problem as text, from their ids."""
    return read(prompts, prompts.prior(problem)), read(prompts, prompts.posterior(problem))
