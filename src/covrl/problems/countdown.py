"""The third embedded task, CountDown: combine three numbers into a target, each used exactly once.

A question gives the numbers and the target, such as ``3,7,8 make 29``; the answer is an expression, ``(7*3)+8``. Any
expression that uses every number once and has that value is right, so answers are judged by the verifier ``countdown``
(:mod:`covrl.rewards.countdown`), not by comparison with the reference. A step takes two of the numbers that are left
and puts their sum, difference, product or exact quotient in their place; results are whole numbers from 1 to
:data:`MOST`. Two kinds of traces solve it:

    direct   7*3=21;21+8=29
    search   8*3=24;24+7=31 no;7*3=21;21+8=29

``search`` is depth-first with the heuristic ``sum`` of stream-of-search (CONFIRMED for that code): the result nearest
to the target is tried first. ``no`` ends a branch that missed, and a step that takes numbers of an earlier state goes
back to it. So traces differ in length, and a longer one can be worth its tokens: the task on which methods about length
are judged. Sizes here (three numbers of 1 to 16, targets of 10 to 100) are ours; the study has four numbers
(2504.07052).

Every solvable pair of numbers and target is one problem. They are split by a hash of the pair, whatever the order in
which the numbers are shown: ``base`` (supervised training of the base model), ``train`` (reinforcement learning),
``dev`` and ``test``. Accuracies are to be read against :func:`chance`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import cache
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

from covrl.problems import embedded
from covrl.problems.embedded import CLOSING_TAG, Split, TraceCheck
from covrl.records import Problem

SIZE = 3
"""Numbers in a question."""

LARGEST = 16
"""The largest number of a question; the smallest is 1."""

TARGETS = range(10, 101)

MOST = 160
"""The largest result of a step."""

OPERATIONS = "+-*/"

State = tuple[int, ...]
"""The numbers that are left, sorted."""


class Habit(StrEnum):
    """The kinds of traces."""

    DIRECT = "direct"
    SEARCH = "search"


class Step(NamedTuple):
    """One step: ``left operation right = result``.

    Example:
        >>> str(Step(7, "*", 3, 21))
        '7*3=21'
    """

    left: int
    operation: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.operation}{self.right}={self.result}"

    def after(self, state: State) -> State | None:
        """What is left of ``state`` after the step, or None where its numbers are not there."""
        left = list(state)
        for number in (self.left, self.right):
            if number not in left:
                return None
            left.remove(number)
        return tuple(sorted([*left, self.result]))

    def is_true(self) -> bool:
        """Whether the operation has that result, a whole number from 1 to :data:`MOST`."""
        return self.result == _combined(self.left, self.operation, self.right)


class Question(NamedTuple):
    """The numbers in the order in which they are shown, and the target.

    Example:
        >>> str(Question((3, 7, 8), 29))
        '3,7,8 make 29'
    """

    numbers: tuple[int, ...]
    target: int

    def __str__(self) -> str:
        return f"{','.join(map(str, self.numbers))} make {self.target}"


def read_question(text: str) -> Question:
    """The question that :meth:`Question.__str__` wrote; raises ValueError for any other text."""
    numbers, _, target = text.partition(" make ")
    return Question(tuple(map(int, numbers.split(","))), int(target))


def _combined(left: int, operation: str, right: int) -> int | None:
    """The result of a step, or None where it is no whole number from 1 to :data:`MOST`."""
    match operation:
        case "+":
            found = left + right
        case "-":
            found = left - right
        case "*":
            found = left * right
        case _:
            found = left // right if right and left % right == 0 else 0
    return found if 1 <= found <= MOST else None


def steps_from(state: State) -> list[Step]:
    """All steps from a state, each once; the larger number stands on the left.

    Example:
        >>> [str(step) for step in steps_from((2, 6))]
        ['6+2=8', '6-2=4', '6*2=12', '6/2=3']
    """
    found = []
    for low, high in sorted(set(combinations(sorted(state), 2))):
        for operation in OPERATIONS:
            result = _combined(high, operation, low)
            if result is not None:
                found.append(Step(high, operation, low, result))
    return found


def endings(state: State) -> Counter[int]:
    """How often each number is what is left, over all ways to take the steps."""
    if len(state) == 1:
        return Counter(state)
    found: Counter[int] = Counter()
    for step in steps_from(state):
        left = step.after(state)
        assert left is not None  # the step was made from this state
        found += endings(left)
    return found


def _branches(state: State, target: int, path: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """The branches of a depth-first search, in its order.

    With two numbers left only the result nearest to the target is tried: if it misses, so do the others.
    """
    nearest = sorted(steps_from(state), key=lambda step: abs(step.result - target))
    for step in nearest[:1] if len(state) == 2 else nearest:
        left = step.after(state)
        assert left is not None
        if len(left) == 1:
            yield (*path, step)
        else:
            yield from _branches(left, target, (*path, step))


class Trace(NamedTuple):
    """A trace as it is written, and the steps of its last branch."""

    text: str
    steps: tuple[Step, ...]


def search(question: Question, most: int | None = None) -> Trace:
    """The depth-first search until it finds the target, or until ``most`` branches have missed.

    Example:
        >>> search(Question((3, 7, 8), 29), most=1).text
        '8*3=24;24+7=31 no'
    """
    state, written, branch = tuple(sorted(question.numbers)), [], ()
    shown: tuple[Step, ...] = ()
    for tried, branch in enumerate(_branches(state, question.target), 1):
        same = next((i for i, (a, b) in enumerate(zip(branch, shown, strict=False)) if a != b), 0)
        text = ";".join(map(str, branch[same:]))
        found = branch[-1].result == question.target
        written.append(text if found else f"{text} no")
        shown = branch
        if found or tried == most:
            break
    return Trace(";".join(written), branch)


def solution(question: Question) -> tuple[Step, ...]:
    """The steps of the branch in which the search finds the target."""
    return search(question).steps


def write_trace(habit: Habit, question: Question) -> str:
    """A trace of that kind which finds the target.

    Example:
        >>> write_trace(Habit.DIRECT, Question((3, 7, 8), 29))
        '7*3=21;21+8=29'
    """
    return search(question).text if habit is Habit.SEARCH else ";".join(map(str, solution(question)))


def expression(steps: Iterable[Step]) -> str:
    """The steps of a branch as one expression; what was combined stands in brackets.

    Example:
        >>> expression([Step(7, "*", 3, 21), Step(21, "+", 8, 29)])
        '(7*3)+8'
    """
    made: dict[int, list[str]] = {}
    text = ""
    for step in steps:
        sides = [made[number].pop() if made.get(number) else str(number) for number in (step.left, step.right)]
        text = f"{sides[0]}{step.operation}{sides[1]}"
        made.setdefault(step.result, []).append(f"({text})")
    return text


_STEP = re.compile(r"(\d{1,4})([-+*/])(\d{1,4})=(\d{1,4})( no)?")


def read_trace(question_text: str, trace_text: str) -> TraceCheck:
    """Whether each step of a trace is true and takes numbers that are there, and whether it ends at the target.

    A step goes on from a state that has both of its numbers; if that is not the last one, the trace is a search. ``no``
    at the target is a false step, an end at another number is not sound.

    Example:
        >>> read_trace("3,7,8 make 29", "8+7=15;15+3=18 no;7*3=21;21+8=29")
        TraceCheck(habit=<Habit.SEARCH: 'search'>, false_step=False, sound=True)
    """
    question = read_question(question_text)
    # Two states can have the numbers of a step, so every reading is followed: its states, and whether it went back.
    readings: set[tuple[tuple[State, ...], bool]] = {((tuple(sorted(question.numbers)),), False)}
    missed = False
    for part in trace_text.removesuffix(CLOSING_TAG).split(";"):
        read = _STEP.fullmatch(part)
        if read is None:
            return TraceCheck(habit=None, false_step=True, sound=False)
        step = Step(int(read[1]), read[2], int(read[3]), int(read[4]))
        readings = {
            ((*states[:depth], left), back or depth < len(states))
            for states, back in readings
            for depth in range(1, len(states) + 1)
            if (left := step.after(states[depth - 1])) is not None
        }
        missed = read[5] is not None
        if missed:  # the branch ends here, at another number
            readings = {(states, back) for states, back in readings if states[-1] != (question.target,)}
        if not readings or not step.is_true():
            return TraceCheck(habit=None, false_step=True, sound=False)
    at_target = {back for states, back in readings if states[-1] == (question.target,)} if not missed else set()
    went_back = min(at_target or {back for _, back in readings})
    return TraceCheck(Habit.SEARCH if went_back else Habit.DIRECT, false_step=False, sound=bool(at_target))


def _hash(*parts: object) -> int:
    return embedded.hashed("countdown", *map(str, parts))


def _shown(numbers: State, target: int) -> Question:
    """The question of a problem: its numbers in an order that its hash draws."""
    order = sorted(range(len(numbers)), key=lambda place: _hash("order", numbers, target, place))
    return Question(tuple(numbers[place] for place in order), target)


def _key(question: Question) -> tuple[State, int]:
    return tuple(sorted(question.numbers)), question.target


def split_of(question: Question) -> Split:
    """The split of a question, the same on every machine and for every order of its numbers."""
    return embedded.split_of(_hash("split", *_key(question)))


@cache
def _counted() -> dict[Question, float]:
    """Every question with the share of the ways to take the steps that end at its target."""
    found = {}
    for numbers in combinations_with_replacement(range(1, LARGEST + 1), SIZE):
        ways = endings(numbers)
        for target in TARGETS:
            if ways[target]:
                found[_shown(numbers, target)] = ways[target] / ways.total()
    return found


@cache
def _by_split() -> dict[str, tuple[Question, ...]]:
    members: dict[str, list[Question]] = {split: [] for split in embedded.SPLITS}
    for question in sorted(_counted(), key=lambda q: _hash("place", *_key(q))):
        members[split_of(question)].append(question)
    return {split: tuple(found) for split, found in members.items()}


def questions(split: Split) -> tuple[Question, ...]:
    """All questions of a split, in the order of their hashes, so that any first ``n`` are a fair sample."""
    return _by_split()[split]


def _problem(family: str, index: int, question: Question) -> Problem:
    return Problem(f"countdown/{family}/{index}", str(question), expression(solution(question)))


def problems(split: Split) -> list[Problem]:
    """The problems of a split, in the order of :func:`questions`; ids are like ``countdown/test/17``."""
    return [_problem(split, index, question) for index, question in enumerate(questions(split))]


def longer(n: int) -> list[Problem]:
    """``n`` problems with four numbers, a size that nothing trains on; always the same ones."""
    found: dict[Question, None] = {}
    for index in range(4 * n):
        drawn = [_hash("number", index, place) % LARGEST + 1 for place in range(SIZE + 1)]
        reached = sorted(target for target in endings(tuple(sorted(drawn))) if target in TARGETS)
        if reached:
            found[_shown(tuple(sorted(drawn)), reached[_hash("target", index) % len(reached)])] = None
        if len(found) == n:
            break
    return [_problem("longer", index, question) for index, question in enumerate(found)]


@cache
def chance() -> float:
    """The accuracy of taking the steps at random, a mean over all questions."""
    shares = _counted().values()
    return sum(shares) / len(shares)
