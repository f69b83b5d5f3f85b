"""Rows that hold a conversation, as TRL and verl write them.

A list of messages, each with ``role`` and ``content``, may stand where a question is expected. Its last user message is
the question. The messages before it are the problem's ``turns``. An assistant's message after it is a reply: it may be
the answer, and it is never part of a prompt.

The names of fields are those of TRL's data set formats (``prompt``, ``messages``, ``completion``,
``chat_template_kwargs``) and of verl's Parquet files (``prompt``, ``reward_model.ground_truth``); CONFIRMED by the
documentation of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from covrl.problems.values import check_text, kind, row_error
from covrl.records import SPEAKERS, Turn

QUESTIONS = ("prompt", "messages")
"""Where a row without a field ``question`` has it."""

ANSWERS = ("reward_model.ground_truth", "ground_truth")
"""Where a row without a field ``answer`` has it, before the assistant's reply is taken."""

REPLY = "completion"
"""Where a row has the assistant's reply apart from the messages."""

OPTIONS = "chat_template_kwargs"
"""Where a row has variables of its own for the chat template."""

CALLED_WITH = frozenset({
    "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "sanitize_control_tokens", "tokenizer_kwargs", "strftime_now", "covrl_date",
})  # fmt: skip
"""How a chat template is called, which is neither a user's nor a row's to say."""


class Conversation(NamedTuple):
    """A question, what was said before it, and the assistant's reply where there is one."""

    question: str
    turns: tuple[Turn, ...] = ()
    reply: str | None = None


def read_conversation(messages: Sequence[Any], spot: str) -> Conversation:
    """The question in a list of messages, with what stands before and after it.

    Example:
        >>> read_conversation([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "")
        Conversation(question='1+1?', turns=(), reply='2')

    Raises:
        UserError: a message cannot be used, there is none of the user, or more than a reply follows the last one.
    """
    turns = [_turn(message, f"{spot}, message {i}") for i, message in enumerate(messages, 1)]
    systems = [i for i, turn in enumerate(turns, 1) if turn.role == "system"]
    if systems and systems[-1] != 1:
        raise row_error(f"{spot}, message {systems[-1]}", "a system message stands first, and there is one at most")
    asked = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
    if asked is None:
        raise row_error(spot, "no message of the user, so there is no question")
    if len(turns) > asked + 2:
        raise row_error(
            f"{spot}, message {asked + 3}", "after the user's last message there is one of the assistant at most"
        )
    return Conversation(turns[asked].text, tuple(turns[:asked]), turns[-1].text if len(turns) > asked + 1 else None)


def read_reply(value: Any, spot: str) -> str:
    """The assistant's reply, given as text or as a list that holds one message.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, list) and len(value) == 1:
        turn = _turn(value[0], f"{spot}, message 1")
        if turn.role == "assistant":
            return turn.text
    if not isinstance(value, str):
        raise row_error(spot, f"expected text or a list with one message of the assistant, found {kind(value)}")
    return value


def read_options(value: Any, spot: str) -> dict[str, str | int | float | bool]:
    """A row's own variables of the chat template; null, which tables write where a row has none, is left out.

    Raises:
        UserError: it is no object, a value is no plain one, or a name is how the template is called.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise row_error(spot, f'expected an object such as {{"enable_thinking": false}}, found {kind(value)}')
    given = {name: inner for name, inner in value.items() if inner is not None}
    for name, inner in given.items():
        if name in CALLED_WITH:
            raise row_error(spot, f"{name} is how the template is called, and no variable that it may be given")
        if not isinstance(inner, str | int | float):
            raise row_error(f"{spot}.{name}", f"expected text, a number, true or false, found {kind(inner)}")
    return given


def _turn(message: Any, spot: str) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        found = f"an object with {', '.join(message) or 'no fields'}" if isinstance(message, Mapping) else kind(message)
        raise row_error(spot, f"expected an object with role and content, found {found}")
    role = message["role"]
    if role not in SPEAKERS:
        found = repr(role) if isinstance(role, str) else kind(role)
        raise row_error(f"{spot}, role", f"expected {', '.join(SPEAKERS[:-1])} or {SPEAKERS[-1]}, found {found}")
    text = _content(message["content"], f"{spot}, content")
    check_text(text, f"{spot}, content")
    return Turn(role, text)


def _content(content: Any, spot: str) -> str:
    """The text of a message, which may be in parts; a part that is no text cannot be read."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise row_error(spot, f"expected text, found {kind(content)}")
    texts = []
    for i, part in enumerate(content, 1):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            found = repr(part.get("type")) if isinstance(part, Mapping) else kind(part)
            raise row_error(f"{spot}, part {i}", f"expected a part of type 'text', found {found}; only text is read")
        texts.append(text)
    return "".join(texts)
