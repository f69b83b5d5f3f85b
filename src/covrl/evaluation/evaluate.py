"""One model, one set of problems, the prior prompt only, nothing kept: for `covrl compare`. And files of traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluation, Evaluator
from covrl.evaluation.exam import Solved, digest, sample_of
from covrl.evaluation.metrics import columns_of, graded_figures
from covrl.generation.base import Draw
from covrl.records import Problem
from covrl.statistics import powers_of_two


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Greedy traces and ``n`` sampled ones of each problem.

    An answer without a verdict counts as not right; the share of these is ``unknown``.
    """

    greedy: Evaluation
    sampled: tuple[Evaluation, ...]

    def record(self) -> dict[str, Any]:
        """The figures as they are printed: those of :func:`covrl.evaluation.metrics.graded_figures`.

        ``avg@n`` is the mean accuracy over all samples, ``pass@k`` (k = 1, 2, 4, … ≤ n) the unbiased estimate from
        them. ``intervals`` holds the 95 % intervals over problems (a bootstrap) of these and of ``greedy``.
        """
        return graded_figures(self.solved(), self.columns())

    def columns(self) -> dict[str, list[float]]:
        """The figures whose mean over problems is reported, problem by problem."""
        return columns_of(self.solved(), powers_of_two(len(self.sampled)), majorities=False)

    def solved(self) -> list[Solved]:
        """The records of its problems; without an exam answers have no normal form."""
        rows = zip(*(e.graded for e in (self.greedy, *self.sampled)), strict=True)
        every = [(row[0].problem, *map(sample_of, row)) for row in rows]
        return [Solved(p.id, p.question, p.answer, digest(p), greedy, tuple(rest)) for p, greedy, *rest in every]


def evaluate(
    evaluator: Evaluator, problems: Sequence[Problem], n: int, temperature: float, seed: int
) -> EvaluationReport:
    """Greedy once, then ``n`` samples a problem side by side, so that its prompt is read once for all of them."""
    greedy = evaluator(problems, 0.0, Draw(seed, 0))
    every = evaluator.examine([(p, i) for p in problems for i in range(n)], temperature, Draw(seed, 1)) if n else []
    return EvaluationReport(greedy, tuple(Evaluation(tuple(every[i::n])) for i in range(n)))


def check_writable(path: Path) -> None:
    """Check before an evaluation that its file of traces can be written.

    Raises:
        UserError: it cannot be written; the message gives the reason.
    """
    there = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path}: cannot write there: {error.strerror}") from None
    if not there:
        path.unlink()


def write_traces(path: Path, solved: Sequence[Solved]) -> None:
    """Every trace and answer as JSON lines: problem, kind (greedy or the sample's number), text, answer, verdict."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in solved:
            for kind, sample in [("greedy", row.greedy), *((str(i), s) for i, s in enumerate(row.samples))]:
                line = {"problem": row.problem, "kind": kind, "trace": sample.trace, "said": sample.said}
                line |= {"answer": row.reference, "verdict": sample.verdict, "finish": sample.finish}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
