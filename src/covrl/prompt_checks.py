"""What must hold of a tokenizer, a model's size and all problems before a run samples anything."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from covrl.chat_template import QUESTION, REPLY, tokenizer_name
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.prompts import ROLES, Frame, Prompts, Role, shortened
from covrl.records import Problem, Turn


def check_tokens(prompts: Prompts, problems: Sequence[Problem]) -> None:
    """Every prompt shows its problem, the tags survive the tokenizer, and answers have tokens.

    Raises:
        UserError: the chat template does not go with the settings or a problem, a tag does not come back from its ids,
            or an answer is empty or has a character without a token; names setting or problem, the tokenizer, and what
            to do.
    """
    name = tokenizer_name(prompts.tokenizer)
    _ = prompts.layout  # what is wrong with the template is no single problem's fault
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
        _ = prompts.text(problem, "prior"), prompts.text(problem, "posterior")
        if not problem.answer.strip():
            raise UserError(f"problem {problem.id}: the answer is empty")
        if lost := _lost(prompts, problem.answer):
            raise UserError(
                f"problem {problem.id}: the tokenizer {name} has no token for {lost!r} of the answer "
                f"{shortened(problem.answer)!r}; leave the problem out, or choose a model whose tokenizer can write it"
            )


def _lost(prompts: Prompts, text: str) -> str:
    """The characters of a text that its ids do not hold, in order; letter case and Unicode form may change."""
    back, unknown = _folded(prompts.reads_back(text)), prompts.tokenizer.unk_token
    if unknown is not None and unknown not in text:
        back = back.replace(_folded(unknown), "")
    return "".join(dict.fromkeys(c for c in _folded(text) if not c.isspace() and c not in back))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def check_rows(prompts: Prompts, rows: int, problems: Sequence[Problem]) -> None:
    """Every token that the model is given must have one of the ``rows`` of its embedding.

    A tokenizer may have more tokens than the model, as long as no prompt, tag or answer uses them: what has no row
    cannot be sampled either.

    Raises:
        UserError: one that is used has none; names where it stands, the token, its id and the rows.
    """
    if max(prompts.tokenizer.get_vocab().values(), default=0) < rows:
        return
    for where, ids in _all_ids(prompts, problems):
        if (token := max(ids, default=0)) >= rows:
            raise UserError(
                f"{where}: the token {prompts.tokenizer.convert_ids_to_tokens(token)!r} has the id {token}, but the "
                f"model's embedding has {rows} rows: the tokenizer is not the model's, or tokens were added to it "
                "without resizing the model; take the tokenizer that the model came with, or resize the embedding"
            )


def _all_ids(prompts: Prompts, problems: Sequence[Problem]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "prompts.close", prompts.close_ids
    yield "prompts.answer_prefix", prompts.answer_prefix_ids
    yield "prompts.answer_suffix", prompts.encode(prompts.config.answer_suffix)
    for problem in problems:
        yield f"the prompt of problem {problem.id}", prompts.prior(problem) + prompts.posterior(problem)
        yield f"the answer of problem {problem.id}", prompts.answer(problem)
        if problem.solution:
            yield f"the solution of problem {problem.id}", prompts.literal(problem.solution.strip())


def check_lengths(prompts: Prompts, context: int | None, config: RunConfig, problems: Sequence[Problem]) -> None:
    """Every prompt, a whole trace and the answer must fit the model's context (``None``: it has no limit).

    Tokens are counted for every problem that does not fit by far: a script's letters say little about its tokens.

    Raises:
        UserError: the longest problem does not fit; names it, with the arithmetic.
    """
    if context is None or not problems:
        return
    trace, tags = config.generation.max_trace_tokens, len(prompts.close_ids) + len(prompts.answer_prefix_ids)
    room = context - trace - tags
    if found := longest_beyond(prompts, problems, room, ROLES, answers=True):
        prompt, answer, longest = found
        raise UserError(
            f"problem {longest.id}: {prompt} prompt tokens + {trace} trace tokens + {tags + answer} answer tokens "
            f"exceed the model's context of {context}; lower generation.max_trace_tokens or leave the problem out"
        )


def fits(prompts: Prompts, context: int | None, config: RunConfig, problem: Problem) -> bool:
    """Whether :func:`check_lengths` would let the problem pass."""
    tags = len(prompts.close_ids) + len(prompts.answer_prefix_ids)
    room = None if context is None else context - config.generation.max_trace_tokens - tags
    return room is None or longest_beyond(prompts, [problem], room, ROLES, answers=True) is None


def longest_beyond(
    prompts: Prompts, problems: Sequence[Problem], room: int, roles: Sequence[Role], answers: bool
) -> tuple[int, int, Problem] | None:
    """The longest problem, with the tokens of its prompt and its answer (0 without ``answers``); None if it fits."""
    asked = {"prior": prompts.prior, "posterior": prompts.posterior}
    counted = [
        (max(len(asked[role](p)) for role in roles), len(prompts.answer(p)) if answers else 0, p)
        for p in may_exceed(prompts, problems, room, roles, answers)
    ]
    longest = max(counted, key=lambda found: found[0] + found[1], default=None)
    return longest if longest and longest[0] + longest[1] > room else None


BORDERS = 16
"""Tokens by which a prompt may be longer than its parts apart, as merges differ at their borders (INFERRED)."""


def may_exceed(
    prompts: Prompts, problems: Sequence[Problem], room: int, roles: Sequence[Role], answers: bool
) -> list[Problem]:
    """The problems whose prompts, and ``answers``, may have more than ``room`` tokens; the others surely fit.

    First by their bytes, which costs nothing; then by the tokens of their texts, counted in one go and not in place.
    """
    frames, suffix = _Frames(prompts, roles), len(prompts.encode(prompts.config.answer_suffix))

    def beyond(problem: Problem, sizes: Mapping[str, int]) -> bool:
        answer = sizes[problem.answer] + suffix if answers else 0
        return frames.tokens(problem, sizes) + answer > room

    texts = {text for p in problems for text in (*_texts(p), p.answer)}
    most = {text: most_tokens(text) for text in texts}
    near = [p for p in problems if beyond(p, most)]
    texts = sorted({text for p in near for text in (*_texts(p), p.answer)})
    counted = dict(zip(texts, prompts.counts(texts), strict=True))
    return [p for p in near if beyond(p, counted)]


def longest_prompt(prompts: Prompts, problems: Sequence[Problem], roles: Sequence[Role] = ROLES) -> int:
    """Tokens of the longest prompt, or a few more; texts are counted in one go and not in place."""
    texts = sorted({text for p in problems for text in _texts(p)})
    counted = dict(zip(texts, prompts.counts(texts), strict=True))
    frames = _Frames(prompts, roles)
    return max(frames.tokens(p, counted) for p in problems)


def longest_row(prompts: Prompts, config: RunConfig, problems: Sequence[Problem]) -> int:
    """Tokens of the longest row that a run can make, or a few more: prompt, whole trace, tags and answer."""
    answers = prompts.counts(sorted({p.answer for p in problems}))
    suffix = len(prompts.encode(prompts.config.answer_suffix))
    tags = len(prompts.close_ids) + len(prompts.answer_prefix_ids)
    generation = config.generation
    answer = max(max(answers) + suffix, generation.max_answer_tokens)
    return longest_prompt(prompts, problems) + generation.max_trace_tokens + tags + answer


def _texts(problem: Problem) -> list[str]:
    """What stands in a problem's prompts."""
    return [problem.question, problem.shown, *(turn.text for turn in problem.turns)]


