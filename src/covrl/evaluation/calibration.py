"""`covrl calibrate`: before training, does the likelihood reward distinguish right traces from wrong ones?

Likelihood methods reward a trace by log p(y|x,z). So traces are sampled under the prior prompt, each gets the reward
that the method would give it (its own form, its floor), and each is marked right or wrong by its own text: by the
task's check of the derivation if the task has one, else by its stated conclusion (:func:`conclusion`), which the
verifier grades. The mark uses neither the model's answer after the trace nor p(y|x,z): reward and mark have only the
trace in common.

The decision uses the AUC *within* questions: of two traces of one question, one right and one wrong, how often the
right one has the larger reward. That is the comparison that a group's advantages make. The AUC over all traces also
depends on some questions being easier, which does not affect advantages.

For comparison the model's answer after the same trace is sampled and graded. **That comparison is circular**: the
answer is drawn from the same p(.|x,z) that is scored, so for references with one spelling its calibration error is near
0 and its AUC high, however good the traces are. It detects only references in a wording that the model would not
choose, while the verifier accepts the model's own wording.

For methods that sample posterior traces too, their gain over the prior's is measured (:mod:`.posterior_gain`).
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from torch import Tensor

from covrl.evaluation.accuracy import Evaluator, Graded
from covrl.evaluation.likelihood import answer_scores
from covrl.evaluation.posterior_gain import PosteriorGain, Worth, draw_roles, posterior_gain
from covrl.generation.base import Draw, Sampling, rest
from covrl.models.model import LanguageModel
from covrl.records import SOUND, Problem, Verdict
from covrl.rewards.extract import find_answer
from covrl.rewards.likelihood import Form, answer_reward
from covrl.statistics import Interval, quantile, wilson

BINS = 10
FEWEST_QUESTIONS = 20
"""Questions with both outcomes below which nothing is concluded."""

TRUSTED, DOUBTED = 0.75, 0.6
"""Our choice, not a published one: the likelihood can be trusted if the AUC within questions is above the first
with 95 % confidence, and cannot if it is below the second with 95 % confidence. 0.5 is chance."""


POSTERIOR_TRACES = 2
"""Posterior traces a problem, for the posterior gain alone: a quarter of the 8 prior ones that are the default."""

CONCLUSION_CHARS = 200
"""A longer text does not count as a conclusion: it is a sentence, which verifiers of answers cannot grade."""

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


@dataclass(frozen=True, slots=True)
class Marked:
    """One closed trace.

    ``log_prob`` are the nats of the reference answer, ``tokens`` its tokens, ``reward`` what a method would give it;
    ``verdict`` is on the sampled answer, ``own`` on the trace's own text.
    """

    problem: str
    log_prob: float
    tokens: int
    verdict: Verdict
    reward: float
    own: Verdict

    @property
    def right(self) -> bool:
        return self.own == "right"


def conclusion(trace: str) -> str | None:
    r"""The answer that a trace states: its last ``\boxed{}``, ``<answer>``, ``####`` or "answer is", else what
    follows the last equals sign of its last line with one, else its last number; None if it has none of these.
    """
    found = find_answer(trace)
    if found is None:
        lines = [line for line in trace.splitlines() if "=" in line]
        last = lines[-1].rpartition("=")[2].strip(" .$") if lines else ""
        numbers = _NUMBER.findall(trace)
        text = last or (numbers[-1] if numbers else "")
    else:
        text = found.text
    return text if 0 < len(text) <= CONCLUSION_CHARS else None


def mark(
    evaluator: Evaluator, model: LanguageModel, problems: Sequence[Problem], samples: int, temperature: float,
    seed: int, rows_per_pass: int = 256, form: Form = "sum",
) -> tuple[list[Marked], int]:  # fmt: skip
    """``samples`` prior traces a problem, scored and marked; and how many traces there were, unclosed ones included."""
    found: list[Marked] = []
    together = max(evaluator.world.size * rows_per_pass // samples, 1)
    for start in range(0, len(problems), together):
        asked = [(p, i) for p in problems[start : start + together] for i in range(samples)]
        graded = evaluator.examine(asked, temperature, Draw(seed, 0, "calibrate"))
        rest(evaluator.generator)
        scores = answer_scores(
            model, evaluator.prompts, [(g.problem, g.rollout) for g in graded], world=evaluator.world
        )
        found += marked(graded, scores, own_verdicts(evaluator, graded), form)
    return found, samples * len(problems)


def marked(
    graded: Sequence[Graded], scores: Sequence[Tensor | None], own: Sequence[Verdict], form: Form
) -> list[Marked]:
    """Those of the traces that an answer follows, from its log-probs ``[A]`` and the verdict on each trace's text."""
    return [
        Marked(g.problem.id, float(s.sum()), len(s), g.verdict, answer_reward(s, form), mine)
        for g, s, mine in zip(graded, scores, own, strict=True)
        if s is not None
    ]


def gain_beside(
    evaluator: Evaluator, model: LanguageModel, problems: Sequence[Problem], samples: int, temperature: float,
    seed: int, rows_per_pass: int, marked: Sequence[Marked],
) -> PosteriorGain:  # fmt: skip
    """The posterior gain of the model: the ``samples`` prior traces a problem that were ``marked``, and posterior ones.

    Of the latter :data:`POSTERIOR_TRACES` a problem are sampled here.
    """
    prompts = evaluator.prompts
    sampling = Sampling(evaluator.max_trace_tokens, prompts.config.close, temperature)
    drawn = draw_roles(
        evaluator.generator, model, prompts, problems, sampling, POSTERIOR_TRACES, seed, ("posterior",),
        evaluator.world.size * rows_per_pass, world=evaluator.world,
    )  # fmt: skip
    closed = Counter(m.problem for m in marked)
    prior = [Worth(m.problem, "prior", m.log_prob) for m in marked]
    prior += [Worth(p.id, "prior", None) for p in problems for _ in range(samples - closed[p.id])]
    return posterior_gain([*prior, *(d.worth for d in drawn)], seed)


