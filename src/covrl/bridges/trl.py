"""A likelihood reward for TRL's ``GRPOTrainer``; written for TRL 1.16, which is not imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from covrl.bridges.likelihood import Asked, Form, LikelihoodReward, prompt_ids
from covrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AnswerLikelihood:
    """A reward function for ``GRPOTrainer`` that wants no verifier: how likely the reference answer is.

    Example:
        >>> model = AutoModelForCausalLM.from_pretrained("my/model")
        >>> reward = AnswerLikelihood(model, tokenizer, form="rlpr")
        >>> GRPOTrainer(model=model, reward_funcs=reward, processing_class=tokenizer, train_dataset=rows, args=config)

    ``model`` is the object that the trainer trains, so that answers are scored with the weights of the moment.
    ``column`` is the data set's column with the reference answers. ``template_options`` are the trainer's
    ``chat_template_kwargs``. Forms and the other options are those of
    :class:`covrl.bridges.likelihood.LikelihoodReward`. Responses are scored by the ids that were sampled; prompts are
    rendered as TRL renders them, without tools and images.

    Raises:
        UserError: no such form, or the model cannot be computed with.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        form: Form = "rlpr",
        column: str = "answer",
        template_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._reward = LikelihoodReward(model, tokenizer, form, **options)
        self._tokenizer, self._column, self._options = tokenizer, column, dict(template_options or {})
        self.__name__ = f"answer_likelihood_{form}"

    @property
    def notes(self) -> list[str]:
        """What was found of the model's fast paths, a sentence each."""
        return self._reward.notes

    def __call__(
        self,
        prompts: Sequence[str | Sequence[Mapping[str, Any]]],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        """A reward for each completion; TRL's texts of them are not read, as their ids are there.

        Raises:
            UserError: the column of reference answers is not there, or one of them is no text.
        """
        del completions
        answers = columns.get(self._column)
        if answers is None:
            known = ", ".join(sorted(name for name, value in columns.items() if isinstance(value, list)))
            raise UserError(f"the data set has no column {self._column!r} (column=…); there is {known or 'none'}")
        asked = []
        for row, (prompt, ids, answer) in enumerate(zip(prompts, completion_ids, answers, strict=True)):
            if not isinstance(answer, str) or not answer.strip():
                raise UserError(f"column {self._column!r}, row {row} of the batch: expected a text, found {answer!r}")
            asked.append(Asked(prompt_ids(self._tokenizer, prompt, self._options), tuple(ids), answer))
        return self._reward.rewards(asked)
