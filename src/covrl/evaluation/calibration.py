"""`covrl calibrate`: before training, does log p(y|x,z) know a right trace from a wrong one?

Likelihood methods are rewarded with log p(y|x,z), a verifier would reward what the model answers behind the same trace.
Here both are measured on prior traces: each trace gets its log-prob of the reference answer, and one answer is sampled
behind it and graded. The probability is the model's own of saying the reference to the letter, so in the reliability
table the share of right answers should lie on it or above (other spellings of the answer are right too). Traces that
are not closed have neither, and answers without a verdict are left out; both shares are reported.

What decides is the AUC *within* questions: of two traces of one question, one right and one wrong, how often the right
one has the greater likelihood. That is the comparison that a group's advantages make. The AUC over all traces also
counts that some questions are easier, which no advantage sees.

What this cannot show: both sides come from one model, so it finds traces that make no difference to the answer, and
references whose wording the model would not choose (the two ways in which the likelihood fails as a reward), but not
a wrong derivation that ends in the right answer. That is wrong for a verifier too.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from covrl.evaluation.accuracy import Evaluator
from covrl.evaluation.likelihood import answer_log_probs
from covrl.evaluation.statistics import Interval, quantile
from covrl.generation.base import Draw
from covrl.records import Problem, Verdict
from covrl.reporting.summary import interval
from covrl.scoring.model import LanguageModel

BINS = 10
FEWEST_QUESTIONS = 20
"""Questions with both outcomes below which nothing is concluded."""

TRUSTED, DOUBTED = 0.75, 0.6
"""Our choice, not a published one: the likelihood is to be trusted where the AUC within questions is above the first
with 95 %, and not where it is below the second with 95 %. 0.5 is a coin."""


@dataclass(frozen=True, slots=True)
class Marked:
    """One closed trace: nats of the reference answer, its tokens, and the verdict on the sampled answer."""

    problem: str
    log_prob: float
    tokens: int
    verdict: Verdict

    @property
    def right(self) -> bool:
        return self.verdict == "right"


def mark(
    evaluator: Evaluator, model: LanguageModel, problems: Sequence[Problem], samples: int, temperature: float,
    seed: int, rows_per_pass: int = 256,
) -> tuple[list[Marked], int]:  # fmt: skip
    """``samples`` prior traces a problem, scored and graded; and how many traces there were, unclosed ones included."""
    found: list[Marked] = []
    together = max(rows_per_pass // samples, 1)
    for start in range(0, len(problems), together):
        asked = [(p, i) for p in problems[start : start + together] for i in range(samples)]
        graded = evaluator.examine(asked, temperature, Draw(seed, 0, "calibrate"))
        scores = answer_log_probs(model, evaluator.prompts, [(g.problem, g.rollout) for g in graded])
        found += [Marked(g.problem.id, s.total, s.tokens, g.verdict) for g, s in zip(graded, scores, strict=True) if s]
    return found, samples * len(problems)


def calibration(marked: Sequence[Marked], traces: int, seed: int = 0) -> dict[str, Any]:
    """All figures, as plain data; a figure is None where there is nothing to make it of.

    ``auc`` is over all traces with the answer's log-prob summed, ``auc_per_token`` with its mean; ``auc_within`` the
    mean over questions with both outcomes, with its 95 % interval over questions. ``ece`` is the mean distance of the
    reliability table's two columns, ``brier`` the mean square of p − right.
    """
    known = [m for m in marked if m.verdict != "unknown"]
    within = auc_within(known)
    low_high = _interval(within, seed)
    points = [(math.exp(m.log_prob), m.right) for m in known]
    table = reliability(points)
    record: dict[str, Any] = {
        "traces": traces,
        "closed": len(marked) / traces,
        "unknown": 1 - len(known) / len(marked) if marked else None,
        "right": fmean(m.right for m in known) if known else None,
        "mean_p": fmean(p for p, _ in points) if points else None,
        "auc": auc([(m.log_prob, m.right) for m in known]),
        "auc_per_token": auc([(m.log_prob / m.tokens, m.right) for m in known]),
        "auc_within": fmean(within) if within else None,
        "auc_within_interval": list(low_high) if low_high else None,
        "questions_with_both": len(within),
        "questions": len({m.problem for m in marked}),
        "ece": sum(b["count"] * abs(b["p"] - b["right"]) for b in table) / len(points) if points else None,
        "brier": fmean((p - right) ** 2 for p, right in points) if points else None,
        "reliability": table,
        "by_log_prob": tenths([(m.log_prob, m.right) for m in known]),
    }
    return record | {"sentence": sentence(record)}


def auc(scored: Sequence[tuple[float, bool]]) -> float | None:
    """How often a right one has a greater score than a wrong one, ties counting half; None without both kinds."""
    right = [score for score, is_right in scored if is_right]
    wrong = sorted(score for score, is_right in scored if not is_right)
    if not right or not wrong:
        return None
    below = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right)
    return below / (2 * len(right) * len(wrong))


def auc_within(marked: Sequence[Marked]) -> list[float]:
    """The AUC of each question that has right and wrong traces."""
    rows: dict[str, list[tuple[float, bool]]] = {}
    for m in marked:
        rows.setdefault(m.problem, []).append((m.log_prob, m.right))
    return [value for row in rows.values() if (value := auc(row)) is not None]


def reliability(points: Sequence[tuple[float, bool]], bins: int = BINS) -> list[dict[str, Any]]:
    """Traces by probability, in ``bins`` of equal width: mean p, share right with its Wilson interval, count."""
    rows: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for p, right in points:
        rows[min(int(p * bins), bins - 1)].append((p, right))
    return [_bin(row) | {"from": i / bins, "to": (i + 1) / bins} for i, row in enumerate(rows) if row]


def tenths(points: Sequence[tuple[float, bool]]) -> list[dict[str, Any]]:
    """Ten parts of equal size by log-prob: for answers that are so long that all probabilities are near 0."""
    ordered = sorted(points)
    edges = [round(i * len(ordered) / BINS) for i in range(BINS + 1)]
    parts = [ordered[a:b] for a, b in pairwise(edges) if b > a]
    return [_bin(part) | {"from": part[0][0], "to": part[-1][0]} for part in parts]


def _bin(row: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    share = fmean(right for _, right in row)
    return {"p": fmean(p for p, _ in row), "right": share, "count": len(row), "interval": interval(share, len(row))}


def _interval(values: Sequence[float], seed: int, resamples: int = 2000) -> Interval | None:
    if not values:
        return None
    rng = random.Random(f"calibration/{seed}")
    means = [fmean(rng.choices(values, k=len(values))) for _ in range(resamples)]
    return Interval(quantile(means, 0.025), quantile(means, 0.975))


def sentence(record: dict[str, Any]) -> str:
    """Whether likelihood rewards can be trusted on this data with this model, in one sentence."""
    count = record["questions_with_both"]
    if count < FEWEST_QUESTIONS:
        return (
            f"Cannot be told: only {count} of {record['questions']} questions have both right and wrong traces, and "
            f"fewer than {FEWEST_QUESTIONS} say nothing; take more problems, more samples (-n), or problems that this "
            "model solves now and then."
        )
    low, high = record["auc_within_interval"]
    measured = (
        f"of a right and a wrong trace of one question, the right one has the greater likelihood in "
        f"{record['auc_within']:.1%} of cases (95 %: {low:.1%} to {high:.1%}; a coin: 50 %), on {count} questions"
    )
    if low > TRUSTED:
        return f"Likelihood rewards can be trusted here: {measured}."
    if high < DOUBTED:
        return f"Likelihood rewards cannot be trusted here: {measured}; use a verifier, or another base."
    if low > 0.5:
        return f"Likelihood rewards are a weak guide here: {measured}; watch verified accuracy during training."
    return f"Likelihood rewards are not shown to be better than chance here: {measured}."
