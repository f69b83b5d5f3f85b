"""Rewards of whole responses from the likelihood of the reference answer, in the forms of RLPR, VeriFree and JEPO.

A response is ``thought </think> <answer> its own answer </answer>``. It is cut after its thought, the reference answer
takes the place of its own, and the reward is made of log p(y|x,z), the log-probs ``[A]`` of that answer's tokens, with
its closing tag:

    rlpr      0.9·max(0, mean p − base) + 0.1·format;  base: mean p after an empty thought, by the model as it was given
    verifree  exp Σ log p;  0 where the thought was not closed
    jepo      Σ log p in nats, at least the reward's floor;  the group's worst less 1 where the thought was not closed

These are the rewards of :mod:`covrl.algorithms.rlpr`, ``verifree`` and ``jepo``, whose docstrings have sources and
labels, and the same functions compute them. What else these methods do is not a reward and is not here: the answer's
own term in the loss (VeriFree, JEPO), the filter of questions (RLPR).
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from covrl.algorithms.jepo import JEPOConfig
from covrl.algorithms.one_prompt import ANSWER, EMPTY, EMPTY_READING, answer_probability, worst_for_invalid
from covrl.algorithms.rlpr import RLPRConfig, mean_probability, raw_reward
from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.generation.proof import prove
from covrl.models.model import LanguageModel
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout, Row, Scores
from covrl.rewards.likelihood import answer_reward, reward_floor
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["rlpr", "verifree", "jepo"]

LONGEST_PROVED = 512
"""Tokens of the longest row that the model's fast paths are checked on."""


class Asked(NamedTuple):
    """One response as a trainer has it: ids of prompt and response, and the reference answer.

    Example:
        >>> Asked(prompt_ids=(1, 15, 8), response_ids=(7, 7, 2, 9, 5, 3), answer="42")
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    answer: str


class GivenPrompts(Prompts):
    """Rows after prompts that another trainer rendered: a problem's question is looked up, not rendered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        super().__init__(tokenizer, config)
        self.given: dict[str, tuple[int, ...]] = {}

    def prior(self, problem: Problem) -> tuple[int, ...]:
        return self.given[problem.id]


class LikelihoodReward:
    """The rewards of responses by one model; what it is now is what it scores with.

    ``close``, ``answer_prefix`` and ``answer_suffix`` are how responses are written. ``tokens_per_pass`` bounds the
    padded tokens of a forward pass, ``logits_mb`` the logits held at once. The form ``rlpr`` keeps a frozen copy of the
    model as it is given, for its baseline.

    Raises:
        UserError: there is no such form, or the model cannot be computed with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        form: Form = "rlpr",
        close: str = "</think>",
        answer_prefix: str = "\n<answer>",
        answer_suffix: str = "</answer>",
        tokens_per_pass: int = 8192,
        logits_mb: int = 64,
    ) -> None:
        if form not in get_args(Form):
            raise UserError(f"form: {form!r} is none; there are {', '.join(get_args(Form))}")
        self.form, self._limits = form, (tokens_per_pass, logits_mb << 20)
        tags = PromptConfig(close=close, answer_prefix=answer_prefix, answer_suffix=answer_suffix)
        self.prompts = GivenPrompts(tokenizer, tags)
        with _as_it_was(model):
            self._models = {"policy": LanguageModel(model)}
            self.notes = prove(self._models["policy"], None, tokenizer, LONGEST_PROVED, "the given model")
            paths = self._models["policy"].paths._replace(shared=False)  # shared prompts change the model's attention
            self._models["policy"].paths = paths
        if form == "rlpr":
            self._models["reference"] = LanguageModel(copy.deepcopy(model).requires_grad_(False))
            self._models["reference"].paths = paths

    def rewards(self, asked: Sequence[Asked]) -> list[float]:
        """A reward for each response; those of equal prompt and answer are a group.

        Raises:
            UserError: a reference answer is empty.
        """
        groups: dict[tuple[tuple[int, ...], str], list[int]] = {}
        for index, each in enumerate(asked):
            groups.setdefault((each.prompt_ids, each.answer), []).append(index)
        pairs: dict[int, tuple[Problem, Rollout]] = {}
        self.prompts.given = {}
        for number, ((prompt, answer), members) in enumerate(groups.items()):
            problem = Problem(str(number), "", answer)
            self.prompts.given[problem.id] = prompt
            pairs |= {index: (problem, self._rollout(asked[index], place)) for place, index in enumerate(members)}
        scores = self._scores([pairs[index] for index in range(len(asked))])
        found: dict[int, float] = {}
        for members in groups.values():
            rollouts, own = [pairs[index][1] for index in members], [scores[index] for index in members]
            floor = reward_floor(len(self.prompts.answer(pairs[members[0]][0])))
            found |= zip(members, self._of_group(rollouts, own, floor), strict=True)
        return [found[index] for index in range(len(asked))]

    def _rollout(self, asked: Asked, place: int) -> Rollout:
        ids = asked.response_ids
        text = str(
            self.prompts.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        request = Request("given", place, asked.prompt_ids, "prior")
        return Rollout(request, ids, (0.0,) * len(ids), "eos", "none", text)

    def _scores(self, pairs: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
        """The reference answer after each thought, and for ``rlpr`` once a group after an empty one."""

        def after_thought(problem: Problem, rollout: Rollout) -> Row | None:
            thought = self.prompts.thought(rollout)
            return None if thought is None else self.prompts.prior_row(problem, thought)

        def after_nothing(problem: Problem, rollout: Rollout) -> Row | None:
            return self.prompts.direct_row(problem, rollout) if rollout.request.index == 0 else None

        contexts = [Context("answer", after_thought)]
        readings = [Reading(ANSWER.span, ("answer",), log_prob, (ANSWER.name,))]
        if self.form == "rlpr":
            contexts.append(Context("direct", after_nothing, "reference"))
            readings.append(EMPTY_READING)
        with _as_it_was(self._models["policy"].model):
            self._models["policy"].model.eval()
            return score(self._models, contexts, readings, pairs, *self._limits)

    def _of_group(self, rollouts: Sequence[Rollout], scores: Sequence[Scores], floor: float) -> list[float]:
        if self.form == "verifree":
            return [answer_probability(each) for each in scores]
        if self.form == "jepo":
            found = [answer_reward(each[ANSWER], "sum") if ANSWER in each else None for each in scores]
            if all(each is None for each in found):  # nothing to compare: all are alike, and no advantage comes of it
                return [floor - JEPOConfig().invalid_penalty for _ in found]
            return worst_for_invalid(found, JEPOConfig().invalid_penalty)
        base, weigh = next(mean_probability(each[EMPTY]) for each in scores if EMPTY in each), RLPRConfig()
        return [
            weigh.probability_weight * max(0.0, raw_reward(each) - base)
            + weigh.format_weight * (self.prompts.said(rollout.text) is not None)
            for rollout, each in zip(rollouts, scores, strict=True)
        ]


@contextmanager
def _as_it_was(model: Any) -> Generator[None]:
    """Leaves a trainer's model in the modes that it was in: training or not, of each module, and what it trains."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[int, ...]:
    """Ids of a text, or of messages by the chat template up to where the assistant begins.

    ``options`` are further variables of the template.
    """
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt)["input_ids"])
    rendered = tokenizer.apply_chat_template(
        [dict(message) for message in prompt], add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )
    return tuple(rendered["input_ids"])  # ty: ignore[invalid-argument-type]
