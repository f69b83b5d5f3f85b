"""reasoning-gym's scorers in a process of their own; some of them evaluate code in the answer.

``python -m covrl.rewards.gym_worker`` is the worker. A question is ``[entry, answer]``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from covrl.rewards.workers import Judge, serve


def _load() -> Judge:
    scorer = lru_cache(maxsize=256)(import_module("reasoning_gym").get_score_answer_fn)  # an extra

    def judge(question: Any) -> Sequence[str]:
        entry, answer = question
        task = entry["metadata"]["source_dataset"]
        try:
            score_answer: Any = scorer(task)
        except Exception as error:  # not registered: ValueError, today
            return ["unknown", f"no scorer: {task[:100]}: {type(error).__name__}"]
        try:
            score = float(score_answer(answer, entry))
        except Exception as error:
            return ["unknown", f"the scorer failed: {type(error).__name__}"]
        if not math.isfinite(score):
            return ["unknown", "the score is no number"]
        return ["right" if score >= 1.0 else "wrong", f"score of reasoning-gym: {score:g}"]

    return judge


if __name__ == "__main__":
    serve(_load, float(sys.argv[1]))
