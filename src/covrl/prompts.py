"""The three roles as token ids: prior p(z|x), posterior q(z|x,y), answer likelihood p(y|x,z).

Token in, token out: a sampled trace is never tokenised again. The question's prompt, the closing tag and the
answer are each encoded apart, so no merge crosses a border and the trace has the same ids in every context.
What a prior-context row holds besides question and trace does not depend on y before the answer span.

What a data set wrote is text: a question, or a turn before it, that spells ``<|im_end|>`` or ``</think>`` gets the ids
of those letters, never the token that ends a turn or a thought (:mod:`covrl.text_ids`). Templates and tags of the
settings may name any token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import uuid4

from covrl.chat_layout import Layout, Wording, chat_layout, plain_layout
from covrl.chat_template import ChatTemplate, holds, tokenizer_name
from covrl.config import CALLED_WITH, PromptConfig
from covrl.errors import UserError
from covrl.generation.stop import Stop, StopRule
from covrl.records import Problem, Rollout, Row, Span, Turn
from covrl.text_ids import Ids, TextIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["prior", "posterior"]
ROLES: tuple[Role, ...] = ("prior", "posterior")

CACHED = 16_384
"""Prompts and frames that are kept."""

HARMLESS = "c"
"""Stands for a text of a problem where its template is looked at."""


class Said(NamedTuple):
    """What a problem puts into one of its prompts; ``options`` are JSON, in which 1 and true differ."""

    question: str
    hint: str
    turns: tuple[Turn, ...] = ()
    options: str = "{}"


class Frame(NamedTuple):
    """How prompts of one kind are rendered: the template with their options, the words that go with it, and turns.

    The texts of the turns are of no matter, but for a system message that the template may read.
    """

    template: ChatTemplate | None
    layout: Layout
    turns: tuple[Turn, ...]


class Prompts:
    """Renders problems and rollouts with one tokenizer and one set of templates.

    Example:
        >>> prompts.prior(problem)              # ids of "Question … <think>\\n"
        >>> prompts.prior_row(problem, rollout) # prompt + trace + closing tag + answer, with spans
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._known_controls = lru_cache(CACHED)(self._template_controls)
        self._known_frames = lru_cache(CACHED)(self._make_frame)
        # every trace of a problem asks for the same prompts and answer, at sampling, scoring and training
        self._prompt = lru_cache(CACHED)(self._render)
        self._ids = TextIds(tokenizer)

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

    @property
    def layout(self) -> Layout:
        """The words of both prompts as the chat template, if there is one, lets them stand.

        Raises:
            UserError: the chat template fails, loses a text, or does not go with the settings.
        """
        return self._frame(Said("", "")).layout

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
        return self._template(self._turns(Said("", "")), "{}", of_problem=False)

    def _template(self, turns: tuple[Turn, ...], options: str, of_problem: bool) -> ChatTemplate | None:
        config = self.config
        if config.chat == "never" or not self.tokenizer.chat_template:
            return None
        day = date.fromisoformat(config.date) if config.date else date.today()
        every = config.template_options | json.loads(options)
        return ChatTemplate(self.tokenizer, turns, every, day, of_problem)

    def frame(self, problem: Problem) -> Frame:
        """The template and the wording of a problem's prompts.

        Raises:
            UserError: the chat template does not go with the problem's turns or options.
        """
        return self._frame(_said(problem, "prior"))

    def _frame(self, said: Said) -> Frame:
        """Depends on the texts of turns in as far as a template may read them: on a system message, if it is harmless.

        One that spells a control token is rendered as any other text, whatever a template would make of it.
        """
        of_settings = self._turns(said)[: -len(said.turns) or None]
        shape = (*of_settings, *(t if self._is_read(t) else t._replace(text=HARMLESS) for t in said.turns))
        return self._known_frames(shape, said.options, bool(said.turns) or said.options != "{}")

    def _is_read(self, turn: Turn) -> bool:
        """Whether a problem's own turn stays with the template: a system message that spells no control token."""
        return turn.role == "system" and not self._ids.spells(turn.text)

    def _make_frame(self, turns: tuple[Turn, ...], options: str, of_problem: bool) -> Frame:
        given = json.loads(options)
        if taken := sorted(CALLED_WITH & given.keys()):
            raise UserError(f"template_options: {taken[0]} is how the template is called, and no variable of it")
        if given and any(self._ids.spells(text) for text in (options, *map(str, given.values()))):
            raise UserError(f"template_options: a control token of the tokenizer {self._name} is spelt in {options}")
        template = self._template(turns, options, of_problem)
        if template is None and any(turn.role != "system" for turn in turns):
            why = 'prompts.chat is "never"' if self.config.chat == "never" else "the tokenizer has no chat template"
            raise UserError(f"it has messages before its question, but {why}, so nothing says how they are written")
        layout = plain_layout(self.config) if template is None else chat_layout(self.config, template)
        return Frame(template, layout, turns)

    def _turns(self, said: Said) -> tuple[Turn, ...]:
        """The messages before the question: the problem's own, after the settings' system message if it has none."""
        if self.config.system and not (said.turns and said.turns[0].role == "system"):
            return (Turn("system", self.config.system), *said.turns)
        return said.turns

    def text(self, problem: Problem, role: Role) -> str:
        """A prompt as text, without a beginning of sequence that the tokenizer adds.

        Raises:
            UserError: the chat template loses or changes the question, the hint or a turn before them.
        """
        try:
            return self._rendered(role, _said(problem, role))
        except UserError as error:
            raise UserError(f"problem {problem.id}: {error}") from None

    def _prompt_of(self, problem: Problem, role: Role) -> Ids:
        try:
            return self._prompt(role, _said(problem, role))
        except UserError as error:
            raise UserError(f"problem {problem.id}: {error}") from None

    def _render(self, role: Role, said: Said) -> Ids:
        begin = () if self.template else self._ids.start_ids  # a chat template writes its own beginning of sequence
        whole = self._ids.plain(self._rendered(role, said))
        unknown, texts = self._ids.spelt_unknown, (said.question, said.hint, *(turn.text for turn in said.turns))
        spelt = unknown is not None and any(unknown in text for text in texts)
        if not spelt and self._ids.controls(whole) == self._known_controls(role, self._frame(said)):
            return begin + whole
        return begin + self._in_parts(role, said)

    def _rendered(self, role: Role, said: Said, frame: Frame | None = None) -> str:
        """The prompt as text, in the problem's own frame if none is given. The prior's is rendered without a hint."""
        frame = frame or self._frame(said)
        words: Wording = getattr(frame.layout, role)
        filled = {"question": said.question} | ({"hint": said.hint} if role == "posterior" else {})
        user, opening = _filled(words.user, filled), _filled(words.opening, filled)
        turns = self._turns(said)
        if frame.template is None:
            return "".join(turn.text for turn in turns) + user + opening
        begun = frame.template.render(user, turns)
        for name, text in [*filled.items(), *_messages(said)]:
            if not holds(begun + opening, text):
                raise UserError(
                    f"the chat template of the tokenizer {self._name} does not show the {name} as it is "
                    f'written ({shortened(text)!r}): leave the problem out, or set prompts.chat = "never"'
                )
        return begun + opening

    def _template_controls(self, role: Role, frame: Frame) -> Ids:
        """The control tokens that a prompt has by its template alone, in order."""
        return self._ids.controls(self._ids.plain(self._rendered(role, Said("a", "b", frame.turns), frame)))

    def _in_parts(self, role: Role, said: Said) -> Ids:
        """A prompt in which a text of the problem spells a control token: the template as ever, these as mere text.

        A system message that spells none stays with the template, which may read it (:meth:`_frame`).
        """
        frame = self._frame(said)
        texts = [said.question, said.hint, *(turn.text for turn in said.turns)]
        kept = [False, False, *map(self._is_read, said.turns)]
        marks = [text if keep else f"covrl-{uuid4().hex}" for text, keep in zip(texts, kept, strict=True)]
        turns = tuple(t._replace(text=mark) for t, mark in zip(said.turns, marks[2:], strict=True))
        rendered = self._rendered(role, Said(marks[0], marks[1], turns, said.options), frame)
        literal = {mark: text for mark, text, keep in zip(marks, texts, kept, strict=True) if not keep}
        ids: Ids = ()
        for piece in re.split(f"({'|'.join(literal)})", rendered):
            if piece in literal:
                ids += self._ids.literal(literal[piece], ids)
            else:
                ids += self.encode(piece) if ids else self._ids.plain(piece)
        if self._ids.controls(ids) != self._known_controls(role, frame):
            raise UserError(
                f"its question, hint or a turn writes control tokens of the tokenizer {self._name} into the prompt; "
                "leave the problem out"
            )
        return ids

    def encode(self, text: str) -> Ids:
        """Ids of a text that continues another one (:meth:`covrl.text_ids.TextIds.encode`)."""
        return self._ids.encode(text)

    def literal(self, text: str) -> Ids:
        """Ids of a text that somebody else wrote, as mere text (:meth:`covrl.text_ids.TextIds.literal`)."""
        return self._ids.literal(text)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many ids each text has by itself, all counted in one go."""
        return self._ids.counts(texts)

    def length(self, rendered: str) -> int:
        """How many ids a rendered text has, in which the template's own control tokens are tokens."""
        return len(self._ids.plain(rendered))

    def reads_back_ids(self, ids: Sequence[int]) -> str:
        """The text that ids decode to, control tokens included."""
        decoded = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded)

    def reads_back(self, text: str) -> str:
        """What the ids of a text that continues another one decode to."""
        return self._ids.reads_back(text)


