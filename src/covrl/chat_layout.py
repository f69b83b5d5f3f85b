"""Which words stand where in the prior and the posterior prompt of a chat model.

Templates differ in where the assistant's turn begins: at its header, or inside a thought that they open themselves, or
after an empty thought that they closed. A thought is opened once, and the hint stands before it, where the model reads
it as context: inside, it would be the model's own words.
"""

from __future__ import annotations

import json
import re
from itertools import product
from typing import NamedTuple

from covrl.chat_template import END, QUESTION, ChatTemplate
from covrl.config import PromptConfig
from covrl.errors import UserError

_TAG_AT_END = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")
_NAMED = re.compile(r"think|thought|reason", re.IGNORECASE)
_IDENTIFIER = re.compile(r"(?<![<\w/'\".-])[A-Za-z_]\w*(?:think|reason)\w*\b", re.IGNORECASE)


class Wording(NamedTuple):
    """The user's turn and the beginning of the assistant's, with ``{question}`` and ``{hint}`` to be replaced."""

    user: str
    opening: str


class Layout(NamedTuple):
    """Both prompts' words, and what a user must know of them."""

    prior: Wording
    posterior: Wording
    notes: tuple[str, ...] = ()


class Thought(NamedTuple):
    """A thought at the end of a template's generation prompt: ``tag`` opens it; it is ``closed`` if it is empty.

    ``spaced``: white space follows the tag.
    """

    tag: str
    closed: bool
    spaced: bool = False


def plain_layout(config: PromptConfig) -> Layout:
    """The words of the settings as they are."""
    prior = Wording(config.user, config.prior_open)
    return Layout(prior, Wording(config.posterior_user or config.user, config.posterior_open))


def chat_layout(config: PromptConfig, template: ChatTemplate) -> Layout:
    """The words of the settings as they fit the template.

    Raises:
        UserError: the template fails, loses a text, or opens or closes a thought in a way that the settings contradict.
    """
    layout = plain_layout(config)
    notes = [*_idle_options(config, template), *_missing_header(config, template)]
    thought = found_thought(template.render(_probe(config)).rpartition(END)[2], config)
    if thought and thought.closed:
        notes += _after_closed(config, template, thought)
    elif thought:
        layout, said = _inside_opened(config, thought)
        notes += said
    return layout._replace(notes=tuple(notes))


def found_thought(tail: str, config: PromptConfig) -> Thought | None:
    """The thought that a generation prompt, or whatever follows the user's text, ends with; None if it ends otherwise.

    A tag counts as a thought's if ``prior_open`` ends with it, if ``close`` mirrors it, or by its name.
    """
    last = _TAG_AT_END.search(tail)
    if last is None:
        return None
    before = _TAG_AT_END.search(tail[: last.start()])
    opener = before[1] if before and _opens(before[1], config) else ""
    if opener and (last[1] in (mirror(opener), config.close.strip()) or _NAMED.search(last[1])):
        return Thought(opener, closed=True)
    if last[1][1] == "/" and (last[1] == config.close.strip() or _NAMED.search(last[1])):  # closed without an opening
        return Thought(last[1].replace("/", "", 1), closed=True)
    return Thought(last[1], closed=False, spaced=last[0] != last[1]) if _opens(last[1], config) else None


def mirror(tag: str) -> str:
    """``</think>`` for ``<think>``, ``[/THINK]`` for ``[THINK]``."""
    return f"{tag[0]}/{tag[1:]}"


def _opens(tag: str, config: PromptConfig) -> bool:
    return tag[1] != "/" and (
        tag == _last_tag(config.prior_open) or mirror(tag) == config.close.strip() or bool(_NAMED.search(tag))
    )


def _last_tag(text: str) -> str:
    found = _TAG_AT_END.search(text)
    return found[1] if found else ""


def _probe(config: PromptConfig) -> str:
    return config.user.replace("{question}", QUESTION) + END


def _idle_options(config: PromptConfig, template: ChatTemplate) -> list[str]:
    text = template.render(_probe(config))
    notes = []
    for name in template.options:
        if template.without(name, _probe(config)) == text:
            read = re.search(rf"\b{re.escape(name)}\b", template.source)
            why = "the prompt is the same without it" if read else "the chat template does not read it"
            notes.append(f"prompts.template_options.{name} does nothing: {why}")
    if config.date and not template.reads_date:
        notes.append("prompts.date does nothing: the chat template reads no date")
    return notes


