"""CISPO: Clipped Importance-Sampling weight Policy Optimization (MiniMax-M1, arXiv 2506.13585).

    loss  = Σ over tokens of  −sg(min(ρ, 1+ε_high))·A·log π_new / number of tokens

The weight is clipped, not the gradient: every token keeps one, those whose ratio left the clip too. Evidence: general
knowledge of the paper, not checked against code. There is no lower bound (as the paper tunes ε_high alone); its value
is not known to us, ε_high = 0.28 is INFERRED.
"""

from __future__ import annotations

from typing import ClassVar

from covrl.algorithms.group import GroupConfig, GroupMethod, Surrogate
from covrl.config import Settings


class CISPOConfig(GroupConfig):
    """CISPO's defaults."""

    surrogate: Surrogate = "cispo"
    clip_high: float = 0.28


class CISPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "cispo"
    paper: ClassVar[str] = "arXiv 2506.13585"
    evidence: ClassVar[str] = "general knowledge, not re-checked"
    Config: ClassVar[type[Settings]] = CISPOConfig
