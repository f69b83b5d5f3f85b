"""Verifiers with code of others, in worker processes: reasoning-gym's scorers, and a user's function."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from covrl.errors import UserError
from covrl.extras import install_command
from covrl.plugins import load_named
from covrl.records import Problem
from covrl.rewards.extract import DEFAULT_ORDER, extract_answer
from covrl.rewards.judgement import Judgement, judgement, nothing
from covrl.rewards.names import GROUP
from covrl.rewards.workers import Reply, Workers


def _count() -> int:
    return min(2, os.cpu_count() or 1)


class GymVerifier:
    """reasoning-gym's own scorer of the problem's task: right for the full score, wrong for less.

    ``problem.accepted`` holds the task's whole entry as JSON text: ``json.dumps(dataset[i])``, whose
    ``metadata.source_dataset`` names the scorer. Other accepted answers are ignored.

    Raises:
        UserError: the extra ``reasoning-gym`` is not installed.
    """

    def __init__(self, time_limit_s: float = 5.0, order: Sequence[str] = DEFAULT_ORDER) -> None:
        if find_spec("reasoning_gym") is None:
            raise UserError(f"the verifier reasoning-gym is not installed: {install_command('reasoning-gym')}")
        self.order = tuple(order)
        self.workers = Workers(_count(), time_limit_s, "covrl.rewards.gym_worker", what="reasoning-gym")

    def __call__(self, problem: Problem, response: str) -> Judgement:
        return self.judge_all([(problem, response)])[0]

    def judge_all(self, rows: Sequence[tuple[Problem, str]]) -> list[Judgement]:
        """One judgement a row, in order."""
        found = [extract_answer(response, self.order) for _, response in rows]
        entries = [_entry(problem) for problem, _ in rows]
        asked = {
            row: [entry, answer.text]
            for row, (entry, answer) in enumerate(zip(entries, found, strict=True))
            if answer is not None and entry is not None
        }
        replies = dict(zip(asked, self.workers.ask(list(asked.values()), lambda q: len(q[1])), strict=True))
        none = Reply("unknown", "the problem has no reasoning-gym entry")
        return [
            nothing(self.order) if answer is None else judgement(answer, replies.get(row, none))
            for row, answer in enumerate(found)
        ]

    def close(self) -> None:
        """End the worker processes."""
        self.workers.close()


def _entry(problem: Problem) -> Mapping[str, Any] | None:
    for text in problem.accepted:
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            continue
        metadata = entry.get("metadata") if isinstance(entry, dict) else None
        if isinstance(metadata, dict) and isinstance(metadata.get("source_dataset"), str):
            return entry
    return None


class UserVerifier:
    """A user's function ``(problem, response) -> verdict``, called in a worker process.

    It returns ``"right"``, ``"wrong"`` or ``"unknown"``, or True or False, or a pair of one of these and a reason. An
    exception makes the row unknown, with the exception's name; any other result is an error of the user.

    Raises:
        UserError: the name cannot be imported, or is no function.
    """

    def __init__(self, name: str, time_limit_s: float = 5.0) -> None:
        found = load_named(name, GROUP, "--verifier" if ":" in name else "verifier", "verifier")
        if not callable(found):
            kind = type(found).__name__
            raise UserError(f"verifier {name!r} is of type {kind}, not a function (problem, response) -> verdict")
        self.workers = Workers(_count(), time_limit_s, "covrl.rewards.user_worker", (name,), what=name)

    def __call__(self, problem: Problem, response: str) -> Judgement:
        return self.judge_all([(problem, response)])[0]

    def judge_all(self, rows: Sequence[tuple[Problem, str]]) -> list[Judgement]:
        """One judgement a row, in order."""
        questions = [[asdict(problem), response] for problem, response in rows]
        replies = self.workers.ask(questions, lambda q: len(q[1]))
        return [Judgement(reply.verdict, None, reply.why) for reply in replies]

    def close(self) -> None:
        """End the worker processes."""
        self.workers.close()
