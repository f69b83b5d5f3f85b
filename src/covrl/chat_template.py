"""A tokenizer's chat template: run with one date and the user's options, its failures in one line.

A template is a program of the model's authors and may do anything: want its content in parts, refuse or drop a
message, read the clock. It is tried once with marks in the place of texts, so that what it loses is known before any
problem is rendered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from covrl.errors import UserError
from covrl.records import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DO_WITHOUT = 'prompts.chat = "never" does without the template'

QUESTION, END, REPLY, SYSTEM = (f"covrl{name}mark" for name in ("question", "end", "reply", "system"))
"""Texts that no template changes: lower-case letters alone."""

_DIRECTIVES = "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZ"
_DATED = (
    "{%- macro strftime_now(format) -%}{%- set covrl = namespace(text=format) -%}"
    "{%- for directive, value in covrl_date -%}{%- set covrl.text = covrl.text.replace(directive, value) -%}"
    "{%- endfor -%}{{- covrl.text -}}{%- endmacro +%}"
)
"""Put before a template that calls ``strftime_now``: the clock's function by one that reads a given date.

transformers hands templates plain values only, so the function is written in the template's language. It takes a list
of (directive, value), see :func:`date_values`.
"""

_ASSISTANT = re.compile(r"assistant|model|bot|\bai\b|gpt|/INST\]|response", re.IGNORECASE)
"""What the header of an assistant's turn holds in the templates that we know (INFERRED)."""


class Header(NamedTuple):
    """``missing``: whether the prompt ends before the assistant's header; ``text``: the header, where it is known."""

    missing: bool
    text: str = ""


