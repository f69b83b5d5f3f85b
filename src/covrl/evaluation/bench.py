"""Prior traces of a base, and what thinking is worth to it: the first part of a pre-flight.

    greedy difference = accuracy of greedy answers after greedy thoughts − after an empty thought     share, paired
    gain              = mean over problems of [ mean_z log p(y|x,z) − log p(y|x,∅) ]                    nats

An empty thought may be off the base's distribution before it knows the format, which makes the gain too large
(2602.03979 reports the opposite sign on long answers); so both figures are shown. Source: ``answer_in_sight.md``
sections 2.1 and 4.1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from covrl.evaluation.accuracy import Evaluator, Graded
from covrl.evaluation.anchoring import Said, said_in_replies
from covrl.evaluation.calibration import own_verdicts
from covrl.evaluation.posterior_gain import over_problems
from covrl.evaluation.styles import means_by_problem
from covrl.evaluation.trace_monitors import length_metrics
from covrl.generation.base import Draw
from covrl.models.model import LanguageModel
from covrl.records import Credit, Grader, Output, Problem, Request, Rollout, ScoredGroup, Scores, Verdict
from covrl.rewards.likelihood import answer_reward
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, PassLimits, Reading, score
from covrl.statistics import wilson

ANSWER, EMPTY = Output("answer", "prior"), Output("direct", "direct")

TRAINING_READS = 4
"""Readings that a trace costs a step: one to score it, and training as three (forward, backward twice as dear)."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What everything is measured with: ``problems``, ``traces`` a problem and prompt, their ``temperature``."""

    evaluator: Evaluator
    grade: Grader
    model: LanguageModel
    problems: tuple[Problem, ...]
    traces: int
    temperature: float
    seed: int
    rows: int
    limits: PassLimits

    def read(
        self, contexts: Sequence[Context], readings: Sequence[Reading], pairs: Sequence[tuple[Problem, Rollout]]
    ) -> list[Scores]:
        """Scores by the model that is measured."""
        return score({"policy": self.model}, contexts, readings, pairs, self.limits.tokens, self.limits.logits_bytes)

    @property
    def together(self) -> int:
        """How many problems' traces are sampled at a time."""
        return max(self.rows // self.traces, 1)


@dataclass(frozen=True, slots=True)
class Thoughts:
    """Prior traces, ``Bench.traces`` of each problem in order, with what was answered after them.

    ``scores`` have :data:`ANSWER` where a trace closed, ``own`` is the verdict on each trace's text, ``said`` what its
    answer is. ``greedy`` and ``direct`` are the greedy answers after greedy and after empty thoughts, one a problem,
    ``empty`` the log-probs ``[A]`` of its answer after an empty thought. ``sampling_s`` and ``reading_s`` are seconds
    of sampling ``sampled`` tokens (with their answers) and of reading ``read`` tokens.
    """

    graded: tuple[Graded, ...]
    scores: tuple[Scores, ...]
    own: tuple[Verdict, ...]
    said: tuple[Said | None, ...]
    greedy: tuple[Graded, ...]
    direct: tuple[Graded, ...]
    empty: tuple[Tensor, ...]
    sampled: int
    sampling_s: float
    read: int
    reading_s: float

    def rewards(self) -> list[tuple[str, float]]:
        """Problem and floored log p(y|x,z) in nats of each closed trace."""
        return [
            (g.problem.id, answer_reward(s[ANSWER], "sum"))
            for g, s in zip(self.graded, self.scores, strict=True)
            if ANSWER in s
        ]


def think(bench: Bench, foils: Sequence[str | None]) -> Thoughts:
    """Sample, answer, grade and score prior traces; ``foils`` are the problems' wrong answers, which answers may be."""
    evaluator, graded, start = bench.evaluator, [], time.perf_counter()
    for at in range(0, len(bench.problems), bench.together):
        asked = [(p, i) for p in bench.problems[at : at + bench.together] for i in range(bench.traces)]
        graded += evaluator.examine(asked, bench.temperature, Draw(bench.seed, 0, "preflight"))
    sampling = time.perf_counter() - start
    greedy = evaluator.examine([(p, 0) for p in bench.problems], 0.0, Draw(bench.seed, 0, "preflight"))
    draw = Draw(bench.seed, 1, "preflight")
    direct = evaluator.answered(bench.problems, [_no_thought(bench, p) for p in bench.problems], 0.0, draw)
    pairs = [(g.problem, g.rollout) for g in graded]
    start = time.perf_counter()
    scores = _read(bench, Context("prior", evaluator.prompts.prior_row), ANSWER, pairs)
    seconds = time.perf_counter() - start
    empty = _read(bench, Context("direct", evaluator.prompts.direct_row), EMPTY, pairs[:: bench.traces])
    wrong = [(g.problem, foils[i // bench.traces] or "") for i, g in enumerate(graded)]
    return Thoughts(
        tuple(graded), tuple(scores), tuple(own_verdicts(evaluator, graded)),
        tuple(said_in_replies(bench.grade, wrong, graded)), tuple(greedy), tuple(direct),
        tuple(s[EMPTY] for s in empty), sum(len(g.rollout.trace_ids) for g in graded), sampling,
        sum(s.tokens for s in scores), seconds,
    )  # fmt: skip


def _read(bench: Bench, context: Context, output: Output, pairs: Sequence[tuple[Problem, Rollout]]) -> list[Scores]:
    """The log-probs of one span under one context."""
    return bench.read((context,), (Reading(output.span, (context.name,), log_prob, (output.name,)),), pairs)


def _no_thought(bench: Bench, problem: Problem) -> Rollout:
    """A thought that is closed before it begins."""
    close = bench.evaluator.prompts.config.close
    request = Request(problem.id, 0, bench.evaluator.prompts.prior(problem), "prior")
    return Rollout(request, (), (), "closed", "appended", close)


def thinking_record(bench: Bench, thoughts: Thoughts) -> dict[str, Any]:
    """Thinking against not thinking, as plain data; shares, nats and tokens."""
    closed = sum(g.rollout.valid for g in thoughts.graded) / len(thoughts.graded)
    after = [float(g.verdict == "right") for g in thoughts.greedy]
    without = [float(g.verdict == "right") for g in thoughts.direct]
    means = means_by_problem(thoughts.rewards())
    empty = {p.id: answer_reward(e, "sum") for p, e in zip(bench.problems, thoughts.empty, strict=True)}
    gains = [value - empty[name] for name, value in means.items()]
    return {
        "closed": {"value": closed, "interval": list(wilson(closed, len(thoughts.graded)))},
        "with": fmean(after),
        "without": fmean(without),
        "difference": measured([a - b for a, b in zip(after, without, strict=True)]),
        "gain": measured(gains) if gains else None,
        "tokens": fmean(len(g.rollout.trace_ids) for g in thoughts.graded),
        "answer_tokens": fmean(len(e) for e in thoughts.empty),
        "lengths": length_metrics(*_groups(bench, thoughts)),
    }


def _groups(bench: Bench, thoughts: Thoughts) -> tuple[list[ScoredGroup], list[list[Credit]]]:
    groups, credits = [], []
    for i in range(0, len(thoughts.graded), bench.traces):
        rows, scores = thoughts.graded[i : i + bench.traces], thoughts.scores[i : i + bench.traces]
        groups.append(ScoredGroup(rows[0].problem, tuple(g.rollout for g in rows), scores))
        credits.append([Credit(reward=answer_reward(s[ANSWER], "sum") if ANSWER in s else None) for s in scores])
    return groups, credits


def measured(values: Sequence[float]) -> dict[str, Any]:
    """The mean of a figure that each problem has one of, and its 95 % interval (None for fewer than two problems)."""
    ends = over_problems(values)
    return {"value": fmean(values), "interval": list(ends) if ends else None, "problems": len(values)}
