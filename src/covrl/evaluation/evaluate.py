"""One model, one set of problems, the prior prompt only, nothing kept: for `covrl compare`. And files of traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluation, Evaluator
from covrl.evaluation.exam import Solved
from covrl.generation.base import Draw
from covrl.records import Problem
from covrl.statistics import avg_at_n, bootstrap_intervals, pass_at_k, powers_of_two


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Greedy traces and ``n`` sampled ones of each problem.

    An answer without a verdict counts as not right; the share of these is ``unknown``.
    """

    greedy: Evaluation
    sampled: tuple[Evaluation, ...]

    def record(self) -> dict[str, Any]:
        """The figures as they are printed.

        ``avg@n`` is the mean accuracy over all samples, ``pass@k`` (k = 1, 2, 4, … ≤ n) the unbiased estimate from
        them. ``intervals`` holds the 95 % intervals over problems (a bootstrap) of these and of ``greedy``.
        """
        samples = [g for e in self.sampled for g in e.graded]
        everything = [*self.greedy.graded, *samples]
        columns = self.columns()
        figures: dict[str, Any] = {"problems": len(self.greedy.graded), "greedy": self.greedy.accuracy}
        if samples:
            figures |= {"n": len(self.sampled), "avg@n": avg_at_n(self._right(), len(self.sampled))}
            figures |= {k: fmean(column) for k, column in columns.items() if k.startswith("pass@")}
        figures["unknown"] = sum(g.verdict == "unknown" for g in everything) / len(everything)
        figures["truncated"] = sum(g.rollout.finish == "length" for g in everything) / len(everything)
        figures["no_closing_tag"] = sum(not g.rollout.valid for g in everything) / len(everything)
        figures["trace_tokens"] = sum(len(g.rollout.trace_ids) for g in everything) / len(everything)
        if self.greedy.sound is not None:
            figures["sound"] = self.greedy.sound
            if samples:
                figures["sound_sampled"] = fmean(e.sound or 0.0 for e in self.sampled)
        return figures | {"intervals": {name: list(ends) for name, ends in bootstrap_intervals(columns).items()}}

    def _right(self) -> list[int]:
        """How many of its samples are right, for each problem."""
        rows = zip(*(e.graded for e in self.sampled), strict=True)
        return [sum(g.verdict == "right" for g in row) for row in rows]

    def columns(self) -> dict[str, list[float]]:
        """The figures whose mean over problems is reported, problem by problem."""
        columns = {"greedy": [float(g.verdict == "right") for g in self.greedy.graded]}
        n = len(self.sampled)
        if n:
            right = self._right()
            columns["avg@n"] = [c / n for c in right]
            columns |= {f"pass@{k}": [pass_at_k(n, c, k) for c in right] for k in powers_of_two(n)}
        return columns


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
