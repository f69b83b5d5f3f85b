"""Who grades held-out answers, by name."""

from __future__ import annotations

from covrl.evaluation.accuracy import Grader
from covrl.rewards.verifiers import MathVerifier, exact_text, normalised_text

AS_IT_IS = ("none",)
"""The evaluation reads what stands between the answer tags, so nothing has to be extracted."""


def make_grader(name: str) -> Grader | None:
    """``exact``, ``text`` or ``math``; ``none`` is no grader. Math keeps its workers until the process ends."""
    if name == "none":
        return None
    if name == "math":
        verifier = MathVerifier(AS_IT_IS)
        return lambda rows: [judgement.verdict for judgement in verifier.judge_all(rows)]
    judge = exact_text if name == "exact" else normalised_text
    return lambda rows: [judge(problem, said, AS_IT_IS).verdict for problem, said in rows]
