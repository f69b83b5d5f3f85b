"""A likelihood reward for verl: ``compute_score(data_source, solution_str, ground_truth, extra_info)``.

    reward.custom_reward_function.path = …/covrl/bridges/verl.py     name = compute_score
    reward.custom_reward_function.reward_kwargs = {model: my/base, form: verifree}

verl hands a reward function the text of a response and no model. Answers are therefore scored with a model of its own,
which is loaded once and does not change: log p(y|x,z) is that of the base, not of the policy of the moment, and the
text is tokenised again. That is another reward than the method's own as soon as the policy has moved (ours, INFERRED);
a scorer that follows the policy would need verl's own log-prob worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from covrl.bridges.likelihood import Asked, Form, LikelihoodReward, prompt_ids
from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.models.model import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    model: str = "",
    form: Form = "verifree",
    device: str = "auto",
    close: str = "</think>",
    answer_prefix: str = "\n<answer>",
    answer_suffix: str = "</answer>",
) -> float:
    """The reward of one response; ``model`` and what follows come from verl's ``reward_kwargs``.

    The prompt is ``extra_info["prompt"]`` (messages or a text), else ``extra_info["question"]`` as the user's turn.
    ``close``, ``answer_prefix`` and ``answer_suffix`` are how responses are written. A response is a group of its own,
    so ``jepo`` gives one whose thought was not closed the floor less 1.

    Raises:
        UserError: there is no model, no prompt or no reference answer.
    """
    if not model:
        raise UserError("compute_score: no model to score with: set model in custom_reward_function.reward_kwargs")
    given = extra_info or {}
    prompt = given.get("prompt") or given.get("question")
    if not prompt:
        raise UserError(f"compute_score: a row of {data_source} has neither prompt nor question in extra_info")
    if not isinstance(ground_truth, str) or not ground_truth.strip():
        raise UserError(
            f"compute_score: a row of {data_source}: expected a text as ground_truth, found {ground_truth!r}"
        )
    reward, tokenizer = _loaded(model, form, device, close, answer_prefix, answer_suffix)
    if "prompt" not in given and tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    response = tuple(tokenizer(solution_str, add_special_tokens=False)["input_ids"])
    return reward.rewards([Asked(prompt_ids(tokenizer, prompt, {}), response, ground_truth)])[0]


@cache
def _loaded(
    model: str, form: Form, device: str, close: str, answer_prefix: str, answer_suffix: str
) -> tuple[LikelihoodReward, PreTrainedTokenizerBase]:
    """The model of a process, loaded once."""
    loaded, tokenizer = load_model(ModelConfig(path=model, device=device))
    return LikelihoodReward(loaded.model, tokenizer, form, close, answer_prefix, answer_suffix), tokenizer