def own_verdicts(evaluator: Evaluator, graded: Sequence[Graded]) -> list[Verdict]:
    """The verdict on each trace by its own text."""
    if evaluator.label is not None:
        return ["right" if g.label == SOUND else "wrong" for g in graded]
    close = evaluator.prompts.config.close
    said = [conclusion(g.rollout.text.removesuffix(close)) for g in graded]
    rows = [(g.problem, text) for g, text in zip(graded, said, strict=True) if text is not None]
    verdicts = iter(evaluator.verdicts(rows))
    return ["unknown" if text is None else next(verdicts) for text in said]


def calibration(
    marked: Sequence[Marked], traces: int, seed: int = 0, by: str = "conclusion", form: str = "sum"
) -> dict[str, Any]:
    """All figures, as plain data; a figure is None if there are no data for it.

    ``auc_within`` (the mean over questions with both outcomes, with its 95 % interval over questions) and ``auc`` (over
    all traces) compare the reward with the traces' own statements, ``auc_within_log_prob`` is of the sum without
    floor. ``reliability`` has p(y|x,z) against the same mark. ``sampled`` holds the same figures against the model's
    sampled answers, which are circular. ``by`` says how traces were marked: "sound" or "conclusion".
    """
    known = [m for m in marked if m.own != "unknown"]
    within = auc_within([(m.problem, m.reward, m.right) for m in known])
    low_high = _interval(within, seed)
    table = reliability([(math.exp(m.log_prob), m.right) for m in known])
    log_within = auc_within([(m.problem, m.log_prob, m.right) for m in known])
    record: dict[str, Any] = {
        "traces": traces,
        "marked_by": by,
        "reward": form,
        "closed": len(marked) / traces,
        "unknown": 1 - len(known) / len(marked) if marked else None,
        "right": fmean(m.right for m in known) if known else None,
        "mean_p": fmean(math.exp(m.log_prob) for m in known) if known else None,
        "auc": auc([(m.reward, m.right) for m in known]),
        "auc_within": fmean(within) if within else None,
        "auc_within_interval": list(low_high) if low_high else None,
        "auc_within_log_prob": fmean(log_within) if log_within else None,
        "questions_with_both": len(within),
        "questions": len({m.problem for m in marked}),
        "reliability": table,
        "by_log_prob": tenths([(m.log_prob, m.right) for m in known]),
        "sampled": _sampled(marked),
    }
    return record | {"sentence": sentence(record)}


def _sampled(marked: Sequence[Marked]) -> dict[str, Any]:
    """The figures against the answers that the model samples after its traces: circular, see above."""
    known = [m for m in marked if m.verdict != "unknown"]
    points = [(math.exp(m.log_prob), m.verdict == "right") for m in known]
    within = auc_within([(m.problem, m.log_prob, m.verdict == "right") for m in known])
    table = reliability(points)
    return {
        "right": fmean(right for _, right in points) if points else None,
        "unknown": 1 - len(known) / len(marked) if marked else None,
        "auc_within": fmean(within) if within else None,
        "ece": sum(b["count"] * abs(b["p"] - b["right"]) for b in table) / len(points) if points else None,
        "brier": fmean((p - right) ** 2 for p, right in points) if points else None,
    }


def auc(scored: Sequence[tuple[float, bool]]) -> float | None:
    """How often a right one has a greater score than a wrong one, ties counting half; None without both kinds."""
    right = [score for score, is_right in scored if is_right]
    wrong = sorted(score for score, is_right in scored if not is_right)
    if not right or not wrong:
        return None
    below = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right)
    return below / (2 * len(right) * len(wrong))


def auc_within(rows: Sequence[tuple[str, float, bool]]) -> list[float]:
    """The AUC of each question that has right and wrong traces; rows are (question, score, right)."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for problem, score, right in rows:
        found.setdefault(problem, []).append((score, right))
    return [value for row in found.values() if (value := auc(row)) is not None]


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
    return {"p": fmean(p for p, _ in row), "right": share, "count": len(row), "interval": wilson(share, len(row))}


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
            f"Undecided: only {count} of {record['questions']} questions have both right and wrong traces, and "
            f"at least {FEWEST_QUESTIONS} are needed; take more problems, more samples (-n), or problems that this "
            "model solves now and then."
        )
    low, high = record["auc_within_interval"]
    measured = (
        f"of a right and a wrong trace of one question, the right one earns more in "
        f"{record['auc_within']:.1%} of cases (95 %: {low:.1%} to {high:.1%}; a coin: 50 %), on {count} questions"
    )
    if low > TRUSTED:
        return f"Likelihood rewards can be trusted here: {measured}."
    if high < DOUBTED:
        return f"Likelihood rewards cannot be trusted here: {measured}; use a verifier, or another base."
    if low > 0.5:
        return f"Likelihood rewards are a weak guide here: {measured}; watch verified accuracy during training."
    return f"Likelihood rewards are not shown to be better than chance here: {measured}."
