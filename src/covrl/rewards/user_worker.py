"""A user's verifier in a process of its own.

``python -m covrl.rewards.user_worker SECONDS NAME`` is the worker. A question: a problem's fields, a response.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from covrl.plugins import load_named
from covrl.records import Problem, Turn
from covrl.rewards.functions import plain
from covrl.rewards.names import GROUP
from covrl.rewards.workers import Judge, serve

VERDICTS = ("right", "wrong", "unknown")


def load(name: str) -> Judge:
    """The function of that name, with its results checked."""
    function = load_named(name, GROUP, "verifier", "verifier")

    def judge(question: Any) -> Sequence[str]:
        fields: dict[str, Any]
        fields, response = question
        problem = Problem(**fields)
        turns = tuple(Turn(*turn) for turn in problem.turns)
        problem = replace(problem, accepted=tuple(problem.accepted), turns=turns)  # JSON knows lists only
        try:
            given = function(problem, response)
        except Exception as error:
            return ["unknown", f"the verifier raised {type(error).__name__}: {str(error)[:200]}"]
        return checked(given, f"verifier {name}: problem {problem.id}")

    return judge


def checked(given: Any, where: str) -> Sequence[str]:
    """``[verdict, why]`` for the result of a user's function; an error if that is no verdict."""
    verdict, why = given if isinstance(given, tuple) and len(given) == 2 else (given, "by the user's verifier")
    verdict = plain(verdict)  # NumPy has a bool of its own
    if isinstance(verdict, bool):
        verdict = "right" if verdict else "wrong"
    if verdict not in VERDICTS or not isinstance(why, str):
        return ["error", f"{where}: gave {str(given)[:100]}; it must give right, wrong, unknown, True or False"]
    return [verdict, why]


if __name__ == "__main__":
    serve(partial(load, sys.argv[2]), float(sys.argv[1]), memory_bytes=None)
