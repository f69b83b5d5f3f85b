"""`covrl eval`: one model, one set of problems, the prior prompt only; greedy accuracy and avg@n."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covrl.evaluation.accuracy import Evaluation, Evaluator
from covrl.generation.base import Draw
from covrl.records import Problem


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Greedy traces and ``n`` sampled ones of each problem.

    ``avg`` is avg@n, the mean accuracy over all samples; a share without a verdict is in ``unknown``.
    """

    greedy: Evaluation
    sampled: tuple[Evaluation, ...]

    def record(self) -> dict[str, Any]:
        """The figures as they are printed."""
        samples = [g for e in self.sampled for g in e.graded]
        everything = [*self.greedy.graded, *samples]
        figures: dict[str, Any] = {"problems": len(self.greedy.graded), "greedy": self.greedy.accuracy}
        if samples:
            figures |= {"n": len(self.sampled), "avg@n": sum(g.verdict == "right" for g in samples) / len(samples)}
        figures["unknown"] = sum(g.verdict == "unknown" for g in everything) / len(everything)
        figures["truncated"] = sum(g.rollout.finish == "length" for g in everything) / len(everything)
        figures["no_closing_tag"] = sum(not g.rollout.valid for g in everything) / len(everything)
        figures["trace_tokens"] = sum(len(g.rollout.trace_ids) for g in everything) / len(everything)
        return figures if self.greedy.sound is None else figures | {"sound": self.greedy.sound}


def evaluate(
    evaluator: Evaluator, problems: Sequence[Problem], n: int, temperature: float, seed: int
) -> EvaluationReport:
    """Greedy once, then ``n`` samples a problem, each with draws of its own."""
    greedy = evaluator(problems, 0.0, Draw(seed, 0))
    sampled = [evaluator(problems, temperature, replace(Draw(seed, 0), step=i + 1)) for i in range(n)]
    return EvaluationReport(greedy, tuple(sampled))


def write_traces(path: Path, report: EvaluationReport) -> None:
    """Every trace and answer as JSON lines: problem, kind (greedy or the sample's number), text, answer, verdict."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for kind, evaluation in [("greedy", report.greedy), *((str(i), e) for i, e in enumerate(report.sampled))]:
            for g in evaluation.graded:
                row = {"problem": g.problem.id, "kind": kind, "trace": g.rollout.text, "said": g.answer}
                row |= {"answer": g.problem.answer, "verdict": g.verdict, "finish": g.rollout.finish}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
