"""Verifiers for held-out answers, by name."""

from __future__ import annotations

from covrl.records import Grader
from covrl.rewards.judgement import judge_all
from covrl.rewards.registry import make_verifier

AS_IT_IS = ("none",)
"""The text between the answer tags is the answer, with at most a box around it."""


def make_grader(name: str) -> Grader | None:
    """The verifier of that name as a grader; ``none`` is no grader. Its workers, if any, run until the process ends.

    Raises:
        UserError: there is no verifier of that name.
    """
    if name == "none":
        return None
    verifier = make_verifier(name, AS_IT_IS)
    return lambda rows: [judged.verdict for judged in judge_all(verifier, rows)]