def _filled(template: str, said: Mapping[str, str]) -> str:
    """The template with each ``{name}`` of ``said`` replaced, in one go: what is put in is not looked at."""
    return re.sub(r"\{(\w+)\}", lambda found: said.get(found[1], found[0]), template)


def _said(problem: Problem, role: Role) -> Said:
    """What the problem puts into the prompt; nothing of the answer or the hint into the prior's."""
    hint = problem.shown if role == "posterior" else ""
    own = dict(problem.template_options)
    options = json.dumps(own, ensure_ascii=False, sort_keys=True) if own else "{}"
    return Said(problem.question, hint, tuple(Turn(*turn) for turn in problem.turns), options)


def _messages(said: Said) -> list[tuple[str, str]]:
    """The turns that a template has to show as they are, with their names for messages.

    That it shows a system message at all is known of the template; it may take a command out of it.
    """
    named = [(f"{turn.role} message {i}", turn) for i, turn in enumerate(said.turns, 1)]
    return [(name, turn.text) for name, turn in named if turn.role != "system"]


def dated(config: PromptConfig, tokenizer: PreTrainedTokenizerBase, today: date) -> PromptConfig:
    """The settings with the day that a run begins, where its chat template writes a date and none is set."""
    template = Prompts(tokenizer, config).template
    if config.date or template is None or not template.reads_date:
        return config
    return config.model_copy(update={"date": today.isoformat()})


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:60]}…"