class ChatTemplate:
    """Renders a user's text, and the turns before it, up to where the assistant begins.

    Example:
        >>> turns = (Turn("system", "Be brief."),)
        >>> ChatTemplate(tokenizer, turns, {"enable_thinking": False}, date(2026, 1, 31)).render("2 + 2?")

    ``turns`` are those that the template is tried with; others with the same roles may be rendered. ``options`` are
    handed to the template as its variables; ``day`` is the date that it reads. ``of_problem`` says that turns or
    options are a problem's own, for what an error proposes.

    Raises:
        UserError: (on first use) the template is broken, refuses the messages, or does not show one of them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        turns: Sequence[Turn],
        options: Mapping[str, Any],
        day: date,
        of_problem: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.name = tokenizer_name(tokenizer)
        self.turns = tuple(turns)
        self.options = dict(options)
        self.day = day
        self.of_problem = of_problem

    def render(self, user: str, turns: Sequence[Turn] | None = None) -> str:
        """The whole prompt as text."""
        return self._run(self._messages(self.turns if turns is None else turns, user))

    def shows(self, user: str, reply: str) -> str:
        """A conversation in which the assistant has answered."""
        messages = [*self._messages(self.turns, user), self._message("assistant", reply)]
        return self._run(messages, generation=False)

    def without(self, name: str, user: str) -> str:
        """The prompt as if the option ``name`` were not set."""
        return self.given({key: value for key, value in self.options.items() if key != name}).render(user)

    def given(self, options: Mapping[str, Any]) -> ChatTemplate:
        """The same template with other options."""
        return ChatTemplate(self.tokenizer, self.turns, options, self.day, self.of_problem)

    @cached_property
    def source(self) -> str:
        """The template itself.

        Raises:
            UserError: there are several, and none is called default.
        """
        named = self.tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named:
            raise UserError(
                f"the tokenizer {self.name} has several chat templates ({', '.join(sorted(named))}) and none is "
                f"called default: name one so in the model's folder, or {DO_WITHOUT}"
            )
        return str(named["default"] if isinstance(named, dict) else named)

    @cached_property
    def reads_date(self) -> bool:
        """Whether the prompt is another one on another day."""
        user = QUESTION
        return "strftime_now" in self.source and len({self._on(day).render(user) for day in _DAYS}) > 1

    @cached_property
    def in_parts(self) -> bool:
        """Whether the template wants the content of a message as a list of parts.

        Raises:
            UserError: it fails with a text and with parts, or shows the system or the user message with neither.
        """
        failed: UserError | None = None
        system = any(turn.role == "system" for turn in self.turns)
        marked = [turn._replace(text=SYSTEM) if turn.role == "system" else turn for turn in self.turns]
        for parts in (False, True):
            try:
                text = self._run(self._messages(marked, QUESTION, parts))
            except UserError as error:
                failed = failed or error
                continue
            if QUESTION not in text:
                continue
            if system and SYSTEM not in text:
                raise UserError(
                    f"the chat template of the tokenizer {self.name} drops the system message, so it would not be in "
                    f"the prompt: {self._without_system_message}"
                )
            return parts
        raise failed or UserError(
            f"the chat template of the tokenizer {self.name} does not show the user's message, so the question would "
            f"not be in the prompt; {DO_WITHOUT}"
        )

    def header(self) -> Header:
        """Whether the assistant's header is in the prompt. Templates may write it always, at the flag, or never."""
        message = self._messages(self.turns, QUESTION + END)
        with_flag, without = self._run(message), self._run(message, generation=False)
        if with_flag != without:
            return Header(missing=False)
        tail = with_flag.rpartition(END)[2]
        try:
            between = self.shows(QUESTION + END, REPLY).rpartition(END)[2]
        except UserError:  # a template that takes no assistant's turn
            between = ""
        before, replied, _ = between.partition(REPLY)
        if replied and before.startswith(tail):
            header = before[len(tail) :]
            return Header(bool(header.strip()), header)
        return Header(missing=not _ASSISTANT.search(tail))

    def _on(self, day: date) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.turns, self.options, day, self.of_problem)

    def _messages(self, turns: Sequence[Turn], user: str, parts: bool | None = None) -> list[dict[str, Any]]:
        return [self._message(role, text, parts) for role, text in [*turns, ("user", user)]]

    def _message(self, role: str, text: str, parts: bool | None = None) -> dict[str, Any]:
        in_parts = self.in_parts if parts is None else parts
        return {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}

    def _run(self, messages: Sequence[dict[str, Any]], generation: bool = True) -> str:
        source, options = self.source, self.options
        if "strftime_now" in source:
            source, options = _DATED + source, options | {"covrl_date": date_values(self.day)}
        try:
            render: Any = self.tokenizer.apply_chat_template  # whose keywords are the template's variables too
            text = render(
                list(messages), chat_template=source, tokenize=False, add_generation_prompt=generation, **options
            )
        except Exception as error:  # whatever the template's program raises
            raise UserError(self._failure(error, messages)) from None
        return str(text)

    def _failure(self, error: Exception, messages: Sequence[dict[str, Any]]) -> str:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        remedy = f"mend it in the model's folder; {DO_WITHOUT}"
        if messages[0]["role"] == "system" and self._works_without_system():
            remedy = f"{self._without_system_message}; {DO_WITHOUT}"
        return f"the chat template of the tokenizer {self.name} fails{where}: {why}; {remedy}"

    @property
    def _without_system_message(self) -> str:
        if self.of_problem:
            return "put the text of its system message at the beginning of the question"
        return "leave prompts.system empty and put its text at the beginning of prompts.user"

    def _works_without_system(self) -> bool:
        others = [turn for turn in self.turns if turn.role != "system"]
        try:
            return QUESTION in ChatTemplate(self.tokenizer, others, self.options, self.day).render(QUESTION)
        except UserError:
            return False


_DAYS = (date(2001, 1, 1), date(2012, 12, 29))
"""Two days that share no part of a date."""


def date_values(day: date) -> list[tuple[str, str]]:
    """(directive, value) of ``strftime`` for a date, such that replacing them in order formats it."""
    padded = [(f"%{c}", day.strftime(f"%{c}")) for c in _DIRECTIVES]
    bare = [(f"%-{c}", day.strftime(f"%{c}").lstrip("0 ") or "0") for c in "dHIjmMSy"]
    return [("%%", "\x00"), *bare, *padded, ("\x00", "%")]


def holds(rendered: str, text: str) -> bool:
    """Whether a rendered prompt shows a text; white space may be another."""
    return text.strip() in rendered or "".join(text.split()) in "".join(rendered.split())


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """What messages call a tokenizer: where it was loaded from."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)