class _Frames:
    """What prompts are beside their problem's texts: tokens, and how often question and hint stand in them.

    A frame is measured once for all problems whose turns have the same roles and whose options are the same.
    """

    def __init__(self, prompts: Prompts, roles: Sequence[Role]) -> None:
        self._prompts, self._roles = prompts, roles
        self._known: dict[Frame, list[tuple[int, int, int]]] = {}

    def tokens(self, problem: Problem, sizes: Mapping[str, int]) -> int:
        """Most tokens of one of the problem's prompts, if its texts have so many each."""
        frame = self._prompts.frame(problem)
        shape = frame.turns[len(frame.turns) - len(problem.turns) :]
        if frame not in self._known:
            self._known[frame] = [self._measured(problem, shape, role) for role in self._roles]
        turns = sum(sizes[turn.text] for turn, kept in zip(problem.turns, shape, strict=True) if turn.text != kept.text)
        question, hint = sizes[problem.question], sizes[problem.shown]
        return turns + max(own + q * question + h * hint for own, q, h in self._known[frame])

    def _measured(self, problem: Problem, shape: tuple[Turn, ...], role: Role) -> tuple[int, int, int]:
        marked = replace(problem, question=QUESTION, answer=REPLY, hint=REPLY, turns=shape)
        text = self._prompts.text(marked, role)
        return self._prompts.length(text) + BORDERS, text.count(QUESTION), text.count(REPLY)


def most_tokens(text: str) -> int:
    """A bound on a text's tokens that spares counting them: far more than any tokenizer makes of it.

    A token is of a byte at least, of the text or of what a normaliser makes of it, as long as the longest such form;
    twice that leaves room for spaces and beginnings that a tokenizer adds.
    """
    forms = [text] if text.isascii() else [text, unicodedata.normalize("NFKD", text)]
    return 2 * max(len(form.encode("utf-8", "replace")) for form in forms) + 8


def option_notes(prompts: Prompts, problems: Sequence[Problem]) -> list[str]:
    """What a user must know of the problems' own options for the chat template: those that it does not read."""
    counted = Counter(name for problem in problems for name in problem.template_options)
    template = prompts.template
    if template is None:
        why = "no chat template is used"
    else:
        why = "the chat template does not read it"
        counted = {n: c for n, c in counted.items() if not re.search(rf"\b{re.escape(n)}\b", template.source)}
    return [f"template_options.{name} of {count:,} problems does nothing: {why}" for name, count in counted.items()]
