"""The three roles as token ids: prior p(z|x), posterior q(z|x,y), answer likelihood p(y|x,z).

Token in, token out: a sampled trace is never tokenised again. The question's prompt, the closing tag and the
answer are each encoded apart, so no merge crosses a border and the trace has the same ids in every context.
What a prior-context row holds besides question and trace does not depend on y before the answer span.

What a data set wrote is text: a question that spells ``<|im_end|>`` or ``</think>`` gets the ids of those letters,
never the token that ends a turn or a thought (:meth:`Prompts.literal`). Templates and tags of the settings may name any
token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from covrl.chat_layout import Layout, Wording, chat_layout, plain_layout
from covrl.chat_template import ChatTemplate, holds, tokenizer_name
from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.generation.stop import Stop, StopRule
from covrl.records import Problem, Rollout, Row, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Role = Literal["prior", "posterior"]
ROLES: tuple[Role, ...] = ("prior", "posterior")

_TAG = re.compile(r"\s*(?:<[^<>\s]+>|\[[A-Z_]+\])\s*")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""What an added token looks like that steers a model, and one that only spells a byte."""

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
        self._known_controls: dict[Role, Ids] = {}
        # every trace of a problem asks for the same prompts and answer, at sampling, scoring and training
        self._prompt = lru_cache(CACHED)(self._render)
        self._plain = lru_cache(CACHED)(self._tokenize)

    def prior(self, problem: Problem) -> Ids:
        """Prompt ids that do not depend on the answer."""
        return self._prompt_of(problem, "prior")

    def posterior(self, problem: Problem) -> Ids:
        """Prompt ids that show the answer (or the hint that stands in for it)."""
        return self._prompt_of(problem, "posterior")

    def answer(self, problem: Problem) -> Ids:
        """Ids of the answer and its closing tag: ``[A]``, the tokens whose likelihood is the reward.

        Raises:
            UserError: the answer is empty.
        """
        content = self.literal(problem.answer)
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

        Spans: ``trace`` ``[T]``; ``answer`` ``[A]`` and ``first``, the first token of it, if the trace is valid, else
        absent.
        """
        prompt = self.prior(problem)
        ids, spans = self._trace(prompt, rollout)
        if rollout.valid:
            ids += self._after_trace(rollout)
            answer = self.answer(problem)
            spans |= {"answer": Span(len(ids), len(ids) + len(answer)), "first": Span(len(ids), len(ids) + 1)}
            ids += answer
        return Row(ids, spans, len(prompt))

    def posterior_row(self, problem: Problem, rollout: Rollout) -> Row:
        """Posterior prompt + trace; the answer is never scored from here, since the prompt shows it."""
        prompt = self.posterior(problem)
        return Row(*self._trace(prompt, rollout), len(prompt))

    def foil_row(self, problem: Problem, rollout: Rollout) -> Row:
        """The posterior's row with the problem's wrong answer in the place of the hint, else the same to the letter.

        Raises:
            UserError: the problem has no foil.
        """
        if problem.foil is None:
            raise UserError(f"problem {problem.id}: has no foil, a wrong answer to show (covrl.problems.foils)")
        return self.posterior_row(replace(problem, hint=problem.foil), rollout)

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
        """A sampled response up to the end of its thought, as a trace; None if the thought was not closed.

        Where the thought ends in the given prefix nothing of it was sampled, and the prefix is cut there.
        """
        given = rollout.request.prefix_ids
        for upto, token in enumerate(given, start=1):
            stop = self._close_rule.check(given[:upto]) if token in self._close_rule.may_end else None
            if stop:
                request = replace(rollout.request, prefix_ids=given[: stop.kept])
                return self._closed(replace(rollout.first(0), request=request), stop)
        for upto, token in enumerate(rollout.trace_ids, start=1):
            if token not in self._close_rule.may_end:
                continue
            stop = self._close_rule.check(rollout.trace_ids[:upto], given)
            if stop:
                return self._closed(rollout.first(stop.kept), stop)
        return None

    def _closed(self, thought: Rollout, stop: Stop) -> Rollout:
        text = thought.text[: thought.text.find(self.config.close)] + self.config.close
        return replace(thought, finish="closed", closing=stop.closing, text=text)

    @cached_property
    def _close_rule(self) -> StopRule:
        return StopRule(self.tokenizer, self.config.close)

    @property
    def before_answer(self) -> tuple[str, ...]:
        """The texts that stand before a response's answer, in order: what ends an answer ends it behind them alone."""
        return tuple(filter(None, (self.config.close, self.config.answer_prefix.strip())))

    def said(self, response: str) -> str | None:
        """What stands between the answer's tags in a response; None where they do not follow the closed thought."""
        opening, suffix = self.config.answer_prefix.strip(), self.config.answer_suffix
        _, closed, after = response.partition(self.config.close)
        before, opened, behind = after.partition(opening) if opening else ("", "", after)
        said, ended, _ = behind.partition(suffix)
        well_formed = closed and ended and not before.strip() and (opened or not opening)
        return said if well_formed else None

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

    @cached_property
    def layout(self) -> Layout:
        """The words of both prompts as the chat template, if there is one, lets them stand.

        Raises:
            UserError: the chat template fails, loses a text, or does not go with the settings.
        """
        return plain_layout(self.config) if self.template is None else chat_layout(self.config, self.template)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of the prompts before training, and what is no error."""
        given = [f"template_options.{name}" for name in self.config.template_options] + ["date"] * bool(
            self.config.date
        )
        if self.template is None:
            because = 'prompts.chat = "never"' if self.config.chat == "never" else "the tokenizer has no chat template"
            return tuple(f"prompts.{name} does nothing: {because}" for name in given)
        return self.layout.notes

    @property
    def _name(self) -> str:
        return tokenizer_name(self.tokenizer)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, if one is used; without ``prompts.date`` it reads today's."""
        config = self.config
        if config.chat == "never" or not self.tokenizer.chat_template:
            return None
        day = date.fromisoformat(config.date) if config.date else date.today()
        return ChatTemplate(self.tokenizer, config.system, config.template_options, day)

    def text(self, problem: Problem, role: Role) -> str:
        """A prompt as text, without a beginning of sequence that the tokenizer adds.

        Raises:
            UserError: the chat template loses or changes the question or the hint.
        """
        try:
            return self._rendered(role, problem.question, problem.shown)
        except UserError as error:
            raise UserError(f"problem {problem.id}: {error}") from None

    def _prompt_of(self, problem: Problem, role: Role) -> Ids:
        try:
            return self._prompt(role, problem.question, problem.shown if role == "posterior" else "")
        except UserError as error:
            raise UserError(f"problem {problem.id}: {error}") from None

    def _render(self, role: Role, question: str, hint: str) -> Ids:
        begin = () if self.template else self._start_ids  # a chat template writes its own beginning of sequence
        whole = self._plain(self._rendered(role, question, hint))
        unknown = self._spelt_unknown
        spelt = unknown is not None and (unknown in question or unknown in hint)
        if not spelt and self._controls(whole) == self._template_controls(role):
            return begin + whole
        return begin + self._in_parts(role, question, hint)

    def _rendered(self, role: Role, question: str, hint: str) -> str:
        """The prompt as text. The prior's is rendered without a hint, whatever its words."""
        words: Wording = getattr(self.layout, role)
        said = {"question": question} | ({"hint": hint} if role == "posterior" else {})
        user, opening = _filled(words.user, said), _filled(words.opening, said)
        if self.template is None:
            return self.config.system + user + opening
        begun = self.template.render(user)
        for name, text in said.items():
            if not holds(begun + opening, text):
                raise UserError(
                    f"the chat template of the tokenizer {self._name} does not show the {name} as it is "
                    f'written ({shortened(text)!r}): leave the problem out, or set prompts.chat = "never"'
                )
        return begun + opening

    def _template_controls(self, role: Role) -> Ids:
        """The control tokens that a prompt has by its template alone, in order."""
        if role not in self._known_controls:
            self._known_controls[role] = self._controls(self._plain(self._rendered(role, "a", "b")))
        return self._known_controls[role]

    def _in_parts(self, role: Role, question: str, hint: str) -> Ids:
        """A prompt whose question or hint spells a control token: the template as ever, these as mere text."""
        texts = {"question": question, "hint": hint}
        marks = {name: f"covrl-{name}-{uuid4().hex}" for name in texts}
        rendered = self._rendered(role, marks["question"], marks["hint"])
        found = re.split(f"({'|'.join(marks.values())})", rendered)
        said = {mark: texts[name] for name, mark in marks.items()}
        ids: Ids = ()
        for piece in found:
            if piece in said:
                ids += self.literal(said[piece], ids)
            else:
                ids += self.encode(piece) if ids else self._plain(piece)
        if self._controls(ids) != self._template_controls(role):
            raise UserError(
                f"its question or hint writes control tokens of the tokenizer {self._name} into the prompt; "
                "leave the problem out"
            )
        return ids

    @cached_property
    def _start_ids(self) -> Ids:
        """What the tokenizer itself puts before every text: a beginning-of-sequence id, which may be its end too.

        What it puts after a text, an end of sequence, is no part of it.
        """
        for text in ("a", "0", "\n"):
            alone, whole = self._plain(text), tuple(self.tokenizer(text).input_ids)
            for start in range(len(whole) if alone else 0):
                if whole[start : start + len(alone)] == alone:
                    return whole[:start]
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

    def literal(self, text: str, before: Ids | None = None) -> Ids:
        """Ids of a text that somebody else wrote: a control token that it spells is encoded letter by letter.

        ``before`` says that it stands in a prompt behind these ids (``()``: at the beginning); else it continues one.

        Raises:
            UserError: the text is no Unicode text, or holds a control token that is a single character.
        """
        first = self._plain if before == () else self.encode
        pieces = [text]
        while any(found := [self._control_spans(piece) for piece in pieces]):
            pieces = [part for piece, spans in zip(pieces, found, strict=True) for part in self._cut(piece, spans)]
        ids: Ids = ()
        for piece in pieces:
            ids += self.encode(piece) if ids else first(piece)
        return ids

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has by itself, all counted in one go; one that spells a control token has more."""
        if not texts:
            return []
        try:
            found = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        except (TypeError, UnicodeEncodeError):
            found = [self._tokenize(text) for text in texts]  # which says what is wrong with the one that is no text
        apart = [
            bool(self._controls(tuple(ids))) or (self._spelt_unknown or "\0") in text
            for ids, text in zip(found, texts, strict=True)
        ]
        return [len(self.literal(t)) if spelt else len(ids) for t, ids, spelt in zip(texts, found, apart, strict=True)]

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        """From where to where the text spells a control token."""
        unknown, controls = self._spelt_unknown, self._control_ids
        spelt = [found.span() for found in re.finditer(re.escape(unknown), text)] if unknown else []
        if not self._controls(self._plain(text)):
            return spelt
        if self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            return sorted({*spelt, *((start, stop) for i, (start, stop) in spans if i in controls)})
        names = [re.escape(str(self.tokenizer.convert_ids_to_tokens(i))) for i in sorted(controls)]
        names += [re.escape(unknown)] if unknown else []
        return [found.span() for found in re.finditer("|".join(names), text)] or [(0, len(text))]

    def _cut(self, text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
        """The text in pieces: it is cut behind the first character of each span."""
        for start, stop in spans:
            if stop - start < 2:
                raise UserError(f"{text[start:stop]!r} is a control token of the tokenizer {self._name}")
        edges = [0, *(start + 1 for start, _ in spans), len(text)]
        return [text[a:b] for a, b in pairwise(edges)]

    def _controls(self, ids: Ids) -> Ids:
        return tuple(i for i in ids if i in self._control_ids)

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        """Tokens that steer a model: those marked special, and added ones that look like a tag (``<think>``).

        A token for what is unknown is none of them where any text may hold it; unless it has another office too.
        """
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder.items()
        tags = {i for i, t in added if not _BYTE.fullmatch(t.content) and (t.special or _TAG.fullmatch(t.content))}
        offices = {i for name, i in _offices(tokenizer) if name != "unk_token"}
        unknown = {tokenizer.unk_token_id} - offices if self._meets_unknown else set()
        return frozenset((tags | offices | set(tokenizer.all_special_ids)) - unknown)

    @cached_property
    def _meets_unknown(self) -> bool:
        """Whether ordinary text gets the unknown token. Byte-level tokenizers know every text."""
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and unknown in self._plain("\ue000\u05d0数☃é\U0001f984")

    @cached_property
    def _spelt_unknown(self) -> str | None:
        """The unknown token's own text, where its id does not tell whether a text spells it."""
        text = str(self.tokenizer.unk_token)
        return text if self._meets_unknown and len(text) > 1 else None

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
        if not text:
            return ()
        try:
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        except (TypeError, UnicodeEncodeError):
            lone = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
            if lone is None:
                raise
        raise UserError(
            f"a text holds \\u{ord(lone):04x}, half of a surrogate pair, which is no character: {text[:60]!r}"
        )


def _filled(template: str, said: Mapping[str, str]) -> str:
    """The template with each ``{name}`` of ``said`` replaced, in one go: what is put in is not looked at."""
    return re.sub(r"\{(\w+)\}", lambda found: said.get(found[1], found[0]), template)


def dated(config: PromptConfig, tokenizer: PreTrainedTokenizerBase, today: date) -> PromptConfig:
    """The settings with the day that a run begins, where its chat template writes a date and none is set."""
    template = Prompts(tokenizer, config).template
    if config.date or template is None or not template.reads_date:
        return config
    return config.model_copy(update={"date": today.isoformat()})


def _offices(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    """The tokenizer's special tokens by what they are for."""
    vocabulary = tokenizer.get_vocab()
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)}
    return [(name, vocabulary[token]) for name, token in named.items() if token in vocabulary]


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:60]}…"
