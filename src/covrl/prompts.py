"""The three roles as token ids: prior p(z|x), posterior q(z|x,y), answer likelihood p(y|x,z).

Token in, token out: a sampled trace is never tokenised again. The question's prompt, the closing tag and the
answer are each encoded apart, so no merge crosses a border and the trace has the same ids in every context.
What a prior-context row holds besides question and trace does not depend on y before the answer span.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.generation.stop import StopRule
from covrl.records import Problem, Rollout, Row, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]

CACHED = 16_384
"""Texts whose ids are kept."""


class Prompts:
    """Renders problems and rollouts with one tokenizer and one set of templates.

    Example:
        >>> prompts.prior(problem)              # ids of "Question … <think>\\n"
        >>> prompts.prior_row(problem, rollout) # prompt + trace + closing tag + answer, with spans
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        # every trace of a problem asks for the same prompts and answer, at sampling, scoring and training
        self._prompt = lru_cache(CACHED)(self._render)
        self._plain = lru_cache(CACHED)(self._tokenize)

    def prior(self, problem: Problem) -> Ids:
        """Prompt ids that do not depend on the answer."""
        return self._prompt(problem.question, self.config.prior_open)

    def posterior(self, problem: Problem) -> Ids:
        """Prompt ids that show the answer (or the hint that stands in for it)."""
        return self._prompt(problem.question, self.config.posterior_open.replace("{hint}", problem.shown))

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
        prompt = self.prior(problem)
        ids, spans = self._trace(prompt, rollout)
        if rollout.valid:
            ids += self._after_trace(rollout)
            answer = self.answer(problem)
            spans["answer"] = Span(len(ids), len(ids) + len(answer))
            ids += answer
        return Row(ids, spans, len(prompt))

    def posterior_row(self, problem: Problem, rollout: Rollout) -> Row:
        """Posterior prompt + trace; the answer is never scored from here, since the prompt shows it."""
        prompt = self.posterior(problem)
        return Row(*self._trace(prompt, rollout), len(prompt))

    def response_row(self, problem: Problem, rollout: Rollout) -> Row:
        """Prior prompt + everything that was sampled; span ``trace`` ``[T]``."""
        prompt = self.prior(problem)
        return Row(*self._trace(prompt, rollout), len(prompt))

    def direct_row(self, problem: Problem, rollout: Rollout) -> Row:
        """The reference answer behind an empty thought: span ``direct`` ``[A]``; nothing of the trace is read."""
        del rollout
        prompt = self.prior(problem)
        before = prompt + self.close_ids + self.answer_prefix_ids
        answer = self.answer(problem)
        return Row(before + answer, {"direct": Span(len(before), len(before) + len(answer))}, len(prompt))

    def thought(self, rollout: Rollout) -> Rollout | None:
        """A sampled response up to the end of its thought, as a trace; None if the thought was not closed."""
        for upto, token in enumerate(rollout.trace_ids, start=1):
            stop = self._close_rule.check(rollout.trace_ids[:upto]) if token in self._close_rule.may_end else None
            if stop:
                ids = rollout.trace_ids[: stop.kept]
                text = rollout.text[: rollout.text.find(self.config.close)] + self.config.close
                log_probs = rollout.log_probs[: stop.kept]
                return replace(
                    rollout, trace_ids=ids, log_probs=log_probs, finish="closed", closing=stop.closing, text=text
                )
        return None

    @cached_property
    def _close_rule(self) -> StopRule:
        return StopRule(self.tokenizer, self.config.close)

    def said(self, response: str) -> str | None:
        """What stands between the answer's tags in a response; None where they do not follow the closed thought."""
        opening, suffix = self.config.answer_prefix.strip(), self.config.answer_suffix
        _, closed, after = response.partition(self.config.close)
        if not closed or suffix not in after:
            return None
        before, _, said = after.partition(opening) if opening else ("", "", after)
        return None if before.strip() or (opening and opening not in after) else said.partition(suffix)[0]

    def answer_prompt(self, problem: Problem, rollout: Rollout) -> Ids:
        """What the model has read when it is about to answer, as at test time: prior prompt, trace, opening tag."""
        return self._trace(self.prior(problem), rollout)[0] + self._after_trace(rollout)

    def _after_trace(self, rollout: Rollout) -> Ids:
        appended = self.close_ids if rollout.closing == "appended" else ()
        return appended + self.answer_prefix_ids

    def _trace(self, prompt: Ids, rollout: Rollout) -> tuple[Ids, dict[str, Span]]:
        before = prompt + rollout.request.prefix_ids
        stop = len(before) + len(rollout.trace_ids)
        return before + rollout.trace_ids, {"trace": Span(len(before), stop)}

    def _render(self, question: str, opening: str) -> Ids:
        user = self.config.user.replace("{question}", question)
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

    def reads_back(self, text: str) -> str:
        """What the ids of a text that continues another one decode to, as the stop rule decodes a trace.

        A sentencepiece-like decoder drops a space at the very beginning, so a text that does not come back by itself
        is tried behind a line break too.
        """
        ids, line_break = self.encode(text), self._plain("\n")
        alone, start = self._decoded(ids), self._decoded(line_break)
        behind = self._decoded(line_break + ids)
        return behind.removeprefix(start) if alone != text and behind.startswith(start) else alone

    def _decoded(self, ids: Ids) -> str:
        kept = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **kept)) if ids else ""

    def _tokenize(self, text: str) -> Ids:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids) if text else ()


def check_tokens(prompts: Prompts, problems: Sequence[Problem]) -> None:
    """The tags that generation stops at and answers stand between must survive the tokenizer, and answers have tokens.

    Raises:
        UserError: a tag does not come back from its ids, or an answer is empty or has a character without a token;
            names tag or problem, the tokenizer, and what to do.
    """
    name = _name(prompts.tokenizer)
    for setting in ("close", "answer_prefix", "answer_suffix"):
        tag = getattr(prompts.config, setting)
        back = prompts.reads_back(tag)
        if tag and not back:
            raise UserError(
                f"prompts.{setting}: the tokenizer {name} has no tokens for {tag!r}; are its files in the model's "
                "folder? if they are, choose a text that it can write"
            )
        if back != tag:
            raise UserError(
                f"prompts.{setting}: the tokenizer {name} cannot write {tag!r}: its tokens read {back!r}; choose "
                f"another text for prompts.{setting}, or a tokenizer that has tokens for every character of it"
            )
    for problem in problems:
        if not problem.answer.strip():
            raise UserError(f"problem {problem.id}: the answer is empty")
        if lost := _lost(prompts, problem.answer):
            raise UserError(
                f"problem {problem.id}: the tokenizer {name} has no token for {lost!r} of the answer "
                f"{_short(problem.answer)!r}; leave the problem out, or choose a model whose tokenizer can write it"
            )


def _lost(prompts: Prompts, text: str) -> str:
    """The characters of a text that its ids do not hold, in order; letter case and Unicode form may change."""
    back, unknown = _folded(prompts.reads_back(text)), prompts.tokenizer.unk_token
    if unknown is not None and unknown not in text:
        back = back.replace(_folded(unknown), "")
    return "".join(dict.fromkeys(c for c in _folded(text) if not c.isspace() and c not in back))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
