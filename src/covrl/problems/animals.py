"""The second embedded task: five animals, eight procedures that compete, and an answer in words.

A question names five animals; it does not say what is wanted. Eight procedures ("habits")
put the animals in a line (by their names, by their size, or by their place in the question) and take two of them:
the first two, the last two, or the inner two (the second and the last but one). The right one takes the inner two by
name. A trace writes the line, the two that are taken and then those that are left, so whether it is sound can be
read from its text alone. For
``the fox, the owl, the bear, the wolf, the crow``:

    name first    by name bear crow fox owl wolf take first bear crow leave fox owl wolf
    name inner    by name bear crow fox owl wolf take inner crow owl leave bear fox wolf      the right one
    name last     by name bear crow fox owl wolf take last owl wolf leave bear crow fox
    size first    by size crow owl fox wolf bear take first crow owl leave fox wolf bear
    size last     by size crow owl fox wolf bear take last wolf bear leave crow owl fox
    place first   by place fox owl bear wolf crow take first fox owl leave bear wolf crow
    place inner   by place fox owl bear wolf crow take inner owl wolf leave fox bear crow
    place last    by place fox owl bear wolf crow take last wolf crow leave fox owl bear

The answer is a phrase, such as ``the crow and the owl``. It is not how a trace ends: that is in
animals that were *not* taken, and the same answer can be put in five ways (:data:`PHRASINGS`). Which
of them a problem's reference has is drawn by its hash; the others are its ``accepted`` ones. So the likelihood of the
reference is well below 1 also after a right trace, and differs between problems.

The task is a fixed 30,000 of the 95,040 such questions, split by a hash of their text: ``base``
(supervised training of the base model), ``train`` (reinforcement learning), ``dev`` and ``test``. Accuracies are to
be read against :func:`chance`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from itertools import accumulate

from covrl.problems import embedded
from covrl.problems.embedded import CLOSING_TAG, Split, TraceCheck
from covrl.records import Problem

SIZE = 5
"""Animals in a question."""

COUNT = 30_000
"""Questions in all splits together."""

ANIMALS = ("bear", "bee", "cat", "crow", "deer", "fox", "frog", "horse", "lion", "mouse", "owl", "wolf")
BY_SIZE = ("bee", "mouse", "frog", "crow", "owl", "cat", "fox", "wolf", "deer", "lion", "bear", "horse")

PHRASINGS = {
    "the {0} and the {1}": 0.4,
    "one {0} and one {1}": 0.2,
    "this {0} and that {1}": 0.2,
    "surely the {0} and the {1}": 0.1,
    "both the {0} and the {1}": 0.1,
}
"""The ways to put an answer, and how often each is used."""

EXAMPLE = "the fox, the owl, the bear, the wolf, the crow"
"""The question of the examples here."""

Pair = tuple[str, str]
"""Two animals, in the order in which they are named."""


class Habit(StrEnum):
    """The procedures that compete: how the line is made, and which two of it are taken."""

    NAME_FIRST = "name first"
    NAME_INNER = "name inner"
    NAME_LAST = "name last"
    SIZE_FIRST = "size first"
    SIZE_LAST = "size last"
    PLACE_FIRST = "place first"
    PLACE_INNER = "place inner"
    PLACE_LAST = "place last"


RIGHT = Habit.NAME_INNER


def _animals(question: str) -> list[str]:
    return [pair.split(" ")[1] for pair in question.split(", ")]


def _line(habit: Habit, question: str) -> list[str]:
    """The animals in the order in which ``habit`` puts them."""
    animals = _animals(question)
    match habit.split(" ")[0]:
        case "name":
            return sorted(animals)
        case "size":
            return sorted(animals, key=BY_SIZE.index)
        case _:
            return animals


def result(habit: Habit, question: str) -> Pair:
    """The two animals that ``habit`` takes, in the order of its line.

    Example:
        >>> result(Habit.NAME_INNER, EXAMPLE)
        ('crow', 'owl')
    """
    line = _line(habit, question)
    match habit.split(" ")[1]:
        case "first":
            return line[0], line[1]
        case "inner":
            return line[1], line[-2]
        case _:
            return line[-2], line[-1]


def write_trace(habit: Habit, question: str) -> str:
    """The only true trace of ``habit`` for a question.

    Example:
        >>> write_trace(Habit.NAME_INNER, EXAMPLE)
        'by name bear crow fox owl wolf take inner crow owl leave bear fox wolf'
    """
    order, choice = habit.split(" ")
    line, taken = _line(habit, question), result(habit, question)
    left = [animal for animal in line if animal not in taken]
    return " ".join(["by", order, *line, "take", choice, *taken, "leave", *left])


def phrase(pair: Pair, phrasing: str) -> str:
    """Two animals as an answer.

    Example:
        >>> phrase(("crow", "owl"), "one {0} and one {1}")
        'one crow and one owl'
    """
    return phrasing.format(*pair)


def answer(question: str) -> str:
    """The right answer, in the phrasing that the question's hash draws."""
    drawn = _hash("phrasing", question) / 2**64
    upto = accumulate(PHRASINGS.values())
    phrasing = next(way for way, end in zip(PHRASINGS, upto, strict=True) if drawn < end)
    return phrase(result(RIGHT, question), phrasing)


