"""Dr.GRPO: GRPO done right (Liu et al., arXiv 2503.20783).

    A_i   = r_i − mean_group                                  no division by the deviation
    loss  = Σ −min(ρA, clip(ρ, 1−ε, 1+ε)A) / (responses · L)  L the longest response that can be sampled, a constant

Evidence (catalogue 3.1). CONFIRMED in code: both changes. verl divides by the padded width of the micro-batch, which
is not constant (its defect); here L is fixed by the configuration. The mean holds the own reward: against
leave-one-out the expected gradient carries (G−1)/G.
"""

from __future__ import annotations

from typing import ClassVar

from covrl.algorithms.group import Advantage, Aggregation, GroupConfig, GroupMethod
from covrl.config import Settings


class DrGRPOConfig(GroupConfig):
    """Dr.GRPO's defaults."""

    advantage: Advantage = "mean"
    aggregation: Aggregation = "constant"


class DrGRPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "dr_grpo"
    paper: ClassVar[str] = "arXiv 2503.20783"
    evidence: ClassVar[str] = "confirmed in code"
    Config: ClassVar[type[Settings]] = DrGRPOConfig
