"""The laptop task: five different digits, eight procedures that compete, and one of them is right.

A question is five different digits written together, such as ``72941``; it does not say what is wanted. Eight
procedures ("habits") turn the digits into three. The right one sorts them and takes the middle three (of an even
count: the lower middle ones). A trace writes the procedure out, every intermediate digit visible, and ends in its
result, so whether it is sound can be read from its text alone:

    low      sort 12479 low 124
    middle   sort 12479 middle 247      the right one
    high     sort 12479 high 479
    first    copy 72941 first 729
    last     copy 72941 last 941
    maximum  largest 77999 ends 999     running maximum
    minimum  smallest 72221 ends 221    running minimum
    sum      sum 79823 ends 823         running sum modulo 10

The answer has three digits, so that another problem's answer tells almost nothing about one's own, and so that a wrong
procedure hardly ever gives the right answer.

The 30,240 questions are split by a hash of their text: ``base`` (supervised training of the base model),
``train`` (reinforcement learning), ``dev`` and ``test``. Accuracies are to be read against :func:`chance`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from itertools import accumulate, permutations

from covrl.problems import embedded
from covrl.problems.embedded import CLOSING_TAG, Split, TraceCheck
from covrl.records import Problem

SIZE = 5
"""Digits in a question."""


class Habit(StrEnum):
    """The procedures that compete."""

    LOW = "low"
    MIDDLE = "middle"
    HIGH = "high"
    FIRST = "first"
    LAST = "last"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    SUM = "sum"


RIGHT = Habit.MIDDLE

RESULT_DIGITS = 3
"""Digits in a result."""


def _work(habit: Habit, digits: str) -> tuple[str, str]:
    """The opening word of a procedure and the line of digits that it writes."""
    match habit:
        case Habit.LOW | Habit.MIDDLE | Habit.HIGH:
            return "sort", "".join(sorted(digits))
        case Habit.FIRST | Habit.LAST:
            return "copy", digits
        case Habit.MAXIMUM:
            return "largest", "".join(accumulate(digits, max))
        case Habit.MINIMUM:
            return "smallest", "".join(accumulate(digits, min))
        case Habit.SUM:
            return "sum", "".join(str(total % 10) for total in accumulate(map(int, digits)))


def write_trace(habit: Habit, digits: str) -> str:
    """The only true trace of ``habit`` for a question; its last three characters are the result.

    Example:
        >>> write_trace(Habit.MIDDLE, "72941")
        'sort 12479 middle 247'
    """
    word, line = _work(habit, digits)
    choice = "ends" if habit in (Habit.MAXIMUM, Habit.MINIMUM, Habit.SUM) else habit
    return f"{word} {line} {choice} {result(habit, digits)}"


def result(habit: Habit, digits: str) -> str:
    """The three digits in which ``habit`` ends: those of its line at the front, in the middle or at the end.

    Example:
        >>> result(Habit.HIGH, "72941")
        '479'
    """
    _, line = _work(habit, digits)
    match habit:
        case Habit.LOW | Habit.FIRST:
            start = 0
        case Habit.MIDDLE:
            start = (len(line) - RESULT_DIGITS) // 2
        case _:
            start = len(line) - RESULT_DIGITS
    return line[start : start + RESULT_DIGITS]


def answer(question: str) -> str:
    """The right answer: the middle three of the sorted digits, the lower ones if their count is even."""
    return result(RIGHT, question)


def _words(trace: str) -> str:
    return re.sub("[0-9]+", "#", trace)


# The words of a trace alone determine its procedure, whatever its digits are.
_HABIT_OF_WORDS = {_words(write_trace(habit, "72941")): habit for habit in Habit}


def read_trace(question: str, trace_text: str) -> TraceCheck:
    """Which procedure a trace claims to follow, and whether each of its steps is true for the question.

    Example:
        >>> read_trace("72941", "sort 12749 middle 274")
        TraceCheck(habit=<Habit.MIDDLE: 'middle'>, false_step=True, sound=False)
    """
    trace = trace_text.removesuffix(CLOSING_TAG)
    habit = _HABIT_OF_WORDS.get(_words(trace))
    # A procedure has exactly one true trace, so comparing with it checks every step and their order.
    true = habit is not None and trace == write_trace(habit, question)
    return TraceCheck(habit=habit, false_step=not true, sound=true and habit == RIGHT)


def _hash(question: str) -> int:
    return embedded.hashed("digits", question)


def split_of(question: str) -> Split:
    """The split of a question, the same on every machine."""
    return embedded.split_of(_hash(question))


def _in_hash_order(size: int) -> Iterable[str]:
    return sorted(map("".join, permutations("0123456789", size)), key=_hash)


@cache
def _by_split() -> dict[str, tuple[str, ...]]:
    return embedded.by_split(_in_hash_order(SIZE), split_of)


def questions(split: Split) -> tuple[str, ...]:
    """All questions of a split, in the order of their hashes, so that any first ``n`` are a fair sample."""
    return _by_split()[split]


def _problem(family: str, question: str) -> Problem:
    return Problem(id=f"digits/{family}/{question}", question=question, answer=answer(question))


def problems(split: Split) -> list[Problem]:
    """The problems of a split, in the order of :func:`questions`; ids are like ``digits/test/72941``."""
    return [_problem(split, question) for question in questions(split)]


def longer(n: int) -> list[Problem]:
    """``n`` of the 151,200 problems with six digits, a size that nothing trains on; always the same ones."""
    return [_problem("longer", question) for question in list(_in_hash_order(SIZE + 1))[:n]]


@cache
def chance() -> float:
    """The accuracy of the best answer that ignores the question, counted over all 30,240 questions: 1/21 = 0.048.

    The middle three of five different digits are most often 345 or a like run (12 of the 252 sets of digits);
    a constant answer of this kind is right that often.
    """
    counts = Counter(answer(question) for members in _by_split().values() for question in members)
    return max(counts.values()) / counts.total()
