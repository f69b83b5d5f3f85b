"""DAPO: Decoupled Clip and Dynamic Sampling Policy Optimization (Yu et al., arXiv 2503.14476).

    clip-higher         ε_low = 0.2, ε_high = 0.28
    token mean          Σ over all tokens / number of tokens
    dynamic sampling    groups in which all rewards are equal are dropped and others sampled, up to 10 rounds
    soft overlong       r −= min(max((length − (L − buffer)) / buffer, 0), 1)
    no KL

Evidence (catalogue 3.1): all four CONFIRMED in code, buffer 512 (a share of the limit would be needed for short ones,
so ``overlong_buffer`` is 0 until it is set). Rounds are bounded by the loop; a step that finds too few groups trains
on those it has. Groups are kept by the *unshaped* outcome, so that the length penalty alone does not make a group
differ.
"""

from __future__ import annotations

from typing import ClassVar

from covrl.algorithms.group import GroupConfig, GroupMethod
from covrl.config import Settings


class DAPOConfig(GroupConfig):
    """DAPO's defaults."""

    clip_high: float = 0.28
    resample: bool = True


class DAPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "dapo"
    paper: ClassVar[str] = "arXiv 2503.14476"
    evidence: ClassVar[str] = "confirmed in code"
    Config: ClassVar[type[Settings]] = DAPOConfig
