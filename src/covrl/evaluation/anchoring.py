"""A wrong hint's pull on answers: do traces lead to whatever their prompt showed?

After each trace an answer is sampled from the prior prompt, which shows none. With another problem's answer y′ in the
posterior prompt, in the place of y,

    wrong hint's pull = share of answers that are y′ after traces that were shown y′ − the same share after prior traces
    right hint's pull = share of answers that are y  after traces that were shown y  − the same share after prior traces

Even an exact posterior follows a wrong hint (verified by enumeration), so a pull alone is no fault. Traces that lead to
a wrong answer nearly as often as others lead to the right one defend any answer. After arXiv 2602.14469 (its prompts
CONFIRMED, its numbers from secondary sources) and 2606.11709 (CONFIRMED in its code); this measure and its threshold
are INFERRED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from covrl.evaluation.accuracy import Evaluator, Graded
from covrl.generation.base import Draw
from covrl.records import Grader, Problem, Rollout
from covrl.rewards.normalise import spelling
from covrl.statistics import bootstrap_intervals

DEFENDS = 0.8
"""A wrong hint's pull, as a share of the right one's, above which traces defend any answer (INFERRED)."""


class Said(NamedTuple):
    """What the answer after one trace is: the problem's own, or the wrong one that the shuffled prompt shows."""

    own: bool
    foil: bool


def answers_said(
    answering: Evaluator, asked: Sequence[tuple[Problem, str]], traces: Sequence[Rollout], temperature: float, seed: int
) -> list[Said | None]:
    """What is answered after each trace, as the evaluator's grader tells it.

    ``asked`` has each trace's problem and its wrong answer. None where the two are equal in normal form, and for all
    traces if the evaluator has no grader.
    """
    if answering.grade is None:
        return [None] * len(traces)
    replies = answering.answered([p for p, _ in asked], traces, temperature, Draw(seed, 0, "anchoring"))
    return said_in_replies(answering.verdicts, asked, replies)


def said_in_replies(
    grade: Grader, asked: Sequence[tuple[Problem, str]], replies: Sequence[Graded]
) -> list[Said | None]:
    """The same of answers that there are already, one to each of ``asked``."""
    wrong = [(replace(p, answer=foil, accepted=()), g.answer) for (p, foil), g in zip(asked, replies, strict=True)]
    are_foils = (verdict == "right" for verdict in grade(wrong))
    return [
        None if _equal(p, foil) else Said(graded.verdict == "right", graded.reply is not None and is_foil)
        for (p, foil), graded, is_foil in zip(asked, replies, are_foils, strict=True)
    ]


def _equal(problem: Problem, foil: str) -> bool:
    return spelling(foil) in {spelling(text) for text in (problem.answer, *problem.accepted)}


def anchoring(said: Mapping[str, Mapping[str, Sequence[Said]]]) -> dict[str, Any]:
    """The pulls as means over problems, with 95 % intervals; ``said[problem][source]`` are the traces' answers.

    ``wrong_hint`` and ``right_hint`` are differences of shares, from −1 to 1.
    """

    def share(found: Sequence[Said], name: str) -> float:
        return fmean(getattr(one, name) for one in found)

    columns = {
        "wrong_hint": [share(row["shuffled"], "foil") - share(row["prior"], "foil") for row in said.values()],
        "right_hint": [share(row["posterior"], "own") - share(row["prior"], "own") for row in said.values()],
    }
    means = {name: fmean(values) for name, values in columns.items()}
    ends = {name: list(interval) for name, interval in bootstrap_intervals(columns).items()}
    found = means | {"problems": len(said), "intervals": ends}
    return found | {"sentence": anchoring_sentence(found)}


def anchoring_sentence(found: Mapping[str, Any]) -> str:
    """What a wrong hint does to answers, as text."""
    wrong, right = found["wrong_hint"], found["right_hint"]
    low, high = found["intervals"]["wrong_hint"]
    pulls = (
        f"A wrong hint pulls {100 * wrong:.1f} points of the answers to itself (95 %: {100 * low:.1f} to "
        f"{100 * high:.1f}), the right one {100 * right:.1f}, on {found['problems']} problems. "
    )
    if right <= 0:
        return f"{pulls}The right hint leads to no more right answers than none."
    if low > 0 and wrong > DEFENDS * right:
        return f"{pulls}The traces defend any answer that they were shown."
    return f"{pulls}The traces follow the right hint further than a wrong one."
