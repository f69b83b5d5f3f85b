"""Who grades held-out answers, by name."""

from __future__ import annotations

from covrl.evaluation.accuracy import Grader, exact_text


def make_grader(name: str) -> Grader | None:
    """``none``, ``exact`` or ``text``; the evaluation reads the answer between its tags, so nothing is extracted."""
    return None if name == "none" else exact_text
