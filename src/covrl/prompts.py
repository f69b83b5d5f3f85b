"""The three roles as token ids: prior p(z|x), posterior q(z|x,y), answer likelihood p(y|x,z).

Token in, token out: a sampled trace is never tokenised again. The question's prompt, the closing tag and the
answer are each encoded apart, so no merge crosses a border and the trace has the same ids in every context.
What a prior-context row holds besides question and trace does not depend on y before the answer span.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.records import Problem, Rollout, Row, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]


class Prompts:
    """Renders problems and rollouts with one tokenizer and one set of templates.

    Example:
        >>> prompts.prior(problem)              # ids of "Question … <think>\\n"
        >>> prompts.prior_row(problem, rollout) # prompt + trace + closing tag + answer, with spans
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config

    def prior(self, problem: Problem) -> Ids:
        """Prompt ids that do not depend on the answer."""
        return self._prompt(problem, self.config.prior_open)

    def posterior(self, problem: Problem) -> Ids:
        """Prompt ids that show the answer (or the hint that stands in for it)."""
        return self._prompt(problem, self.config.posterior_open.replace("{hint}", problem.shown))

    def answer(self, problem: Problem) -> Ids:
        """Ids of the answer and its closing tag: ``[A]``, the tokens whose likelihood is the reward.

        Raises:
            UserError: the answer is empty.
        """
        content = self.encode(problem.answer)
        if not content:
            raise UserError(f"problem {problem.id}: the answer is empty")
        return content + self.encode(self.config.answer_suffix)

    @cached_property
    def close_ids(self) -> Ids:
        """The canonical ids of the closing tag, used where sampling did not leave them whole."""
        return self.encode(self.config.close)

    @cached_property
    def answer_prefix_ids(self) -> Ids:
        """The ids between the closing tag and the answer."""
        return self.encode(self.config.answer_prefix)

    def prior_row(self, problem: Problem, rollout: Rollout) -> Row:
        """Prior prompt + trace, and for a valid trace the closing tag and the reference answer.

        Spans: ``trace`` ``[T]``; ``answer`` ``[A]`` if the trace is valid, else absent.
        """
        ids, spans = self._trace(self.prior(problem), rollout)
        if rollout.valid:
            ids += self._after_trace(rollout)
            answer = self.answer(problem)
            spans["answer"] = Span(len(ids), len(ids) + len(answer))
            ids += answer
        return Row(ids, spans)

    def posterior_row(self, problem: Problem, rollout: Rollout) -> Row:
        """Posterior prompt + trace; the answer is never scored from here, since the prompt shows it."""
        return Row(*self._trace(self.posterior(problem), rollout))

    def answer_prompt(self, rollout: Rollout) -> Ids:
        """What the model has read when it is about to answer: its own prompt, the trace, the opening tag."""
        return self._trace(rollout.request.prompt_ids, rollout)[0] + self._after_trace(rollout)

    def _after_trace(self, rollout: Rollout) -> Ids:
        appended = self.close_ids if rollout.closing == "appended" else ()
        return appended + self.answer_prefix_ids

    def _trace(self, prompt: Ids, rollout: Rollout) -> tuple[Ids, dict[str, Span]]:
        before = prompt + rollout.request.prefix_ids
        stop = len(before) + len(rollout.trace_ids)
        return before + rollout.trace_ids, {"trace": Span(len(before), stop)}

    def _prompt(self, problem: Problem, opening: str) -> Ids:
        user = self.config.user.replace("{question}", problem.question)
        if not self._chats:
            return self._start_ids + self._plain(self.config.system + user + opening)
        messages = [{"role": "user", "content": user}]
        if self.config.system:
            messages.insert(0, {"role": "system", "content": self.config.system})
        begun = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._plain(str(begun) + opening)  # the template writes its own beginning of sequence

    @property
    def _chats(self) -> bool:
        return self.config.chat == "auto" and bool(self.tokenizer.chat_template)

    @cached_property
    def _start_ids(self) -> Ids:
        """What the tokenizer itself puts before every text (a beginning-of-sequence id, or nothing)."""
        return tuple(i for i in self.tokenizer("").input_ids if i != self.tokenizer.eos_token_id)

    def encode(self, text: str) -> Ids:
        """Ids of a text that continues another one, without a beginning of sequence.

        A sentencepiece-like tokenizer puts a space before whatever it encodes; behind a line break it does not.
        """
        ids = self._plain(text)
        first = str(self.tokenizer.convert_ids_to_tokens(list(ids[:1]))[0]) if ids else ""
        if not first.startswith("▁") or text.startswith((" ", "▁")):
            return ids
        line_break, behind = self._plain("\n"), self._plain("\n" + text)
        return behind[len(line_break) :] if behind[: len(line_break)] == line_break else ids

    def _plain(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids) if text else ()