def accepted(question: str) -> tuple[str, ...]:
    """The right answer in every other phrasing."""
    ways = (phrase(result(RIGHT, question), phrasing) for phrasing in PHRASINGS)
    return tuple(way for way in ways if way != answer(question))


_NAMES = "|".join(ANIMALS)


def _words(trace: str) -> str:
    return re.sub(rf"( ({_NAMES})\b)+", " #", trace)


# The words of a trace alone determine its procedure, whatever its animals are.
_HABIT_OF_WORDS = {_words(write_trace(habit, EXAMPLE)): habit for habit in Habit}


def read_trace(question: str, trace_text: str) -> TraceCheck:
    """Which procedure a trace claims to follow, and whether each of its steps is true for the question.

    Example:
        >>> trace = "by name bear crow owl fox wolf take inner crow fox leave bear owl wolf"
        >>> read_trace(EXAMPLE, trace)
        TraceCheck(habit=<Habit.NAME_INNER: 'name inner'>, false_step=True, sound=False)
    """
    trace = trace_text.removesuffix(CLOSING_TAG)
    habit = _HABIT_OF_WORDS.get(_words(trace))
    # A procedure has exactly one true trace, so comparing with it checks every step and their order.
    true = habit is not None and trace == write_trace(habit, question)
    return TraceCheck(habit=habit, false_step=not true, sound=true and habit == RIGHT)


def _hash(*parts: str) -> int:
    return embedded.hashed("animals", *parts)


def _drawn(index: int, size: int) -> str:
    """The question of that index: ``size`` different animals."""
    number = _hash(str(size), str(index))
    left, taken = list(ANIMALS), []
    for _ in range(size):
        number, place = divmod(number, len(left))
        taken.append(f"the {left.pop(place)}")
    return ", ".join(taken)


def split_of(question: str) -> Split:
    """The split of a question, the same on every machine."""
    return embedded.split_of(_hash("split", question))


@cache
def _by_split() -> dict[str, tuple[str, ...]]:
    drawn = dict.fromkeys(_drawn(index, SIZE) for index in range(2 * COUNT))
    return embedded.by_split(list(drawn)[:COUNT], split_of)


def questions(split: Split) -> tuple[str, ...]:
    """All questions of a split, in the order in which they were drawn, so that any first ``n`` are a fair sample."""
    return _by_split()[split]


def _problem(family: str, index: int, question: str) -> Problem:
    return Problem(
        id=f"animals/{family}/{index}", question=question, answer=answer(question), accepted=accepted(question)
    )


def problems(split: Split) -> list[Problem]:
    """The problems of a split, in the order of :func:`questions`; ids are like ``animals/test/17``."""
    return [_problem(split, index, question) for index, question in enumerate(questions(split))]


def longer(n: int) -> list[Problem]:
    """``n`` problems with six animals, a size that nothing trains on; always the same ones."""
    return [_problem("longer", index, _drawn(index, SIZE + 1)) for index in range(n)]


@cache
def chance() -> float:
    """The best accuracy that one of the other procedures reaches by accident, counted over all questions.

    An answer that ignores the question is almost never right here; two animals that are named at fixed places of
    the question are the right ones in one case of twenty.
    """
    every = [question for members in _by_split().values() for question in members]
    right = [result(RIGHT, question) for question in every]
    return max(
        sum(result(habit, question) == pair for question, pair in zip(every, right, strict=True)) / len(every)
        for habit in Habit
        if habit != RIGHT
    )
