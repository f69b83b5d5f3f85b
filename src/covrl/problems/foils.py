"""Foils: for each problem a wrong answer that looks like a right one, to be shown in a prompt's place of the answer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from covrl.errors import UserError
from covrl.records import Problem
from covrl.rewards.normalise import is_words, normalise, plain_number, spelling


def with_foils(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """Each problem with its ``foil``, from :func:`foils`.

    Raises:
        UserError: a problem has none; names it.
    """
    found = foils(problems, seed)
    for problem, foil in zip(problems, found, strict=True):
        if foil is None:
            raise UserError(
                f"problem {problem.id}: no other problem has another answer, so there is none to show as a wrong hint; "
                "set algorithm.contrast = 0, or train on problems whose answers differ"
            )
    return [replace(problem, foil=foil) for problem, foil in zip(problems, found, strict=True)]


def foils(problems: Sequence[Problem], seed: int = 0) -> list[str | None]:
    """Each problem's own foil, else another's answer that is wrong here; None where there is none.

    It is of the same form (number, words, formula) where there is one, then nearest in length, then drawn by ``seed``
    and id. It differs from the answer, the hint and all accepted answers in value
    (:func:`covrl.rewards.normalise.spelling`), so that another spelling of the right answer is no foil.
    """
    pool = _Pool([p.answer for p in problems])
    return [p.foil if p.foil is not None else pool.unlike(p, seed) for p in problems]


class _Pool:
    """Answers that differ in value, by form and length in characters."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.by_form: dict[str, dict[int, list[tuple[str | None, str]]]] = {}
        distinct: dict[str | None, str] = {}
        for answer in answers:
            distinct.setdefault(spelling(answer), answer)
        for found, answer in distinct.items():
            self.by_form.setdefault(_form(answer), {}).setdefault(len(answer), []).append((found, answer))

    def unlike(self, problem: Problem, seed: int) -> str | None:
        """An answer that is none of the problem's own; None where there is no other."""
        own = {spelling(answer) for answer in (problem.answer, problem.shown, *problem.accepted)}
        draw = random.Random(f"foil/{seed}/{problem.id}")
        for alike in self._nearest(problem.answer):
            start = draw.randrange(len(alike))
            for found, answer in (*alike[start:], *alike[:start]):
                if found not in own:
                    return answer
        return None

    def _nearest(self, answer: str) -> Iterator[list[tuple[str | None, str]]]:
        """Answers of one length at a time: those of the same form first, and of these the nearest length."""
        form = _form(answer)
        for other in sorted(self.by_form, key=lambda name: (name != form, name)):
            lengths = self.by_form[other]
            for length in sorted(lengths, key=lambda length: (abs(length - len(answer)), length)):
                yield lengths[length]


def _form(answer: str) -> str:
    text = normalise(answer)
    if plain_number(text) is not None:
        return "number"
    return "words" if is_words(text) else "formula"