def _missing_header(config: PromptConfig, template: ChatTemplate) -> list[str]:
    header = template.header()
    if not header.missing or (header.text and config.prior_open.lstrip().startswith(header.text.strip())):
        return []
    if not header.text:
        return [
            "the chat template has no generation prompt: after the user's turn it does not begin the assistant's; "
            "begin prompts.prior_open and prompts.posterior_open with the header that the model knows"
        ]
    opening = json.dumps(header.text + config.prior_open, ensure_ascii=False)
    return [
        "the chat template has no generation prompt: the assistant's header "
        f"{json.dumps(header.text, ensure_ascii=False)} is missing, so the model goes on in the user's turn; begin "
        f"both openings with it: prompts.prior_open = {opening}, and prompts.posterior_open alike"
    ]


def _after_closed(config: PromptConfig, template: ChatTemplate, thought: Thought) -> list[str]:
    """Nothing may open a thought behind the closed one."""
    opened = next((t for o in (config.prior_open, config.posterior_open) if (t := _last_tag(o))), "")
    if opened:
        raise UserError(
            f"the chat template closes an empty thought ({thought.tag}) before the answer, and prompts.prior_open or "
            f"posterior_open opens a second one with {opened}: {_keeps_open(config, template)}, or let traces follow "
            'the closed thought in plain words: prompts.prior_open = "", a prompts.close such as "The answer is", and '
            "the hint in prompts.posterior_user"
        )
    if config.close.strip() == mirror(thought.tag):
        return [
            f"the chat template closes an empty thought ({thought.tag}), and traces behind it end at a second "
            f"{config.close.strip()}: {_keeps_open(config, template)}, or choose another prompts.close"
        ]
    return []


def _keeps_open(config: PromptConfig, template: ChatTemplate) -> str:
    """An option that keeps the template from closing the thought, found by trying those that it names."""
    names = dict.fromkeys(_IDENTIFIER.findall(template.source))
    where = "the problem's own template_options" if template.of_problem else "prompts.template_options"
    for name, value in product(names, (True, False)):
        changed = template.given(template.options | {name: value})
        try:
            thought = found_thought(changed.render(_probe(config)).rpartition(END)[2], config)
        except UserError:  # it wants another kind of value
            continue
        if not (thought and thought.closed):
            return f"set {where}.{name} = {str(value).lower()}"
    return f"set in {where} what keeps the template from it"


def _inside_opened(config: PromptConfig, thought: Thought) -> tuple[Layout, list[str]]:
    """Words for a template whose generation prompt ends inside a thought.

    The tag of ``prior_open`` is left out. What ``posterior_open`` says before the thought goes to the end of the
    user's turn (INFERRED: the last place before the assistant's header, which both prompts share).
    """
    tag = thought.tag
    other = _last_tag(config.prior_open)
    if other and other != tag:
        raise UserError(
            f"the chat template opens a thought with {tag}, and prompts.prior_open opens another one with {other}: set "
            f'prompts.prior_open = "" and prompts.close = "{mirror(tag)}"'
        )
    before, inside = _split(config.prior_open, thought)
    if before.strip():
        raise UserError(
            f"prompts.prior_open: {before.strip()!r} stands before {tag}, but the chat template opens {tag} itself, so "
            "it would stand inside the thought: leave it out, or put it into prompts.user"
        )
    notes = [f"the chat template opens {tag} itself, so prompts.prior_open does not open it again"] if other else []
    if mirror(tag) != config.close.strip() and not other:
        notes.append(f"the chat template opens {tag}, and traces end at prompts.close = {config.close!r}")
    user = config.posterior_user or config.user
    if "{hint}" not in user:
        user, said = _hint_moved(config, user, thought, inside)
        notes.append(said)
    return Layout(Wording(config.user, inside), Wording(user, inside)), notes


def _hint_moved(config: PromptConfig, user: str, thought: Thought, inside: str) -> tuple[str, str]:
    """The posterior's user turn with the words that ``posterior_open`` has before the thought, and a note of it."""
    opening, tag = config.posterior_open, thought.tag
    if tag in opening:
        before, after = _split(opening, thought)
    else:
        cut = len(opening) - len(inside) if inside and opening.endswith(inside) else len(opening)
        before, after = opening[:cut], inside
    if "{hint}" not in before or after != inside:
        raise UserError(
            f"prompts.posterior_open: the chat template opens {tag} itself, so the hint would stand inside the thought "
            "as the model's own words: put it into prompts.posterior_user, and leave posterior_open out"
        )
    end = user[len(user.rstrip()) :]
    return f"{user.rstrip()}\n\n{before.strip()}{end}", (
        f"the chat template opens {tag} itself, so the hint of prompts.posterior_open stands at the end of the user's "
        "turn, where the model reads it as context; prompts.posterior_user words it otherwise"
    )


def _split(opening: str, thought: Thought) -> tuple[str, str]:
    """What stands before and after the tag; without the tag all of it is after. White space alone after it is none."""
    before, found, after = opening.rpartition(thought.tag)
    after = after.lstrip() if thought.spaced and found else after
    return (before if found else "", after if after.strip() else "")
