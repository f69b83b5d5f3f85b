"""The reward function of the old grpo run, which names it as ``old_run_rewards:digits``."""

from __future__ import annotations

from typing import Any


def digits(problem: Any, text: str) -> float:
    """The share of digits in a response, at least two different values in nearly every group."""
    del problem
    return sum(c.isdigit() for c in text) / max(len(text), 1)
