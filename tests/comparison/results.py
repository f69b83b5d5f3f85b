"""Made-up results for tests of tables and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from covrl.comparison.cells import COUNTING, Budget, Cell, Exam, Result

BUDGET, EXAM = Budget("steps", 20), Exam("test", 8)


def cell(method: str = "covrl", seed: int = 0, setting: str = "rare", rate: float = 1e-4) -> Cell:
    return Cell(method, setting, rate, seed, BUDGET, EXAM)


def result(
    of: Cell, greedy: float, commit: str = "abc", tokens: Sequence[float] = (0, 100, 200), **more: Any
) -> Result:
    """``tokens`` are those generated up to each evaluation; twice as many are scored, and as many trained."""
    exam = {"problems": 50, "greedy": greedy, "n": 8, "avg@n": greedy - 0.05, "pass@1": greedy - 0.05}
    exam |= {"pass@2": greedy, "pass@4": greedy, "pass@8": greedy + 0.05, "sound": 0.1, "sound_sampled": 0.2}
    exam["intervals"] = {"greedy": [greedy - 0.01, greedy + 0.02]}
    curve = [
        {"step": 10 * i, "generated": t, "scored": 2.0 * t, "trained": t, "accuracy": greedy * i / 2, "sound": None}
        for i, t in enumerate(tokens)
    ]
    figures = {
        "counting": COUNTING,
        "chance": 1 / 21,
        "steps": 20,
        "updates": 20,
        "stopped": None,
        "exam": exam,
        "curve": curve,
        "tokens": {name: curve[-1][name] for name in ("generated", "scored", "trained")},
        "seconds": {"generate": 10.0, "score": 20.0, "train": 70.0},
    }
    return Result(of, commit, figures | more)
