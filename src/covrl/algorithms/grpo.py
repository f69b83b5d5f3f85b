"""GRPO: Group Relative Policy Optimization (Shao et al., DeepSeekMath, arXiv 2402.03300).

    A_i   = (r_i − mean_group) / (std_group + 1e-6)
    loss  = mean over responses of mean over tokens of  −min(ρA, clip(ρ, 1−ε, 1+ε)A) + β·k3

Evidence (catalogue 3.1). CONFIRMED in code (verl and several repositories): sample deviation, ε = 0.2, k3. The mean
over responses of token means is the paper's; verl's default is the mean over all tokens (``aggregation =
"token_mean"``), TRL's the same since 2025. β: 0.04 in the paper, 0.001 or 0 in later code; the default here is 0
(INFERRED: what most use now). As a loss, k3 has the gradient of the *forward* KL (VERIFIED by enumeration; spec A.2).
"""

from __future__ import annotations

from typing import ClassVar

from covrl.algorithms.group import Aggregation, GroupConfig, GroupMethod
from covrl.config import Settings


class GRPOConfig(GroupConfig):
    """GRPO's defaults."""

    aggregation: Aggregation = "sequence_mean"


class GRPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300"
    evidence: ClassVar[str] = "confirmed in several repositories' code"
    Config: ClassVar[type[Settings]] = GRPOConfig
