"""GSPO: Group Sequence Policy Optimization (Zheng et al., arXiv 2507.18071).

    s_i   = exp( mean_t (log π_new − log π_old) )             one ratio a response
    loss  = mean over responses of mean over tokens of  −min(sA, clip(s, 1−3e-4, 1+4e-4)A)

with s's value and each token's own gradient: s_{i,t} = sg(s_i)·exp(log π − sg(log π)), so that token-level credit
could be used. Evidence (catalogue 3.2): CONFIRMED in code and text, the clips too (GRPO's 0.2 would never bind here);
log s is clamped at 10. With one update per batch s = 1 and GSPO is GRPO; the authors take four mini-batches.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from covrl.algorithms.group import Aggregation, GroupConfig, GroupMethod
from covrl.config import Settings


class GSPOConfig(GroupConfig):
    """GSPO's defaults."""

    ratio: Literal["token", "sequence"] = "sequence"
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    aggregation: Aggregation = "sequence_mean"


class GSPO(GroupMethod):
    """See the module's docstring."""

    name: ClassVar[str] = "gspo"
    paper: ClassVar[str] = "arXiv 2507.18071"
    evidence: ClassVar[str] = "confirmed in code and text"
    Config: ClassVar[type[Settings]] = GSPOConfig
