"""Multiple choice: rows with options become problems whose answer is a letter, the options in a seeded order."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from covrl.errors import UserError
from covrl.problems.loading import field_of, read_rows, stem_of
from covrl.records import Problem
from covrl.rewards.choice import LETTERS

ASK = "Answer with the letter of the right option."

_MARK = re.compile(r"(?:^|\s)\(?([A-Z])\)\s")


@dataclass(frozen=True, slots=True)
class Options:
    """The fields of a row that hold its question, its options and the right option.

    ``right`` names a field that holds the right option: its letter, its place from 0, or its text. The options are
    the list in the field ``listed`` (or one text, ``A) … B) …``), or ``right`` with the fields ``wrong``.
    """

    question: str
    right: str
    listed: str | None = None
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceSet:
    """Problems with options, and the accuracy of guessing."""

    problems: tuple[Problem, ...]
    chance: float


def load_choices(source: str, options: Options, seed: int) -> ChoiceSet:
    """Every row's question with its options, shuffled by (seed, row), as one text; the answer is a letter.

    The verifier ``choice`` reads the options' texts from the question.

    Raises:
        UserError: the source cannot be read, or a row has no question, no right option, or fewer than two or more
            than ten options.
    """
    names = [options.question, options.right, *options.wrong, *([options.listed] if options.listed else [])]
    problems: list[Problem] = []
    guesses: list[float] = []
    for number, (where, row) in enumerate(read_rows(source, names)):
        question = field_of(where, row, "question", options.question)
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{where}: question (field {options.question!r}): expected text")
        texts, right = _options(where, row, options)
        order = list(range(len(texts)))
        name = f"{stem_of(source)}/{number}"
        random.Random(f"options/{seed}/{name}").shuffle(order)
        listed = "\n".join(f"({ascii_uppercase[i]}) {texts[place]}" for i, place in enumerate(order))
        letter = ascii_uppercase[order.index(right)]
        problems.append(Problem(name, f"{question.strip()}\n\n{listed}\n\n{ASK}", letter))
        guesses.append(1 / len(texts))
    if not problems:
        raise UserError(f"{source}: there are no problems in it")
    return ChoiceSet(tuple(problems), sum(guesses) / len(guesses))


def _options(where: str, row: Mapping[str, Any], options: Options) -> tuple[list[str], int]:
    """The options' texts and the index of the right one."""
    right = field_of(where, row, "right option", options.right)
    if options.listed is None:
        texts = [str(right).strip(), *(str(field_of(where, row, "option", name)).strip() for name in options.wrong)]
        place = 0
    else:
        texts = _listed(field_of(where, row, "options", options.listed))
        place = _place(right, texts)
    if not 2 <= len(texts) <= len(LETTERS) or not all(texts):
        raise UserError(f"{where}: expected 2 to {len(LETTERS)} options that are not empty, found {len(texts)}")
    if not 0 <= place < len(texts):
        raise UserError(
            f"{where}: right option (field {options.right!r}): {right!r} is none of the {len(texts)} options; "
            "expected a letter, a place from 0, or an option's text"
        )
    return texts, place


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in _MARK.split(value)[2::2]]
    return [str(option).strip() for option in value] if isinstance(value, Sequence) else []


def _place(right: Any, texts: Sequence[str]) -> int:
    if isinstance(right, Sequence) and not isinstance(right, str) and len(right) == 1:
        right = right[0]
    if isinstance(right, int) and not isinstance(right, bool):
        return right
    text = str(right).strip()
    if text in texts:
        return list(texts).index(text)
    return ascii_uppercase.index(text) if len(text) == 1 and text in ascii_uppercase else -1
