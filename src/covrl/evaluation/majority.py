"""Whether the most frequent answer of a problem's samples is right.

Sampling at temperature 1 understates a model whose answers are wide but right in the mode, as log-prob rewards leave
them (arXiv 2602.03979, CONFIRMED in its text: on MATH 44 % sampled and 57 % greedy, where RL has 55 and 56 %).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from covrl.evaluation.accuracy import Graded
from covrl.evaluation.answer_clusters import Said, classes
from covrl.records import Grader
from covrl.rewards.normalise import spelling


def majority_marks(rows: Sequence[Sequence[Graded]], verifier: str, grade: Grader | None) -> str:
    """A mark a problem: ``1`` where its right answers outnumber each other answer of its samples, else ``0``.

    A tie is not right, and a sample without an answer has no vote. :mod:`covrl.evaluation.answer_clusters` says which
    answers are equal.
    """
    said = [(row[0].problem, [Said(spelling(g.answer), g.answer, g.verdict) for g in row]) for row in rows]
    names = classes(said, verifier, grade)
    return "".join(str(int(_leads(row, own))) for row, own in zip(rows, names, strict=True))


def _leads(row: Sequence[Graded], names: Sequence[str | None]) -> bool:
    right = sum(graded.verdict == "right" for graded in row)
    votes = Counter(n for graded, n in zip(row, names, strict=True) if n is not None and graded.verdict != "right")
    return right > max(votes.values(), default=0)
