"""Two rewards of our own small tasks, for a method that weighs several: a right answer, and a response in its form."""

from __future__ import annotations

import re

from covrl.problems import countdown
from covrl.records import Problem
from covrl.rewards.countdown import read_expression

FORM = re.compile(r".+</think><answer>([^<>]+)</answer>", re.DOTALL)


def form(_problem: Problem, text: str) -> float:
    """1 for a thought that is closed, with an answer after it and nothing else; else 0."""
    return float(FORM.fullmatch(text) is not None)


def right(problem: Problem, text: str) -> float:
    """1 for the reference's answer, or on CountDown for an expression that is one; else 0."""
    found = FORM.fullmatch(text)
    if found is None:
        return 0.0
    if not problem.id.startswith("countdown/"):
        return float(found[1] == problem.answer)
    asked = countdown.read_question(problem.question)
    try:
        said = read_expression(found[1])
    except ValueError:
        return 0.0
    return float(said.numbers == tuple(sorted(asked.numbers)) and said.value == asked.target)
