"""RLOO: REINFORCE with a leave-one-out baseline (Kool et al., 2019; Ahmadian et al., arXiv 2402.14740).

    A_i   = r_i − mean of the other rewards of the group        unbiased
    loss  = mean over responses of  −A_i Σ_t log π(token)

Evidence: general knowledge of the papers, not checked against their code. Ahmadian et al. put a KL into the reward
(``kl = "k1", kl_in = "reward"``); the default here has none (INFERRED), as for the other members. The response is one
action, so its tokens are summed and not averaged. There is no ratio: one update per batch (``surrogate = "clip"``
allows more).
"""

from __future__ import annotations

from typing import ClassVar

from covrl.algorithms.group import Advantage, Aggregation, GroupConfig, GroupMethod, Surrogate
from covrl.config import Settings


class RLOOConfig(GroupConfig):
    """RLOO's defaults."""

    advantage: Advantage = "leave_one_out"
    surrogate: Surrogate = "plain"
    aggregation: Aggregation = "sequence_sum"


class RLOO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "rloo"
    paper: ClassVar[str] = "arXiv 2402.14740"
    evidence: ClassVar[str] = "general knowledge, not re-checked"
    Config: ClassVar[type[Settings]] = RLOOConfig
